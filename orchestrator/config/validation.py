"""Faults that pydantic finds, as one line each with the path in the user's file."""

import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, SerializeAsAny, ValidationError
from pydantic.fields import FieldInfo

from orchestrator.errors import Fault, FieldError, Path, closest, nearest, quote

_EXPECTED = {
    **dict.fromkeys(("dict_type", "model_type", "model_attributes_type"), "a mapping of keys to values"),
    **dict.fromkeys(("list_type", "tuple_type", "set_type"), "a list"),
    **dict.fromkeys(("string_type",), "text"),
    **dict.fromkeys(("int_type", "int_parsing", "int_from_float"), "a whole number"),
    **dict.fromkeys(("float_type", "float_parsing"), "a number"),
    **dict.fromkeys(("bool_type", "bool_parsing"), "true or false"),
}

WHOLE_NUMBER = frozenset(kind for kind, expected in _EXPECTED.items() if expected == "a whole number")
"""Kinds of faults of a value that is not a whole number."""


def faults(error: ValidationError, model: type[BaseModel], data: object) -> list[Fault]:
    """Return the faults that pydantic reports in ``data`` in readable form, the most specific first.

    A misspelt key shows in pydantic as an unknown key beside a missing one: unknown keys come first. A
    validator that raises FieldError says where the fault is below the field that it validates.
    """
    details = sorted(error.errors(include_url=False), key=lambda detail: detail["type"] != "extra_forbidden")
    return [_fault(dict(detail), model, data) for detail in details]


def first_fault(error: ValidationError, model: type[BaseModel], data: object, *prefix: str | int) -> Fault:
    """Return the most specific fault, its path behind ``prefix``, with the number of the others."""
    first, *others = faults(error, model, data)
    count = len(_own_places([first, *others], model)) - 1
    more = f" (and {count} more at fault)" if count else ""
    return Fault((*prefix, *first.path), first.reason + more, first.kind)


def _own_places(found: Sequence[Fault], model: type[BaseModel]) -> set[Path]:
    """Return the paths of faults, without those that follow from others.

    A key that is missing because it is misspelt follows from the unknown key. That a mapping does not fit
    another alternative of a union follows from the fault in it.
    """
    meant = {
        (*fault.path[:-1], closest(fault.path[-1], _fields_beside(model, fault.path)))
        for fault in found
        if fault.kind == "extra_forbidden"
    }
    paths = {fault.path for fault in found if fault.kind != "missing" or fault.path not in meant}
    return paths - {path[:end] for path in paths for end in range(len(path))}


def options(annotation: Any) -> list[Any]:
    """Return the alternatives of a type without None: ``Annotated[A, ...] | None`` gives ``[A]``."""
    origin = typing.get_origin(annotation)
    if origin is typing.Annotated:
        return options(typing.get_args(annotation)[0])
    if origin in (typing.Union, types.UnionType):
        return [option for member in typing.get_args(annotation) for option in options(member)]
    return [] if annotation is type(None) else [annotation]


def members(option: Any) -> dict[str, FieldInfo] | None:
    """Return the fields of a pydantic model by name (or alias), or None for any other type."""
    if isinstance(option, type) and issubclass(option, BaseModel):
        return {field.alias or name: field for name, field in option.model_fields.items()}
    return None


def item(option: Any) -> Any:
    """Return the type of the values of a mapping or of the items of a sequence, or None for other types."""
    origin, arguments = typing.get_origin(option), typing.get_args(option)
    if isinstance(origin, type) and arguments:
        if issubclass(origin, Mapping):
            return arguments[1]
        if issubclass(origin, Sequence | set | frozenset):
            return arguments[0]
    return None


def _fault(detail: dict[str, Any], model: type[BaseModel], data: object) -> Fault:
    kind = str(detail["type"])
    path = _in_data(detail["loc"], model, data, keep_last=kind == "missing")
    cause = detail.get("ctx", {}).get("error")
    if isinstance(cause, FieldError):
        return cause.fault._replace(path=(*path, *cause.fault.path))
    return Fault(path, _reason(kind, detail, model, path), kind)


def _in_data(location: Path, model: type[BaseModel], data: object, *, keep_last: bool) -> Path:
    """Return a pydantic location without the names of union members and validators.

    What remains are keys that the user wrote, and fields that validators filled in.
    """
    path: list[str | int] = []
    types_here: list[Any] = [model]
    for index, part in enumerate(location):
        children: dict[str | int, object] = {}
        if isinstance(data, Mapping):
            children = dict(data)
        elif isinstance(data, list | tuple):
            children = dict(enumerate(data))
        is_field = any(part in (members(option) or {}) for option in types_here)
        if part in children or is_field or (keep_last and index == len(location) - 1):
            path.append(part)
            data = children.get(part)
            types_here = _types_below(types_here, part)
    return tuple(path)


def _types_below(types_here: list[Any], part: str | int) -> list[Any]:
    """Return the alternatives of the values under one key."""
    below: list[Any] = []
    for option in types_here:
        fields = members(option)
        if fields is None:
            below += options(item(option))
        elif part in fields:
            below += _field_options(fields[str(part)])
    return below


def _field_options(field: FieldInfo) -> list[Any]:
    """Return the alternatives of a field, with all subclasses where an instance of one may stand."""
    alternatives = options(field.annotation)
    if any(isinstance(entry, SerializeAsAny) for entry in field.metadata):  # type: ignore[misc]
        for option in alternatives:  # grows while it is read: subclasses of subclasses
            alternatives += [cls for cls in option.__subclasses__() if cls not in alternatives]
    return alternatives


def _fields_beside(model: type[BaseModel], path: Path) -> dict[str, FieldInfo]:
    """Return the fields that the model has beside the last key of ``path``."""
    types_here: list[Any] = [model]
    for part in path[:-1]:
        types_here = _types_below(types_here, part)
    return {key: field for option in types_here for key, field in (members(option) or {}).items()}


def _reason(kind: str, detail: dict[str, Any], model: type[BaseModel], path: Path) -> str:
    """Return the fault and the valid values."""
    value, message = detail["input"], str(detail["msg"])
    fields = _fields_beside(model, path) if path else {}
    field = fields.get(str(path[-1])) if path else None
    if kind == "extra_forbidden":
        if path[-1] in fields:  # of another alternative of a union
            return "cannot be combined with the other keys"
        keys = str(path[-1]).split(".")
        if len(keys) > 1 and keys[0] in fields:
            return f"unknown key; write {': {'.join(keys)}: ...{'}' * (len(keys) - 1)}"
        return f"unknown key{nearest(path[-1], fields)}"
    if kind == "missing":
        return f"missing; {field.description}" if field and field.description else "missing"
    if kind == "union_tag_not_found":
        return f"give {detail['ctx']['discriminator']} as well, which decides the other keys"
    if kind == "value_error":
        return str(detail["ctx"]["error"])
    if kind == "literal_error":
        expected = str(detail["ctx"]["expected"])
        valid = expected.replace("'", "").replace(" or ", ", ").split(", ")
        return f"invalid value {quote(value)}; expected {expected}{nearest(value, valid, listed=False)}"
    if kind in _EXPECTED:
        optional = field is not None and not field.is_required() and field.default is None
        leaves_out = "; null leaves it out" if optional and value in ("none", "None", "", False) else ""
        return f"should be {_EXPECTED[kind]}, not {quote(value)}{leaves_out}"
    message = message.removeprefix("Input ")
    message = message[:1].lower() + message[1:]
    return message if ", not " in message else f"{message}, not {quote(value)}"
