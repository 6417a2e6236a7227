"""JSON schemas of the files of sweeps and comparisons, by which editors complete and check them."""

from typing import Any

from orchestrator.config.comparison import Comparison
from orchestrator.config.explanation import json_schema
from orchestrator.config.job import Job
from orchestrator.config.search_space import leaves
from orchestrator.config.sweep import Sweep
from orchestrator.trainable import Trainable

KINDS: dict[str, type[Job]] = {"sweep": Sweep, "comparison": Comparison}

_ONE_OR_MORE = ("objective", "constraints", "warm_start", "metrics")
"""Keys that take a list, or one item of it."""

_NULLABLE = ("study", "finals", "registry")
"""Keys that may be null."""

_BY_PATH = ("search", "splits")
"""Keys that hold a mapping from paths of the config."""

_CONFIG = "config."
"""Start of the names of the definitions that belong to the trainable's config."""


_BOUNDS = {"ge": "minimum", "gt": "exclusiveMinimum", "le": "maximum", "lt": "exclusiveMaximum"}


def file_schema(kind: str, trainable: Trainable) -> dict[str, Any]:
    """Return the JSON schema (draft 2020-12) of a file.

    It knows the keys of the file, the paths of the trainable's config, and their descriptions and ranges. It
    helps with writing; the command checks more.

    Args:
        kind: a key of `KINDS`.
        trainable: the trainable that files name.

    Raises:
        InputError: a field of the config has a type that no JSON schema describes.
    """
    schema = _as_written(KINDS[kind].model_json_schema())
    config = _as_written(_partial(json_schema(trainable.Config)))
    definitions = schema.setdefault("$defs", {})
    definitions |= {f"{_CONFIG}{name}": each for name, each in config.pop("$defs", {}).items()}
    properties = schema["properties"]
    properties["config"] = {**config, "description": properties["config"]["description"]}
    paths = leaves(trainable.Config, {})
    for key in _BY_PATH:
        if key in properties:
            item = properties[key]["additionalProperties"]
            properties[key]["properties"] = dict.fromkeys(paths, item)
    for key in _ONE_OR_MORE:
        if key in properties:
            several = properties[key]
            described = {name: several.pop(name) for name in ("description", "default") if name in several}
            properties[key] = {"anyOf": [several["items"], several], **described}
    for key in _NULLABLE:
        if key in properties:
            properties[key] = {"anyOf": [properties[key], {"type": "null"}]}
    if "variants" in properties:
        item = properties["variants"]["additionalProperties"]
        properties["variants"]["additionalProperties"] = {"anyOf": [item, {"type": "null"}]}
    schema["required"] = [name for name in schema["required"] if name != "scheduler"]  # it has a default
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **schema,
        "title": f"{kind} file",
        "description": f"A {kind} of {type(trainable).__module__}:{type(trainable).__name__}.",
    }


def _partial(node: Any) -> Any:
    """Return the schema of a config of which a file may give any part."""
    if isinstance(node, list):
        return list(map(_partial, node))
    if not isinstance(node, dict):
        return node
    copied = {key: _partial(value) for key, value in node.items() if key not in ("required", "title")}
    if isinstance(properties := node.get("properties"), dict):  # whose keys are names of fields
        copied["properties"] = {name: _partial(each) for name, each in properties.items()}
        if not properties:  # options, whose fields depend on the component that is named
            copied.pop("additionalProperties", None)
    if isinstance(reference := node.get("$ref"), str):
        copied["$ref"] = reference.replace("#/$defs/", f"#/$defs/{_CONFIG}")
    return copied


def _as_written(node: Any) -> Any:
    """Return a schema for what a file may hold.

    Pydantic writes bounds under names of its own for types with a validator before them. A file may have
    ``${NAME}`` in the place of a number.
    """
    if isinstance(node, list):
        return list(map(_as_written, node))
    if not isinstance(node, dict):
        return node
    written = {
        _BOUNDS.get(key, key): _as_written(each) for key, each in node.items() if key != "allow_inf_nan"
    }
    if written.get("type") not in ("integer", "number"):
        return written
    outer = {key: written.pop(key) for key in ("description", "title", "default") if key in written}
    return {"anyOf": [written, {"type": "string", "pattern": r"\$\{"}], **outer}
