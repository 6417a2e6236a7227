"""The search space: the searched paths of a trainable's config, with distributions and conditions."""

import contextlib
import copy
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from typing import Any, NamedTuple

import optuna
from pydantic import BaseModel, ValidationError

from orchestrator.config.parameter import Parameter, is_same, parse_number
from orchestrator.config.validation import WHOLE_NUMBER, faults, first_fault, item, members, options
from orchestrator.errors import Fault, FieldError, Path, dotted, nearest, quote


class Row(NamedTuple):
    """One searched path in the table of the plan."""

    path: str
    distribution: str
    range: str
    when: str


class Space:
    """The searched paths, ordered such that every ``when`` follows the paths that it depends on.

    ``config`` is what the searched values are added to: the fixed config of the sweep, with the first value
    of the searched fields that the config model requires and the sweep does not fix.
    """

    def __init__(
        self, parameters: Mapping[str, Parameter], fixed: Mapping[str, Any], config: dict[str, Any]
    ) -> None:
        """Hold a checked space; ``Space.build`` makes one."""
        self.parameters = parameters
        self.config = config
        self._fixed = fixed

    @classmethod
    def build(
        cls, parameters: Mapping[str, Parameter], model: type[BaseModel], config: Mapping[str, Any]
    ) -> "Space":
        """Check the searched paths and the fixed config against the trainable's config model.

        Every path must exist, every edge of every range must be valid in the config, and every condition
        must be possible.

        Raises:
            FieldError: the path at fault, with the nearest valid name.
        """
        ordered = _ordered(parameters)
        base = _base(ordered, model, config)
        valid = leaves(model, base)
        for path, parameter in ordered.items():
            if path not in valid:  # its condition may select the class that has the path
                beside = leaves(model, cls.overlay(base, _context(parameter, ordered)))
                if path not in beside:
                    raise FieldError(Fault(("search", path), _unknown(path, beside)))
        _refuse_nested(ordered)
        resolved = model.model_validate(base).model_dump(mode="json", by_alias=True)
        fixed = {}
        for path, parameter in ordered.items():
            for parent, values in parameter.when.items():
                _check_condition((path, parent), values, ordered, valid, model, base)
                if parent not in ordered:
                    fixed[parent] = _get(resolved, parent)
        space = cls(ordered, fixed, base)
        for path, parameter in ordered.items():
            space._check_edges(path, parameter, model)
        return space

    def corners(self) -> Iterator[dict[str, Any]]:
        """Yield the values to check before a sweep: first no value, then each edge with its parents."""
        yield {}
        for path, parameter in self.parameters.items():
            for value in parameter.edges:
                yield {**_context(parameter, self.parameters), path: value}

    def suggest(self, trial: optuna.Trial) -> dict[str, Any]:
        """Return a suggested value of each path whose condition holds, by path."""
        values: dict[str, Any] = {}
        for path, parameter in self.parameters.items():
            if self.is_active(parameter, values):
                values[path] = parameter.suggest(trial, path)
        return values

    def is_active(self, parameter: Parameter, values: Mapping[str, Any]) -> bool:
        """Return whether a path is searched beside the ``values`` of the paths before it."""
        return all(self._holds(parent, wanted, values) for parent, wanted in parameter.when.items())

    def check_point(self, point: Mapping[str, Any], model: type[BaseModel], *location: str) -> dict[str, Any]:
        """Return the values of some searched paths in the types in which they are suggested.

        Args:
            point: the values by path.
            model: the trainable's config model.
            location: keys that lead to the point in the file.

        Raises:
            FieldError: a path is not searched, or not beside the other values, or a value is not searched.
        """
        values: dict[str, Any] = {}
        for path, value in point.items():
            if path not in self.parameters:
                raise FieldError(Fault((*location, path), self._not_searched(path, model)))
            try:
                values[path] = _searched_value(self.parameters[path], value)
            except ValueError as error:
                raise FieldError(Fault((*location, path), str(error))) from error
        possible: dict[str, tuple[Any, ...]] = {path: (value,) for path, value in values.items()}
        for path in values:
            if reason := self._impossible(path, values, possible):
                raise FieldError(Fault((*location, path), reason))
        active = (path for path, parameter in self.parameters.items() if self.is_active(parameter, values))
        if all(path in values for path in active):  # else the suggested values may make these valid
            data = self.overlay(self.config, values)
            try:
                model.model_validate(data)
            except ValidationError as error:
                fault = first_fault(error, model, data)
                if dotted(fault.path) in values:
                    raise FieldError(Fault((*location, dotted(fault.path)), fault.reason)) from error
                raise FieldError(Fault(location, str(fault))) from error
        return values

    def _not_searched(self, path: str, model: type[BaseModel]) -> str:
        """Return why a value of a path that is not searched is refused."""
        inner = [searched for searched in self.parameters if searched.startswith(f"{path}.")]
        if inner:
            return f"is a group; give the searched values in it{nearest('', inner)}"
        if path in leaves(model, self.config):
            resolved = model.model_validate(self.config).model_dump(mode="json", by_alias=True)
            fixed = quote(_get(resolved, path))
            return f"is not searched but fixed at {fixed}; search it, or change it under config"
        return f"no such path is searched{nearest(path, self.parameters)}"

    def _impossible(
        self, path: str, values: Mapping[str, Any], possible: dict[str, tuple[Any, ...]]
    ) -> str | None:
        """Return why a path cannot be searched beside ``values``, or None where it can.

        ``possible`` holds the values that are still possible for each path; it is narrowed to those under
        which this path is searched.
        """
        for parent, wanted in self.parameters[path].when.items():
            only = f"is searched only when {parent} is {_either(wanted)}"
            if parent in self._fixed:
                if not self._holds(parent, wanted, {}):
                    return f"{only}; it is fixed at {quote(self._fixed[parent])}"
                continue
            remaining = possible.get(parent, wanted)
            possible[parent] = tuple(value for value in remaining if _is_among(value, wanted))
            if not possible[parent]:
                if parent in values:
                    return f"{only}; it is {quote(values[parent])} here"
                return f"{only}; the other values need another {parent}"
            if reason := self._impossible(parent, values, possible):
                return f"{only}, which {reason}"
        return None

    @staticmethod
    def overlay(base: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
        """Return a copy of ``base`` with each ``a.b.c: value`` in it, adding missing groups."""
        config = copy.deepcopy(dict(base))
        for path, value in values.items():
            *groups, last = path.split(".")
            here = config
            for group in groups:
                inner = here.get(group)
                if not isinstance(inner, dict):
                    inner = here[group] = {}
                here = inner
            here[last] = value
        return config

    def table(self) -> list[Row]:
        """Return one row per searched path, for the plan."""
        return [
            Row(path, *parameter.describe(), self._condition(parameter))
            for path, parameter in self.parameters.items()
        ]

    def _condition(self, parameter: Parameter) -> str:
        """Return a condition as text, with a remark where the fixed config makes it impossible."""
        parts = []
        for parent, wanted in parameter.when.items():
            text = f"{parent} is {_either(wanted)}"
            if parent in self._fixed and not self._holds(parent, wanted, {}):
                text += f" (never: it is fixed at {quote(self._fixed[parent])})"
            parts.append(text)
        return " and ".join(parts)

    def _holds(self, parent: str, wanted: tuple[Any, ...], values: Mapping[str, Any]) -> bool:
        """Return whether a parent has one of the wanted values; a parent that is not searched has none."""
        if parent in self._fixed:
            return _is_among(self._fixed[parent], wanted)
        return parent in values and _is_among(values[parent], wanted)

    def _check_edges(self, path: str, parameter: Parameter, model: type[BaseModel]) -> None:
        """Raise FieldError when the config refuses a value that may be suggested."""
        for value in parameter.edges:
            data = self.overlay(self.config, {**_context(parameter, self.parameters), path: value})
            try:
                model.model_validate(data)
            except ValidationError as error:
                fault = first_fault(error, model, data)
                reason = fault.reason if dotted(fault.path) == path else f"with {quote(value)}: {fault}"
                if isinstance(value, float) and fault.kind in WHOLE_NUMBER:
                    reason += "; use int"
                raise FieldError(Fault(("search", path), reason)) from error


def leaves(model: type[BaseModel], config: Mapping[str, Any]) -> list[str]:
    """Return the paths of a config that hold one value each.

    They are those of the config model, where the keys of mappings are those in ``config``, and those of the
    instances that the model makes of ``config``, which may be of subclasses with more fields.
    """
    paths = list(_leaves(model, config, (), ()))
    with contextlib.suppress(ValidationError):  # such as a missing field: only the paths of the model
        paths += _instance_leaves(model.model_validate(config), ())
    return list(dict.fromkeys(dotted(path) for path in paths))


def _leaves(option: Any, data: Any, path: Path, inside: tuple[Any, ...]) -> Iterator[Path]:
    """Yield the paths of one alternative of a type; ``inside`` are the models around it, to end recursion."""
    fields = members(option)
    if option in inside:
        return
    if fields is not None:
        entries = {name: field.annotation for name, field in fields.items()}
    elif isinstance(data, Mapping) and item(option) is not None:
        entries = {str(key): item(option) for key in data}
    else:
        yield path
        return
    for name, annotation in entries.items():
        inner = data.get(name) if isinstance(data, Mapping) else None
        around = (*inside, option) if fields is not None else inside
        for alternative in options(annotation):
            yield from _leaves(alternative, inner, (*path, name), around)


def _instance_leaves(value: Any, path: Path) -> Iterator[Path]:
    """Yield the paths below a value of a validated config."""
    if isinstance(value, BaseModel):
        for name, field in type(value).model_fields.items():
            inner, below = getattr(value, name), (*path, field.alias or name)
            if inner is None:
                for alternative in options(field.annotation):
                    yield from _leaves(alternative, None, below, ())
            else:
                yield from _instance_leaves(inner, below)
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _instance_leaves(inner, (*path, str(key)))
    else:
        yield path


def _context(parameter: Parameter, parameters: Mapping[str, Parameter]) -> dict[str, Any]:
    """Return values of the parents under which a conditional path is searched."""
    values: dict[str, Any] = {}
    for parent, wanted in parameter.when.items():
        if parent in parameters:
            values |= _context(parameters[parent], parameters)
        values[parent] = wanted[0]
    return values


def _is_among(value: Any, values: tuple[Any, ...]) -> bool:
    return any(is_same(value, other) for other in values)


def _either(values: tuple[Any, ...]) -> str:
    return " or ".join(value if isinstance(value, str) else quote(value) for value in values)


def _searched_value(parameter: Parameter, value: Any) -> Any:
    """Return a value in the type in which it is suggested; raises ValueError when it is not searched."""
    if isinstance(value, str) and parameter.choice is None:  # ``${ENV}`` gives text
        value = parse_number(value)
    if not parameter.contains(value):
        raise ValueError(_outside(parameter, value))
    return parameter.convert(value)


def _outside(parameter: Parameter, value: Any) -> str:
    """Return the line about a value that cannot be suggested."""
    hint = nearest(value, parameter.choice or (), listed=False)
    return f"{quote(value)} is not searched; expected {parameter.describe()[1]}{hint}"


def _get(data: Any, path: str) -> Any:
    for part in path.split("."):
        data = data.get(part) if isinstance(data, Mapping) else None
    return data


def _unknown(path: str, valid: list[str]) -> str:
    inner = [leaf for leaf in valid if leaf.startswith(f"{path}.")]
    if inner:
        return f"is a group; search the values in it{nearest('', inner)}"
    return f"the trainable's config has no such path{nearest(path, valid)}"


def _refuse_nested(parameters: Mapping[str, Parameter]) -> None:
    for path in parameters:
        for outer in parameters:
            if path.startswith(f"{outer}."):
                reason = f"lies inside {outer!r}, which is searched as well; keep one of them"
                raise FieldError(Fault(("search", path), reason))


def _ordered(parameters: Mapping[str, Parameter]) -> dict[str, Parameter]:
    """Put the paths that conditions depend on first."""
    graph = {
        path: [parent for parent in parameter.when if parent in parameters]
        for path, parameter in parameters.items()
    }
    try:
        return {path: parameters[path] for path in TopologicalSorter(graph).static_order()}
    except CycleError as error:
        cycle = list(reversed(error.args[1]))
        reason = f"the conditions form a cycle: {' needs '.join(cycle)}"
        raise FieldError(Fault(("search", cycle[0], "when"), reason)) from error


def _base(
    ordered: Mapping[str, Parameter], model: type[BaseModel], config: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the fixed config with a value of each required field that every trial searches."""
    base = dict(config)
    try:
        model.model_validate(base)
    except ValidationError as error:
        absent = {dotted(fault.path) for fault in faults(error, model, base) if fault.kind == "missing"}
        searched = {
            path: parameter.edges[0]
            for path, parameter in ordered.items()
            if not parameter.when and any(f"{path}.".startswith(f"{field}.") for field in absent)
        }
        base = Space.overlay(base, searched)
    try:
        model.model_validate(base)
    except ValidationError as error:
        raise FieldError(first_fault(error, model, base, "config")) from error
    return base


def _check_condition(
    names: tuple[str, str],
    values: tuple[Any, ...],
    parameters: Mapping[str, Parameter],
    valid: list[str],
    model: type[BaseModel],
    base: Mapping[str, Any],
) -> None:
    """Raise FieldError for a condition on an unknown path, or on a value that the path cannot have."""
    path, parent = names
    location: Path = ("search", path, "when", parent)
    if parent not in parameters and parent not in valid:
        raise FieldError(Fault(location, _unknown(parent, valid)))
    for value in values:
        if parent in parameters:
            if not parameters[parent].contains(value):
                raise FieldError(Fault(location, _outside(parameters[parent], value)))
            continue
        data = Space.overlay(base, {parent: value})
        try:
            model.model_validate(data)
        except ValidationError as error:
            reasons = [fault.reason for fault in faults(error, model, data) if dotted(fault.path) == parent]
            if reasons:
                raise FieldError(Fault(location, reasons[0])) from error
