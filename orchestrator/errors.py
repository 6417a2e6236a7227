"""What is wrong in the user's input, in one line."""

import difflib
import errno
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

_LISTED = 12
_SHOWN = 60
_LONGEST = 1000
_EXPECTED = {
    **dict.fromkeys(("dict_type", "model_type", "model_attributes_type"), "a mapping of keys to values"),
    **dict.fromkeys(("list_type", "tuple_type", "set_type"), "a list"),
    **dict.fromkeys(("string_type",), "text"),
    **dict.fromkeys(("int_type", "int_parsing", "int_from_float"), "a whole number"),
    **dict.fromkeys(("float_type", "float_parsing"), "a number"),
    **dict.fromkeys(("bool_type", "bool_parsing"), "true or false"),
}

Path = tuple[str | int, ...]
"""Keys and indices that lead from the top of a document to one value."""


class SweepError(RuntimeError):
    """The sweep cannot go on. ``str()`` is one line; what was done is kept, the same command tries again."""


class StorageError(SweepError):
    """The storage did not take or give something; what was written before is whole.

    ``full``: there is no space left, so that trying again helps nobody. ``missing``: it answered, and has not
    what should be there, so that trying for ever helps nobody.
    """

    def __init__(self, message: str, full: bool = False, missing: bool = False) -> None:
        super().__init__(message)
        self.full, self.missing = full, missing

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (str(self), self.full, self.missing)


class InputError(ValueError):
    """The user's input is at fault. ``str()`` is one line: where, what is wrong, and what would be right."""

    def __init__(self, message: str) -> None:
        """Keep the message to one printable line, whatever it quotes."""
        line = " ".join(message.split())
        line = line if len(line) <= _LONGEST else f"{line[: _LONGEST - 3]}..."
        super().__init__("".join(character if character.isprintable() else "?" for character in line))


class Fault(NamedTuple):
    """What is wrong with one value of a document."""

    path: Path
    reason: str

    def __str__(self) -> str:
        """Field and reason, as they stand in the line that the user reads."""
        return f"{dotted(self.path)}: {self.reason}" if self.path else self.reason


class FieldError(InputError):
    """An ``InputError`` that knows which field is at fault, so that its reader can say where it stands."""

    def __init__(self, fault: Fault) -> None:
        """Keep the fault beside the line made of it."""
        super().__init__(str(fault))
        self.fault = fault


def is_full(error: BaseException) -> bool:
    """Whether there is no space left to write."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


def dotted(path: Iterable[str | int]) -> str:
    """Write a path as the user does: ``search.rnn.hidden_size``."""
    return ".".join(str(part) for part in path)


def show(value: object) -> str:
    """Quote a value as YAML would hold it, shortened to fit into a line."""
    if value is None or isinstance(value, bool):
        text = {None: "null", True: "true", False: "false"}[value]
    else:
        text = repr(value)
    return text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "..."


def nearest(name: object, valid: Iterable[object], *, listed: bool = True) -> str:
    """End a line about an unknown name: the nearest valid one, or (``listed``) all valid ones.

    >>> nearest("trails", ["trials", "wall"])
    "; did you mean 'trials'?"
    >>> nearest("x", ["trials", "wall"])
    '; valid: trials, wall'
    """
    names = sorted({str(each) for each in valid})
    match = difflib.get_close_matches(str(name)[:200], names, n=1)
    if match:
        return f"; did you mean {match[0]!r}?"
    if not names or not listed:
        return ""
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return f"; valid: {', '.join(names[:_LISTED])}{more}"


def faults(error: ValidationError, model: type[BaseModel], data: object) -> list[Fault]:
    """Turn what pydantic found in ``data`` into readable faults, the most telling first.

    A misspelt key shows in pydantic as an unknown key beside a missing one: unknown keys come first.
    """
    details = sorted(error.errors(include_url=False), key=lambda each: each["type"] != "extra_forbidden")
    found = []
    for detail in details:
        path = _in_data(detail["loc"], data, keep_last=detail["type"] == "missing")
        found.append(Fault(path, _reason(detail["type"], dict(detail), model, path)))
    return found


def first_fault(error: ValidationError, model: type[BaseModel], data: object, *prefix: str | int) -> Fault:
    """Give the most telling fault, its path behind ``prefix``, and say how many more there are."""
    found = faults(error, model, data)
    others = len({fault.path for fault in found} - {found[0].path})
    more = f" (and {others} more at fault)" if others else ""
    return Fault((*prefix, *found[0].path), found[0].reason + more)


def options(annotation: Any) -> list[Any]:
    """Give the alternatives of a type without None: ``Annotated[A, ...] | None`` gives ``[A]``."""
    origin = typing.get_origin(annotation)
    if origin is typing.Annotated:
        return options(typing.get_args(annotation)[0])
    if origin in (typing.Union, types.UnionType):
        return [each for member in typing.get_args(annotation) for each in options(member)]
    return [] if annotation is type(None) else [annotation]


def members(option: Any) -> dict[str, FieldInfo] | None:
    """Give the fields of a pydantic model by name (or alias), or None for any other type."""
    if isinstance(option, type) and issubclass(option, BaseModel):
        return {field.alias or name: field for name, field in option.model_fields.items()}
    return None


def item(option: Any) -> Any:
    """Give the type of the values of a mapping or the items of a sequence, or None for any other type."""
    origin, arguments = typing.get_origin(option), typing.get_args(option)
    if isinstance(origin, type) and arguments:
        if issubclass(origin, Mapping):
            return arguments[1]
        if issubclass(origin, Sequence | set | frozenset):
            return arguments[0]
    return None


def _in_data(location: Path, data: object, *, keep_last: bool) -> Path:
    """Drop what the user did not write from a pydantic location: names of union members and validators."""
    path: list[str | int] = []
    for index, part in enumerate(location):
        children: dict[str | int, object] = {}
        if isinstance(data, Mapping):
            children = dict(data)
        elif isinstance(data, list | tuple):
            children = dict(enumerate(data))
        if part in children or (keep_last and index == len(location) - 1):
            path.append(part)
            data = children.get(part)
    return tuple(path)


def _fields_beside(model: type[BaseModel], path: Path) -> dict[str, FieldInfo]:
    """Give the fields that the model has where the last key of ``path`` stands."""
    here: list[Any] = [model]
    for part in path[:-1]:
        inner = []
        for option in here:
            fields = members(option)
            if fields is None:
                inner += options(item(option))
            elif part in fields:
                inner += options(fields[str(part)].annotation)
        here = inner
    return {key: field for option in here for key, field in (members(option) or {}).items()}


def _reason(kind: str, detail: dict[str, Any], model: type[BaseModel], path: Path) -> str:
    """Say what is wrong and what would be right."""
    given, message = detail["input"], str(detail["msg"])
    if kind == "extra_forbidden":
        fields = _fields_beside(model, path)
        if path[-1] in fields:  # of another alternative of a union
            return "does not go with the other keys beside it"
        return f"unknown key{nearest(path[-1], fields)}"
    if kind == "missing":
        field = _fields_beside(model, path).get(str(path[-1]))
        return f"missing; {field.description}" if field and field.description else "missing"
    if kind == "union_tag_not_found":
        return f"give {detail['ctx']['discriminator']} as well, which decides what goes with it"
    if kind == "value_error":
        return str(detail["ctx"]["error"])
    if kind == "literal_error":
        expected = str(detail["ctx"]["expected"])
        valid = expected.replace("'", "").replace(" or ", ", ").split(", ")
        return f"{show(given)} is none of {expected}{nearest(given, valid, listed=False)}"
    if kind in _EXPECTED:
        return f"should be {_EXPECTED[kind]}, not {show(given)}"
    message = message.removeprefix("Input ")
    message = message[:1].lower() + message[1:]
    return message if ", not " in message else f"{message}, not {show(given)}"
