"""The error for bad input, and functions for its messages."""

from trainables.network.components import did_you_mean, nearest, one_line

__all__ = ["DataError", "did_you_mean", "nearest", "one_line"]


class DataError(ValueError):
    """Error in the user's input; ``str()`` is one line: where, what is wrong, what is expected."""
