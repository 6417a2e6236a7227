"""The terminal output of a running command: log lines that stay, and a live line with its current activity.

`orchestrator.execution.monitor` supplies the live line of a job.
"""

import errno
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console, RenderableType
from rich.live import Live
from rich.spinner import Spinner
from rich.text import Text

from orchestrator.console.tables import format_duration
from orchestrator.errors import ExitCode

_REPEAT_SECONDS = 5.0
"""Time without a line after which output that is not a terminal repeats the current activity."""

_STATUS_SECONDS = 20.0
"""Time after which it repeats the status of a job, also among many other lines."""

_MAX_SECONDS = 60.0
"""Both times grow to this one, as a tenth of the activity's age: the log of a long job stays short."""


class _Console(Console):
    """A console that raises where its reader has gone; rich's would end the thread that prints."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))


class Progress:
    """Prints to one stream; on a terminal the current activity is a live line, elsewhere it is repeated."""

    def __init__(self, console: Console | None = None, *, required: bool = True) -> None:
        """Print to a console; OSErrors of it are raised, or kept as ``failure`` if it is not ``required``."""
        self._console = console or _Console(soft_wrap=False, highlight=False)
        self._required = required
        self.failure: OSError | None = None
        """Why some of the output was lost."""

        if not self._console.is_terminal:
            self._console.width = 120
        self._last = time.monotonic()
        self._lines: set[str] | None = None

    def print(self, text: str = "") -> None:
        """Print one line that stays."""
        self._last = time.monotonic()
        if (lines := self._lines) is not None:
            if text in lines:
                return
            lines.add(text)
        self._write(Text(text), soft_wrap=True)

    def show(self, renderable: RenderableType) -> None:
        """Print a table or a panel."""
        self._last = time.monotonic()
        self._write(renderable)

    def _write(self, renderable: RenderableType, **options: Any) -> None:
        try:
            self._console.print(renderable, **options)
        except OSError as error:
            if self._required:
                raise
            self.failure = error
            self._console.quiet = True
            self._console.print()  # which drops what could not be written
            self._console.quiet = False

    def exit_code(self, code: int) -> int:
        """Return the exit code of a command; raises the OSError of one that is done and lost output."""
        if self.failure is not None and code == ExitCode.DONE:
            raise self.failure
        return code

    @contextmanager
    def without_repeats(self) -> Iterator[None]:
        """Print each line only once until the block ends."""
        self._lines = set()
        try:
            yield
        finally:
            self._lines = None

    @contextmanager
    def logging(self) -> Iterator["ProgressHandler"]:
        """Show what the package logs at level INFO and above, until the block ends."""
        handler = ProgressHandler(self)
        handler.add(__package__.partition(".")[0])
        try:
            yield handler
        finally:
            handler.remove()

    @contextmanager
    def activity(self, activity: str | Callable[[], str]) -> Iterator[None]:
        """Show the activity until the block ends; a callable is called at each refresh."""
        start = time.monotonic()

        def describe() -> str:
            if callable(activity):
                return activity()
            return f"{activity} ... {format_duration(time.monotonic() - start)}"

        if self._console.is_terminal:
            spinner = Spinner("dots")

            def render() -> RenderableType:
                spinner.update(text=Text(describe()))
                return spinner

            with Live(console=self._console, get_renderable=render, refresh_per_second=4, transient=True):
                yield
            return
        if not callable(activity):
            self.print(activity)
        ended = threading.Event()

        def repeat() -> None:
            shown = start
            while not ended.wait(timeout=1.0):
                now = time.monotonic()
                overdue = callable(activity) and now - shown >= pause(_STATUS_SECONDS, now - start)
                if overdue or now - self._last >= pause(_REPEAT_SECONDS, now - start):
                    shown = now
                    self.print(describe())

        thread = threading.Thread(target=repeat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()


def pause(shortest: float, age: float) -> float:
    """Return the seconds until a line is repeated, of an activity that began ``age`` seconds ago."""
    return max(shortest, min(age / 10, _MAX_SECONDS))


class ProgressHandler(logging.Handler):
    """Prints log records as plain lines above the current activity."""

    def __init__(self, progress: Progress) -> None:
        super().__init__(logging.INFO)
        self._progress = progress
        self._levels: dict[str, int] = {}

    def add(self, logger: str) -> None:
        """Print what a logger logs, at level INFO where the user has set no other level."""
        if logger not in self._levels:
            self._levels[logger] = logging.getLogger(logger).level
            if self._levels[logger] == logging.NOTSET:
                logging.getLogger(logger).setLevel(logging.INFO)
            logging.getLogger(logger).addHandler(self)

    def remove(self) -> None:
        """Detach from all loggers."""
        for logger, level in self._levels.items():
            logging.getLogger(logger).removeHandler(self)
            logging.getLogger(logger).setLevel(level)
        self._levels.clear()

    def emit(self, record: logging.LogRecord) -> None:
        """Print one record."""
        try:
            self._progress.print(self.format(record))
        except Exception:  # as every handler of the standard library: logging must not fail
            self.handleError(record)
