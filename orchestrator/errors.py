"""The exceptions of this package with their exit codes, and the words they share.

::

    Exception
    ├── InputError (ValueError)      the user's input is wrong: exit code 2, nothing was written
    │   ├── FieldError               ... in a field whose line in the file is known
    │   └── UnreachableError         what it names does not answer now: exit code 3
    ├── SweepError (RuntimeError)    the job cannot continue: exit code 1, rerun the command to resume
    │   ├── StorageError             the storage did not accept or return something
    │   ├── TrackingError            MLflow did not accept or return something
    │   └── LeaseLostError           another driver has taken the job over: exit code 4
    └── TrialError                   one trial failed; the job continues

``str()`` of each is one line.
"""

import difflib
import errno
import re
from collections.abc import Iterable
from enum import IntEnum
from typing import Any, ClassVar, NamedTuple

_MAX_NAMES = 12
_MAX_VALUE = 60
_MAX_LINE = 1000

Path = tuple[str | int, ...]
"""Keys and indices that lead from the top of a document to one value."""


class ExitCode(IntEnum):
    """How a command ended."""

    DONE = 0
    FAILED = 1
    BAD_INPUT = 2
    UNREACHABLE = 3
    LEASE_LOST = 4
    INTERRUPTED = 130


class InputError(ValueError):
    """The user's input is wrong. ``str()`` says where, what is wrong, and what would be right."""

    exit_code: ClassVar[ExitCode] = ExitCode.BAD_INPUT

    def __init__(self, message: str) -> None:
        """Keep the message to one line, whatever it quotes."""
        super().__init__(one_line(message, _MAX_LINE))


class Fault(NamedTuple):
    """What is wrong with one value of a document."""

    path: Path
    reason: str
    kind: str = ""
    """Pydantic's type of the error, such as ``missing``; empty where pydantic did not find it."""

    def __str__(self) -> str:
        """Return field and reason as the user reads them."""
        return ": ".join(text for text in (dotted(self.path), self.reason) if text)


class FieldError(InputError):
    """An ``InputError`` that knows the field, so that the reader of the file can add the line."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(str(fault))
        self.fault = fault


class UnreachableError(InputError):
    """A server that the input names does not answer now: its address is wrong, or it is away for a while."""

    exit_code = ExitCode.UNREACHABLE


class SweepError(RuntimeError):
    """The job cannot continue. Finished work is kept; rerunning the command tries again."""


class StorageError(SweepError):
    """The storage did not accept or return something; what was written before is complete.

    ``full``: no space is left. ``missing``: the storage answered, but a file that should exist does not.
    ``refused``: it does not permit the request. In these cases repeating the request does not help.
    ``unreachable``: no answer came.
    """

    def __init__(
        self,
        message: str,
        full: bool = False,
        missing: bool = False,
        unreachable: bool = False,
        refused: bool = False,
    ) -> None:
        super().__init__(message)
        self.full, self.missing, self.unreachable, self.refused = full, missing, unreachable, refused

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (str(self), self.full, self.missing, self.unreachable, self.refused)

    def as_input_error(self) -> InputError:
        """Return it as the error of a command that has written nothing."""
        return (UnreachableError if self.unreachable else InputError)(str(self))


class TrackingError(SweepError):
    """MLflow did not accept or return something. ``unreachable``: no answer came."""

    def __init__(self, message: str, *, unreachable: bool = False) -> None:
        super().__init__(message)
        self.unreachable = unreachable


class LeaseLostError(SweepError):
    """Another driver has taken the job over, so this one must not write any more."""


class TrialError(Exception):
    """A trial failed, by its own fault or because it lost its workers too often."""

    def __init__(self, reason: str, log: str) -> None:
        super().__init__(reason)
        self.reason, self.log = reason, log


def is_full(error: BaseException) -> bool:
    """Return whether an error says that no space is left."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


def is_misplaced(error: BaseException) -> bool:
    """Return whether something else is in the place of a folder, or a link that leads nowhere.

    It stays there until somebody removes it.
    """
    places = (errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.ELOOP)
    return isinstance(error, OSError) and error.errno in places


def is_refused(error: BaseException) -> bool:
    """Return whether an error of a file system says that it does not permit the request.

    An answer of S3 without a body says only 403, which may mean expired credentials.
    """
    text = str(error)  # of PyArrow 25
    denied = "AWS Error ACCESS_DENIED" in text and "No response body" not in text
    return denied or isinstance(error, PermissionError)


def plain_text(value: object) -> str:
    """Return ``str(value)`` as text that every database keeps, without NUL and lone surrogates.

    A value whose ``str()`` raises is named by its type.
    """
    try:
        text = str(value)
    except Exception as error:
        text = f"{type(value).__name__}, whose text raises {type(error).__name__}"
    return text.encode("utf-8", "replace").decode().replace("\0", "?")


def printable(text: str) -> str:
    """Return a text without what would control a terminal, such as escape sequences; lines remain."""
    return "".join(each if each.isprintable() or each in "\n\t" else "?" for each in text)


def one_line(text: object, limit: int) -> str:
    """Return ``str(text)`` as one line of at most ``limit`` characters, all of which can be printed."""
    line = printable(" ".join(plain_text(text).split()))
    return line if len(line) <= limit else f"{line[: limit - 3]}..."


def newer_schema(location: str, schema: int, supported: int) -> str:
    """Return the message about a record that a later version of this project wrote."""
    return (
        f"{location} has schema {schema}, and this version reads up to {supported}; "
        "upgrade multi-shot-reid to the version that wrote it"
    )


def dotted(path: Iterable[str | int]) -> str:
    """Return a path as the user writes it: ``search.rnn.hidden_size``."""
    return ".".join(str(part) for part in path)


def quote(value: object) -> str:
    """Return a value as YAML would hold it, shortened to fit into a line, without a password."""
    if value is None or isinstance(value, bool):
        text = {None: "null", True: "true", False: "false"}[value]
    else:
        text = re.sub(r"(://[^/@\s:]*):[^/\s]*@", r"\1:...@", repr(value))
    return text if len(text) <= _MAX_VALUE else text[: _MAX_VALUE - 3] + "..."


def closest(name: object, valid: Iterable[object]) -> str | None:
    """Return the valid name that is similar to a name, or None if there is none; case does not count."""
    names = {option.lower(): option for option in sorted({str(option) for option in valid}, reverse=True)}
    match = difflib.get_close_matches(str(name)[:200].lower(), sorted(names), n=1)
    return names[match[0]] if match else None


def nearest(name: object, valid: Iterable[object], *, listed: bool = True) -> str:
    """Return the end of a line about an unknown name: the nearest valid one, or (``listed``) all of them.

    >>> nearest("trails", ["trials", "wall"])
    "; did you mean 'trials'?"
    >>> nearest("x", ["trials", "wall"])
    '; valid: trials, wall'
    """
    names = sorted({str(option) for option in valid})
    match = closest(name, names)
    if match is not None:
        return f"; did you mean {match!r}?"
    if not names or not listed:
        return ""
    more = f" and {len(names) - _MAX_NAMES} more" if len(names) > _MAX_NAMES else ""
    return f"; valid: {', '.join(names[:_MAX_NAMES])}{more}"
