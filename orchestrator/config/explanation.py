"""What each path of a trainable's config means: its type, its range, its default and its description."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from pydantic import BaseModel
from pydantic.errors import PydanticInvalidForJsonSchema
from pydantic_core import to_jsonable_python

from orchestrator.config.job import value_text
from orchestrator.errors import InputError, one_line

_TYPES = {
    "integer": "whole number",
    "number": "number",
    "string": "text",
    "boolean": "true or false",
    "null": "null",
    "object": "mapping",
}

BOUNDS = {
    "minimum": "at least",
    "exclusiveMinimum": "above",
    "maximum": "at most",
    "exclusiveMaximum": "below",
}
"""Bounds of a JSON schema, in words."""

NAME = "NAME"
"""Stands for the keys of a mapping that the user names."""

_Schema = Mapping[str, Any]
_ABSENT = object()


@dataclass(frozen=True, slots=True)
class ConfigPath:
    """One path of a config that holds one value; default and value are plain JSON values."""

    path: str
    type: str
    """The type and its range, in words."""
    required: bool
    default: Any
    """None if the path is required."""
    is_set: bool
    """Whether there is a config, which has a value."""
    value: Any
    description: str

    def as_json(self) -> dict[str, Any]:
        """Return the path as plain JSON values."""
        return asdict(self)


def json_schema(model: type[BaseModel]) -> dict[str, Any]:
    """Return the JSON schema of a config model; raises InputError for a type that has none."""
    try:
        return model.model_json_schema()
    except PydanticInvalidForJsonSchema as error:
        reason = one_line(error.message, 200)
        raise InputError(
            f"{model.__qualname__} has a field that no JSON schema describes: {reason}"
        ) from error


def config_paths(model: type[BaseModel], config: BaseModel | None = None) -> list[ConfigPath]:
    """Return the paths of a config model in the order of its fields.

    Args:
        model: the model.
        config: a config, whose mappings give the names of their keys, and whose components give their
            options; without it, such a key is `NAME`.

    Raises:
        InputError: a field has a type that no JSON schema describes.
    """
    paths: dict[str, ConfigPath] = {}
    for each in _model_paths(model, config, "", ()):
        paths.setdefault(each.path, each)  # alternatives of a union may have fields of the same name
    return list(paths.values())


def _model_paths(
    model: type[BaseModel], value: BaseModel | None, prefix: str, inside: tuple[str, ...]
) -> Iterator[ConfigPath]:
    whole = json_schema(model)
    definitions = whole.get("$defs", {})
    schema = _resolved(whole, definitions)
    for (key, node), (name, field) in zip(
        schema.get("properties", {}).items(), model.model_fields.items(), strict=False
    ):
        default = (
            _ABSENT
            if field.is_required()
            else field.get_default(call_default_factory=True, validated_data={})
        )
        inner = _ABSENT if value is None else getattr(value, name)
        yield from _paths(node, definitions, inner, f"{prefix}{key}", default, inside)


def _paths(
    node: _Schema, definitions: _Schema, value: Any, path: str, default: Any, inside: tuple[str, ...]
) -> Iterator[ConfigPath]:
    """Yield the paths at and below a node of a JSON schema; ``inside`` are the groups around it."""
    if isinstance(value, BaseModel):  # perhaps of a subclass with more fields
        yield from _model_paths(type(value), value, f"{path}.", inside)
        return
    is_leaf = True
    for alternative in node.get("anyOf") or node.get("oneOf") or [node]:
        group, name = _resolved(alternative, definitions), str(alternative.get("$ref", ""))
        if name and name in inside:  # a group within itself
            continue
        around = (*inside, name)
        if "properties" in group:
            is_leaf = False
            for key, inner in group["properties"].items():
                own = inner.get("default", _ABSENT if key in group.get("required", ()) else None)
                yield from _paths(inner, definitions, _ABSENT, f"{path}.{key}", own, around)
        elif isinstance(item := group.get("additionalProperties"), Mapping):
            is_leaf = False
            entries = value if isinstance(value, Mapping) and value else {NAME: _ABSENT}
            for key, inner in entries.items():
                yield from _paths(item, definitions, inner, f"{path}.{key}", _ABSENT, around)
    if is_leaf:
        yield ConfigPath(
            path,
            _type(node, definitions),
            default is _ABSENT,
            None if default is _ABSENT else _plain(default),
            value is not _ABSENT,
            None if value is _ABSENT else _plain(value),
            node.get("description", ""),
        )


def _plain(value: Any) -> Any:
    """Return a value as a plain JSON value."""
    return to_jsonable_python(value, fallback=str)


def _resolved(node: _Schema, definitions: _Schema) -> _Schema:
    reference = node.get("$ref", "")
    return definitions[reference.rpartition("/")[2]] if reference else node


def _type(node: _Schema, definitions: _Schema) -> str:
    """Return the type of a node in words: ``whole number, at least 1``."""
    node = _resolved(node, definitions)
    if alternatives := node.get("anyOf") or node.get("oneOf"):
        return ", or ".join(dict.fromkeys(_type(each, definitions) for each in alternatives))
    if values := node.get("enum") or ([node["const"]] if "const" in node else []):
        return " or ".join(map(value_text, values))
    if node.get("type") == "array":
        items = node.get("prefixItems") or [node.get("items", {})]
        return f"list ({'; '.join(_type(item, definitions) for item in items)})"
    name = _TYPES.get(node.get("type", ""), "any value")
    if "minimum" in node and "maximum" in node:
        return f"{name} from {node['minimum']} to {node['maximum']}"
    return ", ".join([name, *(f"{word} {node[key]}" for key, word in BOUNDS.items() if key in node)])
