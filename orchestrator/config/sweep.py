"""The files of the commands: what a sweep file may say, and their reading with every fault in one line."""

import json
import os
import re
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar
from urllib.parse import urlsplit

from pydantic import (
    BaseModel,
    Field,
    PrivateAttr,
    ValidationError,
    field_validator,
    model_validator,
)

from orchestrator import trainable
from orchestrator.config.document import Document, Override
from orchestrator.config.parameter import Parameter
from orchestrator.config.samplers import Sampler, Scheduler, Section
from orchestrator.config.search_space import Space
from orchestrator.config.sections import (
    NAME,
    Budget,
    Objective,
    Point,
    PointName,
    Registry,
    Resources,
    Source,
    Tracking,
)
from orchestrator.errors import Fault, FieldError, InputError, first_fault, nearest, show
from orchestrator.storage import s3 as storage
from orchestrator.trainable import Trainable

__all__ = ["Job", "Override", "Sweep", "differences", "read"]

_MAY_CHANGE = ("budget", "resources", "storage", "tracking")


class Job(Section):
    """What the file of every command says: what is trained, with what, and where its records go."""

    kind: ClassVar[str]
    """What the user calls it."""

    name: str = Field(description="name of the job and of its folder")
    trainable: str = Field(description="package.module:Class")
    config: dict[str, Any] = Field(default={}, description="fixed values of the trainable's config")
    resources: Resources = Resources()
    storage: str = Field("~/reid-sweeps", validate_default=True)
    study: str = Field("", description="database of the study; default: beside the checkpoints")
    tracking: Tracking = Tracking()
    _implementation: Trainable = PrivateAttr()

    @field_validator("name")
    @classmethod
    def _folder_name(cls, value: str) -> str:
        if not re.fullmatch(NAME, value):
            raise ValueError(f"{show(value)} is no name; use at most 63 of a-z, 0-9, '-', '_' and '.'")
        return value

    @field_validator("storage", mode="before")
    @classmethod
    def _folder_or_bucket(cls, value: Any) -> Any:
        return storage.normalize(value, cls.kind)

    @field_validator("study", mode="before")
    @classmethod
    def _database(cls, value: Any) -> Any:
        if value in (None, ""):
            return ""
        if not isinstance(value, str) or not re.match(r"postgresql\+psycopg2://[^/]*/\w", value):
            raise ValueError(f"{show(value)} is no database; write postgresql+psycopg2://user@host:5432/name")
        if urlsplit(value).password:
            raise ValueError("a password does not belong into the address; set PGPASSWORD or use ~/.pgpass")
        return value

    @property
    def implementation(self) -> Trainable:
        """The trainable itself."""
        return self._implementation

    @abstractmethod
    def to_check(self) -> Iterator[BaseModel]:
        """Configs that the trainable has to accept before anything starts."""

    @abstractmethod
    def needed_metrics(self) -> list[str]:
        """Metrics of the trainable that every epoch has to report."""

    @abstractmethod
    def to_prepare(self) -> Iterator[BaseModel]:
        """Configs that between them use all the data."""

    @abstractmethod
    def resolved(self) -> dict[str, Any]:
        """Give everything that was decided, defaults included, as plain JSON values."""

    @abstractmethod
    def record(self, before: Mapping[str, Any] | None) -> dict[str, Any]:
        """What the folder keeps of the file to notice changes; ``before`` is what it kept so far."""

    @abstractmethod
    def differences(self, before: Mapping[str, Any]) -> list[str]:
        """List what differs from the ``record`` in the folder and may not, one line each."""


class Sweep(Job):
    """A sweep file that was read and checked, with the trainable that it names."""

    kind: ClassVar[str] = "sweep"

    search: dict[str, Parameter] = Field(description="searched paths: {PATH: {uniform: [0, 1]}}")
    objective: tuple[Objective, ...] = Field(description="what to improve: {metric: NAME, mode: max}")
    sampler: Sampler = Sampler.model_validate("tpe")
    scheduler: Scheduler
    budget: Budget = Field(description="when to end: {trials: 24}")
    enqueue: dict[PointName, Point] = Field(
        default={}, description="points to try first: {NAME: {searched path: value}}; the rest is suggested"
    )
    warm_start: tuple[Source, ...] = Field(
        (), description="earlier sweeps to learn from: names in the same storage, or mlflow:EXPERIMENT"
    )
    registry: Registry | None = None
    _space: Space = PrivateAttr()

    @field_validator("search")
    @classmethod
    def _searches(cls, value: dict[str, Parameter]) -> dict[str, Parameter]:
        if not value:
            raise ValueError("nothing is searched; give at least one path, e.g. {seed: {int: [0, 9]}}")
        return value

    @field_validator("warm_start", mode="before")
    @classmethod
    def _one_or_several(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

    @field_validator("warm_start")
    @classmethod
    def _distinct(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for index, each in enumerate(value):
            if each in value[:index]:
                raise ValueError(f"{show(each)} is given twice; keep one of them")
        return value

    @field_validator("objective", mode="before")
    @classmethod
    def _one_or_more(cls, value: Any) -> Any:
        if isinstance(value, list) and not value:
            raise ValueError("name at least one metric of the trainable: {metric: NAME}")
        return [value] if isinstance(value, Mapping) else value

    @model_validator(mode="before")
    @classmethod
    def _default_scheduler(cls, data: Any) -> Any:
        """ASHA, unless there are several objectives: Optuna keeps no intermediate values for those."""
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
        """The most epochs that any trial reports."""
        searched = self.search.get("epochs")
        fixed = int(getattr(self.trial_config({}), "epochs"))  # noqa: B009 - checked when the trainable was loaded
        return max(int(each) for each in searched.edges) if searched else fixed

    def trial_config(self, values: Mapping[str, Any]) -> BaseModel:
        """Validate the config of a trial: ``values`` by path, laid over the fixed ones. Raises InputError."""
        model = self._implementation.Config
        data = Space.overlay(self._space.config, values)
        try:
            return model.model_validate(data)
        except ValidationError as error:
            raise FieldError(first_fault(error, model, data, "config")) from error

    def to_check(self) -> Iterator[BaseModel]:
        """The fixed config, then with every edge of every searched path alone."""
        return map(self.trial_config, self.space.corners())

    def needed_metrics(self) -> list[str]:
        """The objectives."""
        return [each.metric for each in self.objective]

    def to_prepare(self) -> Iterator[BaseModel]:
        """The fixed config: every trial uses the same data."""
        yield self.trial_config({})

    def resolved(self) -> dict[str, Any]:
        """Give everything that was decided, defaults included, as plain JSON values."""
        return {
            **self.model_dump(mode="json", exclude={"config", "search"}),
            "config": self.trial_config({}).model_dump(mode="json", by_alias=True),
            "search": {
                path: each.model_dump(mode="json", by_alias=True, exclude_defaults=True)
                for path, each in self.search.items()
            },
        }

    def record(self, before: Mapping[str, Any] | None) -> dict[str, Any]:
        """Everything that was decided."""
        return self.resolved()

    def differences(self, before: Mapping[str, Any]) -> list[str]:
        """List what differs; see the function of this name."""
        return differences(before, self.resolved())


_Job = TypeVar("_Job", bound=Job)


def read(
    path: Path | str, overrides: Sequence[Override] = (), *, environment: Mapping[str, str] | None = None
) -> Sweep:
    """Read a sweep file, lay ``overrides`` over it, and check it against its trainable.

    ``environment`` (default: the process's) fills ``${NAME}`` and gives MLFLOW_TRACKING_URI. Raises
    InputError, one line that begins with file and line, or with the override, where the fault stands.
    """
    return read_job(path, overrides, environment, _checked)


def read_job(
    path: Path | str,
    overrides: Sequence[Override],
    environment: Mapping[str, str] | None,
    check: Callable[[dict[str, Any], Mapping[str, str], Sequence[Override]], _Job],
    kind: str = "sweep",
) -> _Job:
    """Read the file of a job, and let ``check`` make the job of its values, overrides and the environment.

    Raises InputError for the FieldError of ``check``, with the place of the field.
    """
    environment = os.environ if environment is None else environment
    document = Document.read(Path(path), kind)
    for override in overrides:
        document.set(override)
    try:
        document.fill(environment)
        return check(document.tree, environment, overrides)
    except FieldError as error:
        raise InputError(f"{document.place(error.fault.path)}: {error}") from error


def load_job(model: type[_Job], tree: Mapping[str, Any], environment: Mapping[str, str]) -> _Job:
    """Make a job of the values of its file, with its trainable and its tracking; raises FieldError."""
    try:
        job = model.model_validate(tree)
    except ValidationError as error:
        raise FieldError(first_fault(error, model, tree)) from error
    try:
        implementation = trainable.load(job.trainable)
    except InputError as error:
        raise FieldError(Fault(("trainable",), str(error))) from error
    uri = job.tracking.uri or environment.get("MLFLOW_TRACKING_URI") or ""
    if not uri and job.storage.startswith("s3://"):
        reason = "a bucket needs an MLflow server beside it; give tracking.uri or set MLFLOW_TRACKING_URI"
        raise FieldError(Fault(("storage",), reason))
    tracking = Tracking(
        uri=uri or f"sqlite:///{job.storage}/mlflow.db",
        experiment=job.tracking.experiment or job.name,
    )
    job = job.model_copy(update={"tracking": tracking})
    job._implementation = implementation
    return job


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """List what differs between two ``Sweep.resolved()`` that may not, one line each.

    For example ``search.rnn.hidden_size: int [32, 256] → int [32, 128]``. Budget, resources, storage and
    tracking may change between two runs of a sweep.
    """
    return changes(_flat(old), _flat(new))


def _checked(tree: dict[str, Any], environment: Mapping[str, str], overrides: Sequence[Override]) -> Sweep:
    """Build the sweep from the values of its file; raises FieldError."""
    sweep = load_job(Sweep, tree, environment)
    implementation = sweep.implementation
    if sweep.budget.gpu_hours is not None and not sweep.resources.gpus:
        raise FieldError(Fault(("budget", "gpu_hours"), "trials take no GPU; see resources.gpus"))
    objective = _with_modes(sweep.objective, implementation.metrics, isinstance(tree["objective"], list))
    if len(objective) > 1 and sweep.scheduler.name != "none":
        reason = "trials of several objectives cannot be stopped early; write scheduler: none"
        raise FieldError(Fault(("scheduler",), reason))
    if sweep.name in sweep.warm_start:
        place = ("warm_start", sweep.warm_start.index(sweep.name))
        reason = f"{sweep.name} is this sweep itself, whose trials are kept anyway; name an earlier one"
        raise FieldError(Fault(place[: 1 + isinstance(tree["warm_start"], list)], reason))
    space = Space.build(sweep.search, implementation.Config, sweep.config)
    enqueue = {
        name: space.point(point, implementation.Config, "enqueue", name)
        for name, point in sweep.enqueue.items()
    }
    sweep = sweep.model_copy(update={"objective": objective, "enqueue": enqueue})
    sweep._space = space
    refuse_idle(
        overrides,
        {
            path: f"is searched, so this has no effect; write --set 'search.{path}={{choice: [...]}}'"
            for path in sweep.search
        },
    )
    return sweep


def _with_modes(
    objectives: tuple[Objective, ...], metrics: Mapping[str, Literal["max", "min"]], listed: bool
) -> tuple[Objective, ...]:
    """Check the objectives against what the trainable reports, and fill in the modes that were left out."""
    complete: list[Objective] = []
    for index, each in enumerate(objectives):
        place: tuple[str | int, ...] = ("objective", index) if listed else ("objective",)
        if each.metric not in metrics:
            reason = f"the trainable reports no {show(each.metric)}{nearest(each.metric, metrics)}"
            raise FieldError(Fault((*place, "metric"), reason))
        if each.metric in {other.metric for other in complete}:
            raise FieldError(
                Fault((*place, "metric"), f"{show(each.metric)} is given twice; keep one of them")
            )
        mode = metrics[each.metric]
        if "mode" in each.model_fields_set and each.mode != mode:
            better = "higher" if mode == "max" else "lower"
            reason = f"{each.metric} is better the {better} it is; write {mode} or leave mode out"
            raise FieldError(Fault((*place, "mode"), reason))
        complete.append(Objective(metric=each.metric, mode=mode))
    return tuple(complete)


def refuse_idle(overrides: Sequence[Override], varied: Mapping[str, str]) -> None:
    """Refuse to fix a varied value on the command line: it would silently have no effect.

    ``varied`` says for each path of the config why that is so, and what to write instead.
    """
    for override in overrides:
        path = override.path.removeprefix("config.")
        if path != override.path and path in varied:
            raise FieldError(Fault(("config", *path.split(".")), f"{path} {varied[path]}"))


def flat(path: str, value: Any) -> dict[str, str]:
    """Lay a value of nested mappings out as path → text."""
    if isinstance(value, Mapping) and value:
        return {inner: text for key in value for inner, text in flat(f"{path}.{key}", value[key]).items()}
    return {path: _text(value)}


def changes(before: Mapping[str, str], after: Mapping[str, str]) -> list[str]:
    """List the paths whose texts differ, one line each."""
    keys = [*before, *(key for key in after if key not in before)]
    return [
        f"{key}: {before.get(key, 'absent')} → {after.get(key, 'absent')}"
        for key in keys
        if before.get(key, "absent") != after.get(key, "absent")
    ]


def _flat(resolved: Mapping[str, Any]) -> dict[str, str]:
    """Lay a resolved sweep out as path → text, without what may change."""
    laid: dict[str, str] = {}
    for key, value in resolved.items():
        if key == "search":
            for path, entry in value.items():
                laid[f"search.{path}"] = ", ".join(f"{kind} {_text(given)}" for kind, given in entry.items())
        elif key not in _MAY_CHANGE and value not in ("", {}, []):  # an earlier version may not know the key
            laid |= flat(key, value)
    return laid


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
