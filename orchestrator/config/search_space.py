"""The search space: which paths of a trainable's config are searched, over what, and when."""

import copy
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from typing import Any, NamedTuple

import optuna
from pydantic import BaseModel, ValidationError

from orchestrator.config.parameter import Parameter, number, same
from orchestrator.errors import (
    Fault,
    FieldError,
    Path,
    dotted,
    faults,
    first_fault,
    item,
    members,
    nearest,
    options,
    show,
)


class Row(NamedTuple):
    """One searched path as the plan shows it."""

    path: str
    distribution: str
    range: str
    when: str


class Space:
    """The searched paths, in an order in which every ``when`` follows the paths that it depends on.

    ``config`` is what the searched values are laid over: the sweep's fixed config, with the first value of
    those searched fields that the config model requires and the sweep does not fix.
    """

    def __init__(
        self, parameters: Mapping[str, Parameter], fixed: Mapping[str, Any], config: dict[str, Any]
    ) -> None:
        """Hold a space that was checked; ``Space.build`` is the way to one."""
        self.parameters = parameters
        self.config = config
        self._fixed = fixed

    @classmethod
    def build(
        cls, parameters: Mapping[str, Parameter], model: type[BaseModel], config: Mapping[str, Any]
    ) -> "Space":
        """Check the searched paths and the fixed config against the trainable's config model.

        Every path must exist, every edge of every range must be valid in the config, and conditions must be
        able to hold. Raises FieldError naming the field, with the nearest valid name.
        """
        ordered = _ordered(parameters)
        base = _base(ordered, model, config)
        valid = leaves(model, base)
        for path in ordered:
            if path not in valid:
                raise FieldError(Fault(("search", path), _unknown(path, valid)))
        _refuse_nested(ordered)
        resolved = model.model_validate(base).model_dump(mode="json", by_alias=True)
        fixed = {}
        for path, parameter in ordered.items():
            for parent, wanted in parameter.when.items():
                _check_condition((path, parent), wanted, ordered, valid, model, base)
                if parent not in ordered:
                    fixed[parent] = _get(resolved, parent)
        space = cls(ordered, fixed, base)
        for path, parameter in ordered.items():
            space._check_edges(path, parameter, model)
        return space

    def corners(self) -> Iterator[dict[str, Any]]:
        """Yield no value at all, then every edge of every parameter alone: what to check beforehand."""
        yield {}
        for path, parameter in self.parameters.items():
            for value in parameter.edges:
                yield {path: value}

    def suggest(self, trial: optuna.Trial) -> dict[str, Any]:
        """Ask for a value of each path whose condition holds, and give them by path."""
        values: dict[str, Any] = {}
        for path, parameter in self.parameters.items():
            if self.active(parameter, values):
                values[path] = parameter.suggest(trial, path)
        return values

    def active(self, parameter: Parameter, values: Mapping[str, Any]) -> bool:
        """Whether a path is searched beside the ``values`` of the paths before it."""
        return all(self._holds(parent, wanted, values) for parent, wanted in parameter.when.items())

    def point(self, given: Mapping[str, Any], model: type[BaseModel], *place: str) -> dict[str, Any]:
        """Check the values of some searched paths, which stand at ``place``, and give them as suggested.

        Raises FieldError for a path that is not searched, or cannot be beside the other values, and for a
        value that cannot be suggested.
        """
        values: dict[str, Any] = {}
        for path, value in given.items():
            where = (*place, path)
            if path not in self.parameters:
                raise FieldError(Fault(where, self._not_searched(path, model)))
            parameter = self.parameters[path]
            if isinstance(value, str) and parameter.choice is None:  # ``${ENV}`` gives text
                try:
                    value = number(value)
                except ValueError as error:
                    raise FieldError(Fault(where, str(error))) from error
            if not parameter.takes(value):
                raise FieldError(Fault(where, _not_taken(parameter, value)))
            values[path] = parameter.convert(value)
        left: dict[str, tuple[Any, ...]] = {path: (value,) for path, value in values.items()}
        for path in values:
            if reason := self._impossible(path, values, left):
                raise FieldError(Fault((*place, path), reason))
        complete = all(path in values for path, each in self.parameters.items() if self.active(each, values))
        if complete:  # what else is suggested may make the others valid
            data = self.overlay(self.config, values)
            try:
                model.model_validate(data)
            except ValidationError as error:
                fault = first_fault(error, model, data)
                if dotted(fault.path) in values:
                    raise FieldError(Fault((*place, dotted(fault.path)), fault.reason)) from error
                raise FieldError(Fault(place, str(fault))) from error
        return values

    def _not_searched(self, path: str, model: type[BaseModel]) -> str:
        """Say what a path is that is not searched."""
        inner = [each for each in self.parameters if each.startswith(f"{path}.")]
        if inner:
            return f"is a group; give the searched values in it{nearest('', inner)}"
        if path in leaves(model, self.config):
            resolved = model.model_validate(self.config).model_dump(mode="json", by_alias=True)
            fixed = show(_get(resolved, path))
            return f"is not searched but fixed at {fixed}; search it, or change it under config"
        return f"no such path is searched{nearest(path, self.parameters)}"

    def _impossible(
        self, path: str, values: Mapping[str, Any], left: dict[str, tuple[Any, ...]]
    ) -> str | None:
        """Say why a path cannot be searched beside ``values``.

        ``left`` are the values that the paths before it leave possible; it is narrowed to those under which
        this one is searched.
        """
        for parent, wanted in self.parameters[path].when.items():
            only = f"is searched only when {parent} is {_either(wanted)}"
            if parent in self._fixed:
                if not self._holds(parent, wanted, {}):
                    return f"{only}; it is fixed at {show(self._fixed[parent])}"
                continue
            possible = left.get(parent, wanted)
            left[parent] = tuple(each for each in possible if any(same(each, other) for other in wanted))
            if not left[parent]:
                here = f"it is {show(values[parent])} here" if parent in values else "the others need another"
                return f"{only}; {here}"
            if reason := self._impossible(parent, values, left):
                return f"{only}, which {reason}"
        return None

    @staticmethod
    def overlay(base: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
        """Copy ``base`` and lay each ``a.b.c: value`` over it, making the groups that are not there."""
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
        """Give one row per searched path, for the plan."""
        return [Row(path, *each.describe(), self._condition(each)) for path, each in self.parameters.items()]

    def _condition(self, parameter: Parameter) -> str:
        """Write a condition as text, and say so when the fixed config already decides that it never holds."""
        parts = []
        for parent, wanted in parameter.when.items():
            text = f"{parent} is {_either(wanted)}"
            if parent in self._fixed and not self._holds(parent, wanted, {}):
                text += f" (never: it is fixed at {show(self._fixed[parent])})"
            parts.append(text)
        return " and ".join(parts)

    def _holds(self, parent: str, wanted: tuple[Any, ...], values: Mapping[str, Any]) -> bool:
        """Whether a parent has one of the wanted values; one that is not searched this time has none."""
        if parent in self._fixed:
            return any(same(self._fixed[parent], each) for each in wanted)
        return parent in values and any(same(values[parent], each) for each in wanted)

    def _context(self, parameter: Parameter) -> dict[str, Any]:
        """Values of the parents under which a conditional path is searched."""
        values: dict[str, Any] = {}
        for parent, wanted in parameter.when.items():
            if parent in self.parameters:
                values |= self._context(self.parameters[parent])
            values[parent] = wanted[0]
        return values

    def _check_edges(self, path: str, parameter: Parameter, model: type[BaseModel]) -> None:
        """Raise FieldError when the config does not take a value that may be suggested."""
        for value in parameter.edges:
            data = self.overlay(self.config, {**self._context(parameter), path: value})
            try:
                model.model_validate(data)
            except ValidationError as error:
                fault = first_fault(error, model, data)
                reason = fault.reason if dotted(fault.path) == path else f"with {show(value)}: {fault}"
                if isinstance(value, float) and "whole number" in reason:
                    reason += "; write int"
                raise FieldError(Fault(("search", path), reason)) from error


def leaves(model: type[BaseModel], config: Mapping[str, Any]) -> list[str]:
    """List the paths of a config model that hold one value each; keys of mappings are those in ``config``."""
    return list(dict.fromkeys(dotted(path) for path in _leaves(model, config, (), ())))


def _leaves(option: Any, data: Any, path: Path, inside: tuple[Any, ...]) -> Iterator[Path]:
    """Walk one alternative of a type; ``inside`` holds the models around it, so that recursive ones end."""
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
        for each in options(annotation):
            yield from _leaves(each, inner, (*path, name), around)


def _either(values: tuple[Any, ...]) -> str:
    return " or ".join(each if isinstance(each, str) else show(each) for each in values)


def _not_taken(parameter: Parameter, value: Any) -> str:
    """Say what is searched instead of a value."""
    hint = nearest(value, parameter.choice or (), listed=False)
    return f"{show(value)} is not among what is searched: {parameter.describe()[1]}{hint}"


def _get(data: Any, path: str) -> Any:
    for part in path.split("."):
        data = data.get(part) if isinstance(data, Mapping) else None
    return data


def _unknown(path: str, valid: list[str]) -> str:
    inner = [each for each in valid if each.startswith(f"{path}.")]
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
        path: [each for each in parameter.when if each in parameters]
        for path, parameter in parameters.items()
    }
    try:
        return {path: parameters[path] for path in TopologicalSorter(graph).static_order()}
    except CycleError as error:
        circle = list(reversed(error.args[1]))
        reason = f"the conditions go round in a circle: {' needs '.join(circle)}"
        raise FieldError(Fault(("search", circle[0], "when"), reason)) from error


def _base(
    ordered: Mapping[str, Parameter], model: type[BaseModel], config: Mapping[str, Any]
) -> dict[str, Any]:
    """Check the fixed config; a required field may be missing when it is searched in every trial."""
    base = dict(config)
    try:
        model.model_validate(base)
    except ValidationError as error:
        absent = {dotted(each.path) for each in faults(error, model, base) if each.reason == "missing"}
        searched = {
            path: each.edges[0]
            for path, each in ordered.items()
            if not each.when and any(path == field or path.startswith(f"{field}.") for field in absent)
        }
        base = Space.overlay(base, searched)
    try:
        model.model_validate(base)
    except ValidationError as error:
        raise FieldError(first_fault(error, model, base, "config")) from error
    return base


def _check_condition(
    names: tuple[str, str],
    wanted: tuple[Any, ...],
    parameters: Mapping[str, Parameter],
    valid: list[str],
    model: type[BaseModel],
    base: Mapping[str, Any],
) -> None:
    """Raise FieldError for a condition on a path that does not exist or on a value that it cannot have."""
    path, parent = names
    place: Path = ("search", path, "when", parent)
    if parent not in parameters and parent not in valid:
        raise FieldError(Fault(place, _unknown(parent, valid)))
    for value in wanted:
        if parent in parameters:
            if not parameters[parent].takes(value):
                raise FieldError(Fault(place, _not_taken(parameters[parent], value)))
            continue
        data = Space.overlay(base, {parent: value})
        try:
            model.model_validate(data)
        except ValidationError as error:
            own = [fault for fault in faults(error, model, data) if dotted(fault.path) == parent]
            if own:
                raise FieldError(Fault(place, own[0].reason)) from error
