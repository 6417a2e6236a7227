"""The sections of the files of the commands; every fault is one line."""

import logging
import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    WithJsonSchema,
    field_validator,
    model_validator,
)

from orchestrator.config.parameter import Choices
from orchestrator.errors import quote

_log = logging.getLogger(__name__)


def _not_bool(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError(f"should be a number, not {quote(value)}")
    return value


Integer = Annotated[int, BeforeValidator(_not_bool)]
Number = Annotated[float, BeforeValidator(_not_bool)]


class Section(BaseModel):
    """A section of the file of a job."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    renamed_keys: ClassVar[Mapping[str, str]] = {}
    """Path of a key in earlier versions → its present path. The old key is read, with a warning."""

    @model_validator(mode="before")
    @classmethod
    def _read_renamed_keys(cls, data: Any) -> Any:
        for old, new in cls.renamed_keys.items():
            old_key, new_key = old.rpartition(".")[2], new.rpartition(".")[2]
            if isinstance(data, Mapping) and old_key in data:
                if new_key in data:
                    raise ValueError(f"{old_key} is the old name of {new_key}; give only {new_key}")
                _log.warning("%s is now called %s; rename it in the file", old, new)
                data = {new_key if key == old_key else key: value for key, value in data.items()}
        return data


MAX_NAME = 63
"""Most characters of the name of a job."""

JOB_NAME = rf"[a-z0-9][a-z0-9_.-]{{0,{MAX_NAME - 1}}}"
"""Pattern of the name of a job."""

_UNITS = {"d": 86400, "h": 3600, "m": 60, "s": 1}


def _seconds(value: Any) -> Any:
    """Read a duration such as ``1h30m``."""
    if value is None:
        return value
    if not isinstance(value, str) or not re.fullmatch(_DURATION, value, re.ASCII):
        raise ValueError(f"invalid duration {quote(value)}; expected for example 90s, 30m, 2h or 1d")
    seconds = sum(int(part[:-1]) * _UNITS[part[-1]] for part in re.findall(r"\d+[dhms]", value))
    if not seconds:
        raise ValueError(f"invalid duration {value!r}; expected more than 0 seconds, for example 90s")
    return float(seconds)


_DURATION = r"(\d{1,6}[dhms])+"

Seconds = Annotated[
    float,
    BeforeValidator(_seconds),
    WithJsonSchema({"type": "string", "pattern": f"^{_DURATION}$", "examples": ["90s", "30m", "2h"]}),
]
"""A duration, written 90s, 30m, 2h or 1d."""


def duration_text(seconds: float) -> str:
    """Return a duration as a file has it: ``1d12h``; parts of a second are rounded up."""
    left, text = math.ceil(seconds), ""
    for unit, size in _UNITS.items():
        count, left = divmod(left, size)
        text += f"{count}{unit}" if count else ""
    return text


def _point_name(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_.-]{1,64}", value):
        raise ValueError("invalid name of a point; expected at most 64 letters, digits, '-', '_' and '.'")
    return value


def _point(value: dict[str, Any]) -> dict[str, Any]:
    if not value:
        raise ValueError("empty point; expected at least one {searched path: value}")
    return value


PointName = Annotated[str, AfterValidator(_point_name)]
Point = Annotated[dict[str, Any], AfterValidator(_point)]
"""Values of searched paths, at least one."""


def _source(value: Any) -> Any:
    """Return an earlier sweep, written ``JOB_NAME`` or ``mlflow:EXPERIMENT``."""
    kind, colon, experiment = value.partition(":") if isinstance(value, str) else ("", "", "")
    if kind == "mlflow" and experiment.strip():
        return f"mlflow:{experiment.strip()}"
    if colon or not re.fullmatch(JOB_NAME, kind):
        raise ValueError(f"invalid sweep {quote(value)}; expected the name of a sweep, or mlflow:EXPERIMENT")
    return value


Source = Annotated[str, BeforeValidator(_source)]
"""An earlier sweep: ``JOB_NAME`` in the same storage, or ``mlflow:EXPERIMENT``."""


def storage_address(value: Any, kind: str) -> str:
    """Return the value of ``storage:`` in its canonical form, for a ``kind`` of job; raises ValueError."""
    if not isinstance(value, str | Path) or not str(value).strip():
        raise ValueError(
            f"invalid storage {quote(value)}; expected for example ~/reid-sweeps or s3://bucket/prefix"
        )
    text = str(value)
    if text.startswith("s3://"):
        if not re.fullmatch(r"s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/[\w.!*'()-]+)*/?", text, re.ASCII):
            raise ValueError(f"invalid address {quote(text)}; expected s3://bucket/prefix")
        return text.rstrip("/")
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", text):
        raise ValueError(
            f"invalid storage {quote(text)}; {kind}s are kept in a folder or in a bucket, s3://bucket/prefix"
        )
    expanded = os.path.expanduser(text)
    if expanded.startswith("~"):
        raise ValueError(f"unknown user in {quote(text)}; expected for example ~/reid-sweeps")
    return os.path.abspath(expanded)


def sqlite_address(file: Path | str) -> str:
    """Return the SQLAlchemy address of a database file, in which only two characters need an escape."""
    return "sqlite:///" + str(file).replace("%", "%25").replace("?", "%3F")


class Objective(Section):
    """A metric of the trainable that the search optimizes."""

    metric: str = Field(description="one of the trainable's metrics")
    mode: Literal["max", "min"] = Field(
        "max", description="whether higher or lower is better; default: that of the metric"
    )

    @property
    def direction(self) -> Literal["maximize", "minimize"]:
        """The mode in Optuna's terms."""
        return "maximize" if self.mode == "max" else "minimize"


class Constraint(Section):
    """Bounds of a metric; only trials within them can be the best."""

    metric: str = Field(description="one of the trainable's metrics")
    at_most: Annotated[Number, Field(allow_inf_nan=False)] | None = Field(None, description="upper bound")
    at_least: Annotated[Number, Field(allow_inf_nan=False)] | None = Field(None, description="lower bound")

    @model_validator(mode="after")
    def _bounded(self) -> Self:
        if self.at_most is None and self.at_least is None:
            raise ValueError(f"{self.metric} has no bound; give at_most or at_least")
        if None not in (self.at_most, self.at_least) and self.at_least > self.at_most:  # type: ignore[operator]
            raise ValueError(f"at_least is {self.at_least:g}, above at_most, {self.at_most:g}")
        return self

    def violations(self, value: float) -> dict[str, float]:
        """Return how far a value of the metric is outside of each bound, at most 0 if it is inside."""
        bounds = {}
        if self.at_most is not None:
            bounds[f"{self.metric} at most {self.at_most:g}"] = value - self.at_most
        if self.at_least is not None:
            bounds[f"{self.metric} at least {self.at_least:g}"] = self.at_least - value
        return bounds


class Budget(Section):
    """The limits of a sweep; it ends at the first one that it reaches."""

    trials: Annotated[Integer, Field(ge=1, le=10**9)] = Field(description="number of trials")
    wall: Seconds | None = Field(
        None,
        description="time after which trials are stopped, summed over all runs of the command: 90s, 30m, 2h",
    )
    gpu_hours: Annotated[Number, Field(gt=0, allow_inf_nan=False)] | None = Field(
        None, description="hours that workers may hold GPUs, summed over all attempts and runs of the command"
    )
    no_gain_for: Annotated[Integer, Field(ge=1)] | None = Field(
        None, description="consecutive finished trials without a new best one, or one in the Pareto set"
    )
    failures: Annotated[Integer, Field(ge=1)] = Field(
        10, description="consecutive failed trials, in one run of the command, after which it ends"
    )


class Finals(Section):
    """The finals of a sweep: its best trials are trained again, and the winner is scored on the targets."""

    top: Annotated[Integer, Field(ge=1)] = Field(3, description="number of the best trials to train again")
    seeds: Choices = Field(description="values of the config's seed: [0, 1]")
    splits: dict[str, Choices] = Field(
        default={}, description="one path and its values: {data.split: [0, 1]}"
    )
    train: dict[str, Choices] = Field(
        default={},
        description="one path and its values, on which the winner is trained too: {data.sequences: [a, b]}",
    )


class Resources(Section):
    """The resources of a trial, and the number of trials at once."""

    renamed_keys: ClassVar[Mapping[str, str]] = {"resources.silence": "resources.report_timeout"}

    workers: Annotated[Integer, Field(ge=1)] = Field(1, description="workers of a trial (data parallel)")
    cpus: Annotated[Integer, Field(ge=1)] = Field(1, description="CPUs of a worker")
    gpus: Annotated[Number, Field(ge=0, allow_inf_nan=False)] = Field(
        0.0, description="GPUs of a worker; below 1, trials share one"
    )
    concurrent: Literal["auto"] | Annotated[Integer, Field(ge=1)] = Field(
        "auto", description="trials at once; auto: as many as fit on the present nodes"
    )
    trials_per_worker: Annotated[Integer, Field(ge=1)] = Field(
        500, description="trials that a worker process runs before a new one replaces it"
    )
    report_timeout: Seconds = Field(
        3600.0, description="time without a report after which a trial counts as hung: 90s, 30m, 2h, 1d"
    )

    @field_validator("gpus")
    @classmethod
    def _whole_or_shared(cls, value: float) -> float:
        if value > 1 and value != int(value):
            raise ValueError(f"should be a whole number or a share below 1, not {value:g}")
        return value

    @model_validator(mode="after")
    def _one_worker_a_gpu(self) -> Self:
        if 0 < self.gpus < 1 and self.workers > 1:  # NCCL allows one rank per device
            raise ValueError(
                f"{self.workers} workers cannot train together on shares of a GPU; write gpus: 1"
            )
        return self

    @field_validator("concurrent", mode="before")
    @classmethod
    def _auto_or_count(cls, value: Any) -> Any:
        if value != "auto" and (
            not isinstance(value, int | str) or not str(value).isdecimal() or int(value) < 1
        ):
            raise ValueError(f"invalid value {quote(value)}; expected auto, or a whole number above 0")
        return value


CHALLENGER = "challenger"
"""Alias of the latest version that did not pass the gate."""


class Gate(Section):
    """The condition under which a new version takes the alias from the version that holds it."""

    metric: str = Field(
        "", description="score of the targets, such as mAP; default: last part of the first objective"
    )
    aggregate: Literal["mean", "worst"] | dict[str, Annotated[Number, Field(gt=0, allow_inf_nan=False)]] = (
        Field("mean", description="one value of all targets: mean, worst, or weights {TARGET: 2}")
    )
    confidence: Annotated[Number, Field(gt=0.5, lt=1)] = Field(
        0.95, description="confidence of the interval that has to lie on the better side of 0"
    )
    tolerance: Annotated[Number, Field(ge=0, allow_inf_nan=False)] = Field(
        0.02, description="largest loss on a single target"
    )
    floors: dict[str, Annotated[Number, Field(allow_inf_nan=False)]] = Field(
        default={}, description="worst allowed scores: {test/TARGET/METRIC: 0.1}"
    )

    @field_validator("aggregate", mode="before")
    @classmethod
    def _name_or_weights(cls, value: Any) -> Any:
        if value not in ("mean", "worst") and not (isinstance(value, Mapping) and value):
            raise ValueError(f"invalid value {quote(value)}; expected mean, worst, or weights {{TARGET: 2}}")
        return value


class Registry(Section):
    """The registered model that gets the best model as a new version."""

    model: str = Field(description="name of the registered model")
    alias: str = Field("champion", description="alias that moves to the new version, if it passes the gate")
    gate: Gate | Literal["none"] = Field(
        Gate(), description="when the alias moves; none: always, to the latest version"
    )

    @field_validator("gate", mode="before")
    @classmethod
    def _gate_or_none(cls, value: Any) -> Any:
        if value != "none" and not isinstance(value, Mapping | Gate):
            raise ValueError(f"invalid value {quote(value)}; expected none, or for example {{metric: mAP}}")
        return value

    @field_validator("model", "alias")
    @classmethod
    def _name(cls, value: str) -> str:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}", value):
            raise ValueError(f"invalid name {quote(value)}; expected letters, digits, '-', '_' and '.'")
        return value

    @field_validator("alias")
    @classmethod
    def _not_a_version(cls, value: str) -> str:
        if value.lower() == "latest" or re.fullmatch(r"[vV]\d+", value):
            raise ValueError(f"MLflow reserves the alias {value!r}; expected for example champion")
        if value == CHALLENGER:
            raise ValueError(f"{value!r} names the latest version that lost; expected for example champion")
        return value


class Tracking(Section):
    """The MLflow server or database, and the experiment."""

    uri: str = Field("", description="default: MLFLOW_TRACKING_URI, else sqlite in the storage folder")
    experiment: str = Field("", description="default: the name of the sweep")

    @field_validator("uri", "experiment", mode="before")
    @classmethod
    def _null_is_default(cls, value: Any) -> Any:
        return "" if value is None else value
