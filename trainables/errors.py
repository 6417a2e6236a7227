"""The error for bad input, and functions for its messages."""

import os
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from trainables.network.components import did_you_mean, nearest, one_line

__all__ = [
    "DataError",
    "UnreachableError",
    "at_field",
    "check_name",
    "describe_raised",
    "did_you_mean",
    "nearest",
    "one_line",
]


class DataError(ValueError):
    """Error in the user's input; ``str()`` is one line: where, what is wrong, what is expected."""


class UnreachableError(DataError):
    """A server that does not answer now; ``str()`` is one line."""


def check_name(path: Path) -> None:
    """Raise DataError for a file whose name is not UTF-8: no text that names it could be written."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        shown = os.fsencode(path).decode(errors="backslashreplace")
        raise DataError(f"{shown}: the name is not UTF-8; rename it") from None


def describe_raised(error: BaseException) -> str:
    """Return what a component of the user raised, and where: ``IndexError: no item (mine.py, line 3)``."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {one_line(error)} ({Path(last.filename).name}, line {last.lineno})"


@contextmanager
def at_field(field: str) -> Iterator[None]:
    """Prefix errors in the user's input with the config field."""
    try:
        yield
    except ValueError as error:
        raise DataError(f"{field}: {error}") from error
