"""What ends a driver before it is done: Ctrl-C, SIGTERM, SIGHUP, a stop request or a lost lease."""

import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_log = logging.getLogger(__name__)

_WAKE = signal.SIGUSR2
"""Wakes the main thread for a request that came from another thread."""


class Interrupt:
    """A request to end this process in good order; the next signal ends it at once.

    A command creates one and hands it to everything that may have to end early. A request raises
    KeyboardInterrupt in the main thread, except in a `polled` block.
    """

    def __init__(self) -> None:
        self.reason = ""
        """Why the process has to end, once it has to."""

        self._lock = threading.Lock()
        self._installed = False
        self._polled = False
        self._terminals = [stream for stream in (1, 2) if os.isatty(stream)]

    @property
    def requested(self) -> bool:
        """Whether the process has to end."""
        return bool(self.reason)

    def install(self) -> None:
        """Handle SIGINT, SIGTERM and SIGHUP; call it again after a library has set handlers.

        Only the main thread may call this. A SIGINT or SIGHUP that the parent process set to be ignored, as
        ``nohup`` and the ``&`` of a script do, stays ignored.
        """
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if number == signal.SIGTERM or signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self._on_signal)
        signal.signal(_WAKE, lambda *_: self._raise())
        self._installed = True

    def request(self, reason: str) -> bool:
        """Ask the process to end, from any thread; return False when it is ending already."""
        with self._lock:
            if self.reason:
                return False
            self.reason = reason
            _log.warning("%s", reason)
            if self._installed and not self._polled:
                # A signal, because the main thread may be blocked in a call.
                signal.pthread_kill(threading.main_thread().ident or 0, _WAKE)
        return True

    @contextmanager
    def polled(self) -> Iterator[None]:
        """Raise nothing while the block runs: it polls `requested`, and so does the code after it."""
        with self._lock:
            self._polled = True
        try:
            yield
        finally:
            # A request that the block has seen may still have to decide whether to send its signal.
            with self._lock:
                self._polled = False

    def force_exit(self) -> None:
        """End the process at once; written files are kept."""
        try:
            print("stopped at once; rerun the command to resume", file=sys.stderr, flush=True)
        finally:  # the terminal may have been closed
            os._exit(130)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGHUP:
            self._discard_output_of_closed_terminals()
        if self.reason:
            self.force_exit()
        self.reason = signal.Signals(number).name
        self._raise()

    def _discard_output_of_closed_terminals(self) -> None:
        """Discard output that can no longer be written, because each line would raise an OSError."""
        for stream in self._terminals:
            if not os.isatty(stream):
                with open(os.devnull, "wb") as discarded:
                    os.dup2(discarded.fileno(), stream)

    def _raise(self) -> None:
        if not self._polled:
            raise KeyboardInterrupt
