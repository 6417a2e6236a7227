"""What a sweep says while it works: lines that stay, and what it is doing right now."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta

from rich.console import Console, RenderableType
from rich.live import Live
from rich.spinner import Spinner
from rich.text import Text

_SILENCE = 5.0
"""Seconds without a line after which plain output repeats what is being done."""


def clock(seconds: float) -> str:
    """Seconds as ``h:mm:ss``."""
    return str(timedelta(seconds=round(seconds)))


class Progress:
    """Prints to one stream; on a terminal the current activity is a live line, elsewhere it is repeated."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(soft_wrap=False, highlight=False)
        if not self._console.is_terminal:
            self._console.width = 120
        self._last = time.monotonic()

    def say(self, text: str = "") -> None:
        """Print one line that stays."""
        self._last = time.monotonic()
        self._console.print(Text(text), soft_wrap=True)

    def show(self, renderable: RenderableType) -> None:
        """Print a table or a panel."""
        self._last = time.monotonic()
        self._console.print(renderable)

    @contextmanager
    def doing(self, what: str | Callable[[], str]) -> Iterator[None]:
        """Show what is being done until the block ends; a callable is asked anew each time."""
        begin = time.monotonic()

        def describe() -> str:
            return what() if callable(what) else f"{what} ... {clock(time.monotonic() - begin)}"

        if self._console.is_terminal:
            spinner = Spinner("dots")

            def render() -> RenderableType:
                spinner.update(text=Text(describe()))
                return spinner

            with Live(console=self._console, get_renderable=render, refresh_per_second=4, transient=True):
                yield
            return
        if not callable(what):
            self.say(what)
        ended = threading.Event()

        def repeat() -> None:
            while not ended.wait(timeout=1.0):
                if time.monotonic() - self._last >= _SILENCE:
                    self.say(describe())

        thread = threading.Thread(target=repeat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
