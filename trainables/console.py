"""What the commands of this package share: exit codes, messages, progress, and checks of arguments."""

import argparse
import contextlib
import errno
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NoReturn, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from trainables.errors import DataError, UnreachableError

_log = logging.getLogger(__name__)

LOST_OUTPUT = 1
FAULT = 2
UNREACHABLE = 3
INTERRUPTED = 130
LINE_SECONDS = 4.0
OUT = Console(emoji=False)  # else the ":m:" in "models:m: ..." would become a picture
ERR = Console(stderr=True, emoji=False)

Item = TypeVar("Item")
Result = TypeVar("Result")


def run(command: Callable[[argparse.Namespace], None], chosen: argparse.Namespace) -> int:
    """Run one command; return the exit code.

    It is 2, with one line on stderr, for bad input or a file that cannot be opened, 3 for a server that does
    not answer, 1 where the output cannot be written, 130 after Ctrl-C.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=[ConsoleHandler()])
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:  # until here
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if sys.stdout is None:  # this process was started with its output closed
        os.open(os.devnull, os.O_WRONLY)  # takes its number, so that nothing is printed into another file
    try:
        command(chosen)
        if sys.stdout is None:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        sys.stdout.flush()
    except OSError as error:
        if error.filename is not None:
            _print_error(f"{error.filename}: {error.strerror}")
            return FAULT
        if sys.stdout is not None:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what is left would fail again at the exit
        ERR.print(f"error: the output cannot be written: {error.strerror}")
        return LOST_OUTPUT
    except DataError as error:
        _print_error(str(error))
        return UNREACHABLE if isinstance(error, UnreachableError) else FAULT
    except KeyboardInterrupt:
        ERR.print("interrupted")
        return INTERRUPTED
    return 0


def _print_error(message: str) -> None:
    ERR.print(f"error: {message}", style="red", markup=False, highlight=False, soft_wrap=True)


class ConsoleHandler(logging.Handler):
    """Handler that prints log records to stderr, above a spinner or progress bar."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print one record."""
        ERR.print(self.format(record), style="dim", markup=False, highlight=False, soft_wrap=True)


class Parser(argparse.ArgumentParser):
    """A parser that prints an error as one line."""

    def error(self, message: str) -> NoReturn:
        """Exit with one line instead of the usage."""
        self.exit(FAULT, f"error: {message}; see --help\n")


def positive(text: str) -> int:
    """Parse a whole number above 0."""
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number above 0")
    return int(text)


def picture(text: str) -> Path:
    """Parse the name of a picture to write."""
    if Path(text).suffix.lower() not in (".png", ".jpg", ".jpeg"):
        raise argparse.ArgumentTypeError(f"{text!r}: expected a name that ends with .png or .jpg")
    return Path(text)


def named_values(options: Sequence[str]) -> dict[str, str]:
    """Return ``NAME=VALUE`` options by name.

    Raises:
        DataError: an option has no value.
    """
    values: dict[str, str] = {}
    for option in options:
        name, equals, value = option.partition("=")
        if not equals:
            raise DataError(f"--option {option}: no value; expected NAME=VALUE, such as minimum_frames=28")
        values[name] = value
    return values


def in_threads(function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """Yield ``function`` of every item, in order, computed by one thread per CPU."""
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as executor:
        try:
            yield from executor.map(function, items)
        finally:
            executor.shutdown(cancel_futures=True)


@contextlib.contextmanager
def busy(activity: str) -> Iterator[None]:
    """Log an activity and show that it is running: a spinner, or a line every few seconds."""
    _log.info("%s", activity)
    if ERR.is_terminal:
        with ERR.status(activity):
            yield
        return
    finished, started = threading.Event(), time.monotonic()

    def repeat() -> None:
        while not finished.wait(LINE_SECONDS):
            _log.info("%s: %.0f s so far", activity, time.monotonic() - started)

    reporter = threading.Thread(target=repeat, daemon=True)
    reporter.start()
    try:
        yield
    finally:
        finished.set()
        reporter.join()


def follow(results: Iterable[Item], verb: str, total: int, first: int = 0) -> Iterator[Item]:
    """Yield the results, one per tracklet, and show the progress: a bar, or a line every few seconds.

    Args:
        results: what to yield.
        verb: what has happened to a tracklet, such as ``decoded``.
        total: number of tracklets.
        first: number of tracklets that an earlier run has done.
    """
    if ERR.is_terminal:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=ERR) as progress:
            task = progress.add_task(verb, total=total, completed=first)
            for result in results:
                yield result
                progress.advance(task)
        return
    reported = time.monotonic()
    for number, result in enumerate(results, start=first + 1):
        yield result
        if time.monotonic() - reported > LINE_SECONDS:
            reported = time.monotonic()
            _log.info("%s %s of %s tracklets", verb, f"{number:,}", f"{total:,}")
