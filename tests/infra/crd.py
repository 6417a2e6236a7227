"""The steps of an API server before it stores a custom resource.

It prunes nulls, sets defaults, refuses unknown fields (as ``kubectl apply`` requests), validates against the
schema, and evaluates the CEL rules of ``x-kubernetes-validations``. See
https://kubernetes.io/docs/tasks/extend-kubernetes/custom-resources/custom-resource-definitions/.
"""

import copy
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import yaml

Schema = dict[str, Any]

_KEEPS_UNKNOWN = "x-kubernetes-preserve-unknown-fields"
_INTEGERS = jsonschema.FormatChecker(formats=())
_INTEGERS.checks("int32")(lambda value: not isinstance(value, int) or -(2**31) <= value < 2**31)


class CustomResource:
    """One version of one kind, from the file of a CustomResourceDefinition."""

    def __init__(self, file: Path, version: str = "v1") -> None:
        definition = _load(file)
        self.kind: str = definition["spec"]["names"]["kind"]
        (found,) = (each for each in definition["spec"]["versions"] if each["name"] == version)
        self.api_version = f"{definition['spec']['group']}/{version}"
        self._schema: Schema = found["schema"]["openAPIV3Schema"]
        self._validator = jsonschema.Draft4Validator(_as_json_schema(self._schema), format_checker=_INTEGERS)

    def admit(self, manifest: dict[str, Any]) -> dict[str, Any]:
        """Return the object as it is stored.

        Raises:
            ValueError: the API server refuses the object; its text is the reason.
        """
        stored = {key: value for key, value in copy.deepcopy(manifest).items() if key != "metadata"}
        _prune_nulls_and_default(stored, self._schema)
        faults = [f"unknown field {path}" for path in _unknown(stored, self._schema, "")]
        faults += [f"duplicate in {path}" for path in _duplicates(stored, self._schema, "")]
        faults += [f"{fault.json_path}: {fault.message}" for fault in self._validator.iter_errors(stored)]
        if not faults:  # CEL rules assume correct types
            faults = list(_broken_rules(stored, self._schema, ""))
        if faults:
            raise ValueError("; ".join(faults))
        return {**stored, "metadata": manifest["metadata"]}


@cache
def _load(file: Path) -> dict[str, Any]:
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    return yaml.load(file.read_text(), loader)


def _as_json_schema(schema: Schema) -> Schema:
    """Return the structural schema as JSON Schema draft 4, of which OpenAPI 3.0 is a dialect."""
    result: Schema = {}
    for key, value in schema.items():
        if key in ("properties", "patternProperties"):
            result[key] = {name: _as_json_schema(part) for name, part in value.items()}
        elif key in ("items", "additionalProperties", "not") and isinstance(value, dict):
            result[key] = _as_json_schema(value)
        elif key in ("allOf", "anyOf", "oneOf"):
            result[key] = [_as_json_schema(part) for part in value]
        elif key not in ("description", "default"):
            result[key] = value
    if schema.get("x-kubernetes-int-or-string"):
        result["type"] = ["integer", "string"]
    if schema.get("nullable"):
        result["type"] = [result["type"], "null"]
    return result


def _children(value: Any, schema: Schema) -> Iterator[tuple[str, Any, Schema]]:
    """Yield the fields or items of a value that the schema describes, each with its part of the schema."""
    if isinstance(value, dict):
        described, rest = schema.get("properties", {}), schema.get("additionalProperties")
        for key, child in value.items():
            if key in described:
                yield f".{key}", child, described[key]
            elif isinstance(rest, dict):
                yield f"[{key}]", child, rest
    elif isinstance(value, list) and "items" in schema:
        for index, child in enumerate(value):
            yield f"[{index}]", child, schema["items"]


def _prune_nulls_and_default(value: Any, schema: Schema) -> None:
    if isinstance(value, dict):
        for key, part in schema.get("properties", {}).items():
            if key in value and value[key] is None and not part.get("nullable"):
                del value[key]
            if key not in value and "default" in part:
                value[key] = copy.deepcopy(part["default"])
    for _, child, part in _children(value, schema):
        _prune_nulls_and_default(child, part)


def _unknown(value: Any, schema: Schema, path: str) -> Iterator[str]:
    if schema.get(_KEEPS_UNKNOWN):
        return
    if isinstance(value, dict) and not isinstance(schema.get("additionalProperties"), dict):
        described = schema.get("properties", {})
        top = ("apiVersion", "kind", "metadata") if not path else ()
        yield from (f"{path}.{key}" for key in value if key not in described and key not in top)
    for step, child, part in _children(value, schema):
        yield from _unknown(child, part, path + step)


def _duplicates(value: Any, schema: Schema, path: str) -> Iterator[str]:
    kind, keys = schema.get("x-kubernetes-list-type"), schema.get("x-kubernetes-list-map-keys", [])
    if kind in ("map", "set") and isinstance(value, list):
        seen = [[item.get(key) for key in keys] if kind == "map" else item for item in value]
        if any(item in seen[:index] for index, item in enumerate(seen)):
            yield path
    for step, child, part in _children(value, schema):
        yield from _duplicates(child, part, path + step)


def _broken_rules(value: Any, schema: Schema, path: str) -> Iterator[str]:
    import cel  # only where CRDs are validated

    for each in schema.get("x-kubernetes-validations", []):
        # Rules about the old object apply to updates only.
        if "oldSelf" not in each["rule"] and cel.evaluate(each["rule"], {"self": value}) is not True:
            yield f"{path}: {each.get('message', each['rule'])}"
    for step, child, part in _children(value, schema):
        yield from _broken_rules(child, part, path + step)
