"""The error for bad input, and functions for its messages."""

from collections.abc import Iterator
from contextlib import contextmanager

from trainables.network.components import did_you_mean, nearest, one_line

__all__ = ["DataError", "at_field", "did_you_mean", "nearest", "one_line"]


class DataError(ValueError):
    """Error in the user's input; ``str()`` is one line: where, what is wrong, what is expected."""


@contextmanager
def at_field(field: str) -> Iterator[None]:
    """Prefix errors in the user's input with the config field."""
    try:
        yield
    except ValueError as error:
        raise DataError(f"{field}: {error}") from error
