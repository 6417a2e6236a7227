"""Names that a user gives to entries of a config, such as data sets, and that change nothing but the name."""

import typing
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from orchestrator.config.validation import members, options


def with_new_names(before: Any, after: Any, model: type[BaseModel]) -> Any:
    """Return an earlier config in which each renamed entry has its new name, wherever the name stands.

    An entry of a field ``dict[str, Model]`` is renamed where one entry is missing in ``after`` and another
    one of the same content is new.

    Args:
        before: the earlier config as plain values.
        after: the present config as plain values.
        model: its type.
    """
    return _replace(before, _renamed(before, after, model))


def _renamed(before: Any, after: Any, kind: Any) -> dict[str, str]:
    if not isinstance(before, Mapping) or not isinstance(after, Mapping):
        return {}
    names: dict[str, str] = {}
    for option in options(kind):
        for key, field in (members(option) or {}).items():
            names |= _renamed(before.get(key), after.get(key), field.annotation)
        if typing.get_origin(option) is dict and _holds_models(option):
            added = [name for name in after if name not in before]
            for name in before.keys() - after.keys():
                same = [other for other in added if after[other] == before[name]]
                if len(same) == 1 and same[0] not in names.values():
                    names[name] = same[0]
    return names


def _holds_models(option: Any) -> bool:
    _, value = typing.get_args(option)
    return any(members(each) is not None for each in options(value))


def _replace(value: Any, names: Mapping[str, str]) -> Any:
    if isinstance(value, Mapping):
        return {names.get(key, key): _replace(each, names) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_replace(each, names) for each in value]
    return names.get(value, value) if isinstance(value, str) else value
