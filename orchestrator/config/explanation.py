"""What each path of a trainable's config means: its type, its range, its default and its description."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from pydantic import BaseModel

from orchestrator.config.job import value_text

_TYPES = {
    "integer": "whole number",
    "number": "number",
    "string": "text",
    "boolean": "true or false",
    "null": "null",
    "object": "mapping",
}

_BOUNDS = {
    "minimum": "at least",
    "exclusiveMinimum": "above",
    "maximum": "at most",
    "exclusiveMaximum": "below",
}

REQUIRED = "required"
"""The default of a path that has none."""

NAME = "NAME"
"""Stands for the keys of a mapping that the user names."""

_Schema = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class ConfigPath:
    """One path of a config that holds one value."""

    path: str
    type: str
    """The type and its range, in words."""
    default: str
    """The default as JSON, or `REQUIRED`."""
    value: str | None
    """The value in a config as JSON; None without a config."""
    description: str

    def as_json(self) -> dict[str, Any]:
        """Return the path as plain JSON values."""
        return asdict(self)


def config_paths(model: type[BaseModel], config: BaseModel | None = None) -> list[ConfigPath]:
    """Return the paths of a config model in the order of its fields.

    Args:
        model: the model.
        config: a config, whose mappings give the names of their keys, and whose components give their
            options; without it, such a key is `NAME`.
    """
    return list(_model_paths(model, config, ""))


def _model_paths(model: type[BaseModel], value: BaseModel | None, prefix: str) -> Iterator[ConfigPath]:
    schema = model.model_json_schema()
    fields = {field.alias or name: name for name, field in model.model_fields.items()}
    for name, node in schema.get("properties", {}).items():
        inner = None if value is None else getattr(value, fields[name])
        default = value_text(node["default"]) if "default" in node else None
        if default is None and name in schema.get("required", ()):
            default = REQUIRED
        yield from _paths(node, schema.get("$defs", {}), inner, f"{prefix}{name}", default or "", value)


def _paths(
    node: _Schema, definitions: _Schema, value: Any, path: str, default: str, owner: BaseModel | None
) -> Iterator[ConfigPath]:
    """Yield the paths at and below a node of a JSON schema; ``owner`` is the config that has the value."""
    if isinstance(value, BaseModel):  # perhaps of a subclass with more fields
        yield from _model_paths(type(value), value, f"{path}.")
        return
    alternatives = [_resolved(each, definitions) for each in node.get("anyOf", [node])]
    groups = [each for each in alternatives if "properties" in each]
    for group in groups:
        required = group.get("required", ())
        for name, inner in group["properties"].items():
            own = value_text(inner["default"]) if "default" in inner else REQUIRED * (name in required)
            yield from _paths(inner, definitions, None, f"{path}.{name}", own, owner)
    mappings = [each for each in alternatives if isinstance(each.get("additionalProperties"), Mapping)]
    for mapping in mappings:
        entries = value if isinstance(value, Mapping) and value else {NAME: None}
        for key, inner in entries.items():
            yield from _paths(
                mapping["additionalProperties"], definitions, inner, f"{path}.{key}", REQUIRED, owner
            )
    if not groups and not mappings:
        shown = None if owner is None else value_text(_json(value))
        yield ConfigPath(path, _type(node, definitions), default, shown, node.get("description", ""))


def _json(value: Any) -> Any:
    """Return a value of a config as a plain one."""
    if isinstance(value, tuple | list | set | frozenset):
        return [_json(each) for each in value]
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


def _resolved(node: _Schema, definitions: _Schema) -> _Schema:
    reference = node.get("$ref") or next(
        (each["$ref"] for each in node.get("allOf", ()) if "$ref" in each), ""
    )
    return definitions[reference.rpartition("/")[2]] if reference else node


def _type(node: _Schema, definitions: _Schema) -> str:
    """Return the type of a node in words: ``whole number, at least 1``."""
    node = _resolved(node, definitions)
    if "anyOf" in node:
        return ", or ".join(dict.fromkeys(_type(each, definitions) for each in node["anyOf"]))
    if values := node.get("enum") or ([node["const"]] if "const" in node else []):
        return " or ".join(map(value_text, values))
    if node.get("type") == "array":
        items: _Schema = node.get("items") or next(iter(node.get("prefixItems", ())), {})
        return f"list of {_type(items, definitions)}" if items else "list"
    name = _TYPES.get(node.get("type", ""), "any value")
    if "minimum" in node and "maximum" in node:
        return f"{name} from {node['minimum']} to {node['maximum']}"
    return ", ".join([name, *(f"{word} {node[key]}" for key, word in _BOUNDS.items() if key in node)])
