"""The sections that the files of all commands share, and the reading of a file."""

import json
import os
import re
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar
from urllib.parse import parse_qs, urlsplit

from pydantic import BaseModel, Field, PrivateAttr, ValidationError, field_validator

from orchestrator import trainable
from orchestrator.config.document import Document, Override, flatten
from orchestrator.config.sections import (
    JOB_NAME,
    Resources,
    Section,
    Tracking,
    sqlite_address,
    storage_address,
)
from orchestrator.config.validation import first_fault
from orchestrator.errors import Fault, FieldError, InputError, quote
from orchestrator.trainable import Trainable


class Job(Section):
    """A job as its file describes it: the trainable, its config, and where records are kept."""

    kind: ClassVar[str]
    """Name of this kind of job in messages."""
    path_sections: ClassVar[Mapping[str, int]]
    """Sections whose keys are paths of the config, and how many keys precede such a path."""

    name: str = Field(description="name of the job and of its folder")
    trainable: str = Field(description="package.module:Class")
    config: dict[str, Any] = Field(default={}, description="fixed values of the trainable's config")
    resources: Resources = Resources()
    storage: str = Field("~/reid-sweeps", validate_default=True)
    study: str = Field("", description="database of the study; default: beside the checkpoints")
    tracking: Tracking = Tracking()
    _implementation: Trainable = PrivateAttr()
    _trial_metrics: Mapping[str, Literal["max", "min"]] | None = PrivateAttr(None)
    _located: Callable[[Fault], str] = PrivateAttr()

    @field_validator("name")
    @classmethod
    def _folder_name(cls, value: str) -> str:
        if not re.fullmatch(JOB_NAME, value):
            raise ValueError(
                f"invalid name {quote(value)}; expected at most 63 of a-z, 0-9, '-', '_' and '.', of which"
                " the first is a letter or digit"
            )
        if value == "artifacts" or value.startswith("mlflow.db"):
            raise ValueError(
                f"{quote(value)} is the name of MLflow's files in the storage; choose another name"
            )
        return value

    @field_validator("storage", mode="before")
    @classmethod
    def _folder_or_bucket(cls, value: Any) -> Any:
        return storage_address(value, cls.kind)

    @field_validator("study", mode="before")
    @classmethod
    def _database(cls, value: Any) -> Any:
        if value in (None, ""):
            return ""
        if not isinstance(value, str) or not re.match(r"postgresql\+psycopg2://[^/]*/\w", value):
            raise ValueError(
                f"invalid database {quote(value)}; expected postgresql+psycopg2://user@host:5432/name"
            )
        parts = urlsplit(value)
        if parts.password or "password" in parse_qs(parts.query):
            raise ValueError("the address must not contain a password; set PGPASSWORD or use ~/.pgpass")
        return value

    @property
    def implementation(self) -> Trainable:
        """The trainable."""
        return self._implementation

    @property
    def trial_metrics(self) -> Mapping[str, Literal["max", "min"]]:
        """Every metric that a trial may report, and whether higher or lower is better."""
        if self._trial_metrics is None:
            metrics: dict[str, Literal["max", "min"]] = {}
            for config in self.configs_to_prepare():
                metrics |= trainable.metrics_of(self._implementation, config)
            self._trial_metrics = metrics
        return self._trial_metrics

    def place_of(self, path: str, config: BaseModel | None) -> str:
        """Return where the file sets a path of the config, as its own path: ``config.data.split``.

        Args:
            path: the path of the config.
            config: the config in which it has a value that is at fault; None for any.
        """
        return f"config.{path}"

    def located(self, message: str) -> str:
        """Return a message that begins with a path of the file, behind the file and line of that path."""
        path, _, reason = message.partition(": ")
        if path.partition(".")[0] not in type(self).model_fields:
            return message
        return self._located(Fault((path,), reason))

    @abstractmethod
    def configs_to_check(self) -> Iterator[BaseModel]:
        """Yield the configs that the trainable has to accept before anything starts."""

    @abstractmethod
    def required_metrics(self) -> list[str]:
        """Return the metrics of the trainable that every epoch has to report."""

    @abstractmethod
    def configs_to_prepare(self) -> Iterator[BaseModel]:
        """Yield configs that together use all the data."""

    @abstractmethod
    def resolved(self) -> dict[str, Any]:
        """Return all settings, defaults included, as plain JSON values."""

    @abstractmethod
    def record(self, before: Mapping[str, Any] | None) -> dict[str, Any]:
        """Return the settings that the folder records to detect changes; ``before`` are the recorded ones."""

    @abstractmethod
    def differences(self, before: Mapping[str, Any]) -> list[str]:
        """Return one line for each setting that differs from the ``record`` in the folder and must not.

        A key that the record lacks has its present default: the record may be of an earlier version.
        """


_Job = TypeVar("_Job", bound=Job)

_TELLING_KEYS = {"search": ("sweep", "sweep"), "variants": ("comparison", "compare")}
"""A required key of each kind of file → the kind, and the command that runs it."""


def read_job(
    model: type[_Job],
    check: Callable[[dict[str, Any], Mapping[str, str], Sequence[Override]], _Job],
    path: Path | str,
    overrides: Sequence[Override],
    environment: Mapping[str, str] | None,
) -> _Job:
    """Read the file of a job, apply the overrides, and check the result.

    Args:
        model: the kind of job.
        check: builds the job from the values of the file, the environment and the overrides, or raises
            FieldError.
        path: the YAML file.
        overrides: values that replace those of the file.
        environment: fills ``${NAME}`` and gives MLFLOW_TRACKING_URI; default: that of the process.

    Raises:
        InputError: one line that begins with the file and line at fault, or with the override.
    """
    environment = os.environ if environment is None else environment
    document = Document.read(Path(path), model.kind, model.path_sections)
    _refuse_other_kind(document, model)
    for override in overrides:
        document.set(override)
    try:
        document.fill(environment)
        job = check(document.tree, environment, overrides)
    except FieldError as error:
        raise InputError(document.located(error.fault)) from error
    job._located = document.located
    return job


def _refuse_other_kind(document: Document, model: type[Job]) -> None:
    """Raise InputError for a file that has the required key of another kind of job alone."""
    own = _TELLING_KEYS.keys() & model.model_fields.keys()
    for key in _TELLING_KEYS.keys() - own:
        if key in document.tree and not own & document.tree.keys():
            kind, command = _TELLING_KEYS[key]
            reason = f"this is the file of a {kind}; run python -m orchestrator.{command}"
            raise InputError(document.located(Fault((key,), reason)))


def load_job(model: type[_Job], tree: Mapping[str, Any], environment: Mapping[str, str]) -> _Job:
    """Build the job from the values of its file, with its trainable and its tracking; raises FieldError."""
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
        reason = "a bucket needs an MLflow server; give tracking.uri or set MLFLOW_TRACKING_URI"
        raise FieldError(Fault(("storage",), reason))
    tracking = Tracking(
        uri=uri or sqlite_address(f"{job.storage}/mlflow.db"),
        experiment=job.tracking.experiment or job.name,
    )
    job = job.model_copy(update={"tracking": tracking})
    job._implementation = implementation
    return job


def refuse_ineffective(overrides: Sequence[Override], varied: Mapping[str, str]) -> None:
    """Raise FieldError for an override of a varied value, which would have no effect.

    ``varied`` maps each varied path of the config to the reason, and what to write instead.
    """
    for override in overrides:
        path = override.path.removeprefix("config.")
        if path != override.path and path in varied:
            raise FieldError(Fault(("config", *path.split(".")), f"{path} {varied[path]}"))


def flat_texts(mapping: Mapping[str, Any]) -> dict[str, str]:
    """Return the values of nested mappings as text, by dotted path."""
    return {path: value_text(value) for path, value in flatten(mapping).items()}


def changes(before: Mapping[str, str], after: Mapping[str, str]) -> list[str]:
    """Return one line for each path whose texts differ."""
    keys = [*before, *(key for key in after if key not in before)]
    return [
        f"{key}: {before.get(key, 'absent')} → {after.get(key, 'absent')}"
        for key in keys
        if before.get(key, "absent") != after.get(key, "absent")
    ]


def value_at(config: BaseModel, path: str) -> Any:
    """Return the value of a path of a config as a plain value; None where there is none."""
    return flatten(config.model_dump(mode="json", by_alias=True)).get(path)


def value_text(value: Any) -> str:
    """Return a plain value as JSON, and text as it is."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
