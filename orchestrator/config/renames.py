"""Renamed entries of a config, such as data sets."""

import typing
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from orchestrator.config.validation import members, options


def with_new_names(before: Any, after: Any, model: type[BaseModel]) -> Any:
    """Return an earlier config in which each renamed entry has its new name.

    An entry of a field ``dict[str, Model]`` is renamed where one entry is missing in ``after`` and another
    one of the same content is new. Values and lists beside that field follow where ``after`` has the new name
    in their place.

    Args:
        before: the earlier config as plain values.
        after: the present config as plain values.
        model: its type.
    """
    if not isinstance(before, Mapping) or not isinstance(after, Mapping):
        return before
    fields = {key: options(field.annotation) for key, field in (members(model) or {}).items()}
    names: dict[str, str] = {}
    for key, alternatives in fields.items():
        if any(map(_holds_models, alternatives)):
            names |= _renamed(before.get(key), after.get(key))
    followed = dict(before)
    for key, value in before.items():
        models = [option for option in fields.get(key, ()) if members(option) is not None]
        if models:
            for option in models:
                followed[key] = with_new_names(followed[key], after.get(key), option)
        else:
            followed[key] = _follow(value, after.get(key), names)
    return followed


def _renamed(before: Any, after: Any) -> dict[str, str]:
    """Return the new name of each renamed entry of a mapping."""
    if not isinstance(before, Mapping) or not isinstance(after, Mapping):
        return {}
    names: dict[str, str] = {}
    for name in before.keys() - after.keys():
        same = [other for other in after if other not in before and after[other] == before[name]]
        if len(same) == 1 and same[0] not in names.values():
            names[name] = same[0]
    return names


def _follow(before: Any, after: Any, names: Mapping[str, str]) -> Any:
    """Return ``before`` with each new name that ``after`` has in the same place."""
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        new = {
            key: names[key] if key in names and key not in after and names[key] in after else key
            for key in before
        }
        return {new[key]: value for key, value in before.items()}
    if isinstance(before, list | tuple) and isinstance(after, list | tuple) and len(before) == len(after):
        return [_follow(*pair, names) for pair in zip(before, after, strict=True)]
    return after if isinstance(before, str) and names.get(before) == after else before


def _holds_models(option: Any) -> bool:
    if typing.get_origin(option) is not dict:
        return False
    _, value = typing.get_args(option)
    return any(members(each) is not None for each in options(value))
