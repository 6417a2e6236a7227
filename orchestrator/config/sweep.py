"""The sweep file: its keys, its defaults, and the checks against the trainable."""

import contextlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, Field, PrivateAttr, ValidationError, field_validator, model_validator

from orchestrator.components import describe_raised
from orchestrator.config.comparison import Cell
from orchestrator.config.document import Override
from orchestrator.config.finals import (
    CROSSED,
    FINALS,
    CrossedRuns,
    FinalRuns,
    check_crossed,
    check_finals,
    follow_up,
)
from orchestrator.config.job import (
    Job,
    changes,
    flat_texts,
    load_job,
    read_job,
    refuse_ineffective,
    value_at,
    value_text,
)
from orchestrator.config.parameter import Parameter
from orchestrator.config.renames import with_new_names
from orchestrator.config.samplers import Sampler
from orchestrator.config.schedulers import Scheduler
from orchestrator.config.search_space import Space
from orchestrator.config.sections import (
    Budget,
    Constraint,
    Finals,
    Objective,
    Point,
    PointName,
    Registry,
    Source,
)
from orchestrator.config.validation import first_fault
from orchestrator.errors import Fault, FieldError, nearest, quote
from orchestrator.trainable import SearchChecking

_MAY_CHANGE = ("budget", "checkpoints", "finals", "registry", "resources", "storage", "tracking")
"""Sections that may change between two runs of a sweep."""


class Sweep(Job):
    """A checked sweep file, with the trainable that it names."""

    kind: ClassVar[str] = "sweep"
    path_sections: ClassVar[Mapping[str, int]] = {"search": 1, "enqueue": 2, "finals": 2}

    search: dict[str, Parameter] = Field(description="searched paths: {PATH: {uniform: [0, 1]}}")
    objective: tuple[Objective, ...] = Field(description="what to optimize: {metric: NAME, mode: max}")
    constraints: tuple[Constraint, ...] = Field(
        (), description="bounds that the best trial satisfies: {metric: NAME, at_most: 5}"
    )
    sampler: Sampler = Sampler.model_validate("tpe")
    scheduler: Scheduler
    budget: Budget = Field(description="when to end: {trials: 24}")
    enqueue: dict[PointName, Point] = Field(
        default={}, description="points to try first: {NAME: {searched path: value}}"
    )
    warm_start: tuple[Source, ...] = Field(
        (), description="earlier sweeps to learn from: names in the same storage, or mlflow:EXPERIMENT"
    )
    finals: Finals | None = Field(
        None, description="train the best trials again over seeds and splits: {top: 3, seeds: [0, 1]}"
    )
    registry: Registry | None = None
    checkpoints: Literal["best", "all"] = Field(
        "best", description="which to keep of a finished sweep: those of the best trials, or all"
    )
    _space: Space = PrivateAttr()

    @field_validator("search")
    @classmethod
    def _at_least_one(cls, value: dict[str, Parameter]) -> dict[str, Parameter]:
        if not value:
            raise ValueError("no path is searched; expected for example {rate: {uniform: [0, 1]}}")
        return value

    @field_validator("warm_start", mode="before")
    @classmethod
    def _one_or_several(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

    @field_validator("warm_start")
    @classmethod
    def _distinct(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for index, source in enumerate(value):
            if source in value[:index]:
                raise ValueError(f"{quote(source)} is given twice; keep one of them")
        return value

    @field_validator("constraints", mode="before")
    @classmethod
    def _one_constraint_or_more(cls, value: Any) -> Any:
        return [value] if isinstance(value, Mapping) else value

    @field_validator("objective", mode="before")
    @classmethod
    def _one_or_more(cls, value: Any) -> Any:
        if isinstance(value, list) and not value:
            raise ValueError("expected at least one metric of the trainable: {metric: NAME}")
        return [value] if isinstance(value, Mapping) else value

    @model_validator(mode="before")
    @classmethod
    def _default_scheduler(cls, data: Any) -> Any:
        """Use ASHA, or ``none`` with several objectives, for which Optuna keeps no intermediate values."""
        if isinstance(data, Mapping) and "scheduler" not in data:
            several = isinstance(data.get("objective"), list) and len(data["objective"]) > 1
            return {**data, "scheduler": "none" if several else "asha"}
        return data

    @property
    def space(self) -> Space:
        """The searched paths, checked against the trainable's config."""
        return self._space

    @property
    def epochs(self) -> int:
        """The highest number of epochs that a trial can report."""
        searched = self.search.get("epochs")
        fixed = int(getattr(self.trial_config({}), "epochs"))  # noqa: B009 - checked when the trainable was loaded
        return max(int(edge) for edge in searched.edges) if searched else fixed

    def trial_config(self, values: Mapping[str, Any]) -> BaseModel:
        """Return the config of a trial: the fixed values, with ``values`` by path; raises InputError."""
        model = self._implementation.Config
        data = Space.overlay(self._space.config, values)
        try:
            return model.model_validate(data)
        except ValidationError as error:
            raise FieldError(first_fault(error, model, data, "config")) from error

    def final_runs(self, trials: Mapping[str, Mapping[str, Any]], sweep_id: str = "") -> FinalRuns:
        """Return the job of the finals.

        Args:
            trials: the parameters of each finalist by its name, the best one first.
            sweep_id: id of this sweep.
        """
        assert self.finals is not None
        objective = self.objective[0].metric
        return follow_up(
            FinalRuns,
            FINALS,
            self,
            self.finals,
            self.space.config,
            trials,
            metrics=(objective,),
            objective=objective,
            sweep_id=sweep_id,
        )

    def crossed_runs(
        self, parameters: Mapping[str, Any], left_out: Collection[Cell] = (), sweep_id: str = ""
    ) -> CrossedRuns | None:
        """Return the job that trains the winner of the finals on other sets; None if there are none.

        Args:
            parameters: the parameters of the winner.
            left_out: splits that a training set does not have.
            sweep_id: id of this sweep.
        """
        if self.finals is None or not self.finals.train:
            return None
        ((path, values),) = self.finals.train.items()
        own = value_at(self.trial_config({}), path)
        others = {str(value): {**parameters, path: value} for value in values if value != own}
        if not others:
            return None
        return follow_up(
            CrossedRuns,
            CROSSED,
            self,
            self.finals,
            self.space.config,
            others,
            metrics=(),
            left_out=tuple(left_out),
            sweep_id=sweep_id,
        )

    def configs_to_check(self) -> Iterator[BaseModel]:
        """Yield the fixed config, that with each edge of each searched path, and those of the finals."""
        yield from map(self.trial_config, self.space.corners())
        if self.finals is not None:
            yield from self.final_runs({"finals": {}}).configs_to_check()

    def place_of(self, path: str, config: BaseModel | None) -> str:
        """Return where the file sets a path: in search, in config, or in the splits of the finals."""
        if path in self.search:
            return f"search.{path}"
        splits = self.finals.splits.get(path, ()) if self.finals is not None else ()
        value = None if config is None else value_at(config, path)
        if value in splits and value != value_at(self.trial_config({}), path):
            return f"finals.splits.{path}"
        return super().place_of(path, config)

    def required_metrics(self) -> list[str]:
        """Return the metrics of the objectives and of the constraints."""
        objectives = [objective.metric for objective in self.objective]
        return list(dict.fromkeys([*objectives, *(constraint.metric for constraint in self.constraints)]))

    def configs_to_prepare(self) -> Iterator[BaseModel]:
        """Yield the fixed config, then the fixed config with each choice, which may be of data."""
        configs = [self.trial_config({})]
        for values in self.space.corners():
            if any(self.search[path].choice for path in values.keys() & self.search.keys()):
                configs.append(self.trial_config(values))
        yield from (config for index, config in enumerate(configs) if config not in configs[:index])

    def resolved(self) -> dict[str, Any]:
        """Return all settings, defaults included, as plain JSON values."""
        return {
            **self._written(),
            "config": self.trial_config({}).model_dump(mode="json", by_alias=True),
        }

    def _written(self) -> dict[str, Any]:
        """Return all settings, with the config as the file has it, as plain JSON values."""
        return {
            **self.model_dump(mode="json", exclude={"config", "search"}),
            "config": self.config,
            "search": {
                path: parameter.model_dump(mode="json", by_alias=True, exclude_defaults=True)
                for path, parameter in self.search.items()
            },
        }

    def record(self, before: Mapping[str, Any] | None) -> dict[str, Any]:
        """Return all settings."""
        return self.resolved()

    def differences(self, before: Mapping[str, Any]) -> list[str]:
        """Return one line for each setting that differs from a ``record`` and must not.

        For example ``search.rnn.hidden_size: int [32, 256] → int [32, 128]``. Budget, resources, storage and
        tracking may change between two runs of a sweep, and names that the user gave to data sets. A key that
        the record lacks has its present default.
        """
        old, new = map(self._with_defaults, (before, self.resolved()))
        old["config"] = with_new_names(old.get("config"), new["config"], self._implementation.Config)
        return changes(_comparable(old), _comparable(new))

    def _with_defaults(self, before: Mapping[str, Any]) -> dict[str, Any]:
        """Return a record with the present default of each key that it lacks, as far as it is valid."""
        completed = dict(before)
        with contextlib.suppress(ValidationError):
            config = self._implementation.Config.model_validate(before.get("config"))
            completed["config"] = config.model_dump(mode="json", by_alias=True)
        compared = [key for key in type(self).model_fields if key not in ("config", *_MAY_CHANGE)]
        with contextlib.suppress(ValidationError):
            sections = {key: before[key] for key in compared if key in before}
            written = Sweep.model_validate({**sections, "budget": {"trials": 1}})._written()
            completed |= {key: written[key] for key in compared}
        return completed


def read_sweep(
    path: Path | str, overrides: Sequence[Override] = (), *, environment: Mapping[str, str] | None = None
) -> Sweep:
    """Read a sweep file, apply the overrides, and check the result against its trainable.

    Args:
        path: the YAML file.
        overrides: values that replace those of the file.
        environment: fills ``${NAME}`` and gives MLFLOW_TRACKING_URI; default: that of the process.

    Raises:
        InputError: one line that begins with the file and line at fault, or with the override.
    """
    return read_job(Sweep, _checked, path, overrides, environment)


def _checked(tree: dict[str, Any], environment: Mapping[str, str], overrides: Sequence[Override]) -> Sweep:
    """Return the sweep that the values of a file describe; raises FieldError."""
    sweep = load_job(Sweep, tree, environment)
    implementation = sweep.implementation
    if sweep.budget.gpu_hours is not None and not sweep.resources.gpus:
        raise FieldError(Fault(("budget", "gpu_hours"), "trials use no GPU; set resources.gpus"))
    if sweep.name in sweep.warm_start:
        location = ("warm_start", sweep.warm_start.index(sweep.name))
        reason = f"{sweep.name} is this sweep itself, which keeps its trials; name an earlier sweep"
        raise FieldError(Fault(location[: 1 + isinstance(tree["warm_start"], list)], reason))
    if sweep.sampler.name == "brute_force":
        for path, parameter in sweep.search.items():
            if parameter.uniform or parameter.log_uniform:
                reason = "brute_force tries every value; search a choice or an int, or use another sampler"
                raise FieldError(Fault(("search", path), reason))
    space = Space.build(sweep.search, implementation.Config, sweep.config)
    enqueue = {
        name: space.check_point(point, implementation.Config, "enqueue", name)
        for name, point in sweep.enqueue.items()
    }
    sweep = sweep.model_copy(update={"enqueue": enqueue})
    sweep._space = space
    metrics = sweep.trial_metrics
    objective = _with_modes(sweep.objective, metrics, isinstance(tree["objective"], list))
    if len(objective) > 1 and sweep.scheduler.name != "none":
        reason = "trials with several objectives cannot be stopped early; write scheduler: none"
        raise FieldError(Fault(("scheduler",), reason))
    _check_constraints(sweep.constraints, metrics, isinstance(tree.get("constraints"), list))
    sweep = sweep.model_copy(update={"objective": objective})
    if sweep.finals is not None:
        runs = sweep.final_runs({"finals": {}})
        check_finals(sweep.finals, runs, sweep.budget.trials, sweep.search)
        if (crossed := sweep.crossed_runs({})) is not None:
            check_crossed(sweep.finals, crossed)
    if isinstance(implementation, SearchChecking):
        try:
            implementation.check_search(sweep.trial_config({}), list(sweep.search), sweep.required_metrics())
        except implementation.InputError as error:
            path, _, reason = str(error).partition(": ")
            raise FieldError(Fault(("search", path), reason)) from error
        except (Exception, SystemExit) as error:  # whatever the trainable raises
            reason = f"its check_search raised {describe_raised(error)}"
            raise FieldError(Fault(("trainable",), reason)) from error
    refuse_ineffective(
        overrides,
        {
            path: f"is searched, so this has no effect; write --set 'search.{path}={{choice: [...]}}'"
            for path in sweep.search
        },
    )
    return sweep


def _check_constraints(
    constraints: tuple[Constraint, ...], metrics: Mapping[str, Literal["max", "min"]], listed: bool
) -> None:
    """Raise FieldError for a metric that the trainable does not have, or that two constraints name."""
    seen: set[str] = set()
    for index, constraint in enumerate(constraints):
        location: tuple[str | int, ...] = ("constraints", *[index] * listed, "metric")
        if constraint.metric not in metrics:
            raise FieldError(Fault(location, _no_metric(constraint.metric, metrics)))
        if constraint.metric in seen:
            reason = f"{quote(constraint.metric)} is given twice; give both bounds in one constraint"
            raise FieldError(Fault(location, reason))
        seen.add(constraint.metric)


def _no_metric(name: str, metrics: Mapping[str, Literal["max", "min"]]) -> str:
    return f"the trainable has no metric {quote(name)} with this config{nearest(name, metrics)}"


def _with_modes(
    objectives: tuple[Objective, ...], metrics: Mapping[str, Literal["max", "min"]], listed: bool
) -> tuple[Objective, ...]:
    """Return the objectives with their modes, checked against the metrics of the trainable."""
    complete: list[Objective] = []
    for index, objective in enumerate(objectives):
        location: tuple[str | int, ...] = ("objective", index) if listed else ("objective",)
        if objective.metric not in metrics:
            raise FieldError(Fault((*location, "metric"), _no_metric(objective.metric, metrics)))
        if objective.metric in {other.metric for other in complete}:
            raise FieldError(
                Fault((*location, "metric"), f"{quote(objective.metric)} is given twice; keep one of them")
            )
        mode = metrics[objective.metric]
        if "mode" in objective.model_fields_set and objective.mode != mode:
            better = "higher" if mode == "max" else "lower"
            reason = f"{objective.metric} is better when it is {better}; write {mode}, or omit mode"
            raise FieldError(Fault((*location, "mode"), reason))
        complete.append(Objective(metric=objective.metric, mode=mode))
    return tuple(complete)


def _comparable(resolved: Mapping[str, Any]) -> dict[str, str]:
    """Return the settings that must not change as text, by path."""
    texts: dict[str, str] = {}
    for key, value in resolved.items():
        if key == "search":
            for path, entry in value.items():
                parts = [f"{name} {value_text(setting)}" for name, setting in entry.items()]
                texts[f"search.{path}"] = ", ".join(parts)
        elif key not in _MAY_CHANGE and value not in ("", {}, []):  # an earlier version may lack the key
            texts |= flat_texts({key: value})
    return texts
