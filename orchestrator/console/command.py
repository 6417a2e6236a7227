"""The end of a command: its exit code, also where Ctrl-C or its output gets in the way."""

import errno
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import NoReturn

from orchestrator.errors import ExitCode

_OF_OUTPUT = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EPIPE, errno.EBADF)


def run(main: Callable[[], int], leave: Callable[[int], NoReturn] = sys.exit) -> NoReturn:
    """Run a command as this process, and end it with its `ExitCode`.

    Output that cannot be written is FAILED, with one line. ``leave`` ends the process.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:  # since `orchestrator` was imported
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if sys.stdout is None:  # this process was started with its output closed
        os.open(os.devnull, os.O_WRONLY)  # takes its number, so that nothing is printed into another file
    code: int = ExitCode.DONE
    try:
        code = main()
        if sys.stdout is None:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        sys.stdout.flush()
    except KeyboardInterrupt:
        code = ExitCode.INTERRUPTED
    except OSError as error:
        if error.errno not in _OF_OUTPUT or error.filename is not None:
            raise
        _discard_output()
        with suppress(OSError):
            print(f"error: the output cannot be written: {error.strerror}", file=sys.stderr)
        code = code or ExitCode.FAILED
    leave(code)


def _discard_output() -> None:
    """Discard what Python would write, and fail to write, at its exit."""
    if sys.stdout is None:
        return
    with open(os.devnull, "wb") as discarded:
        os.dup2(discarded.fileno(), 1)
