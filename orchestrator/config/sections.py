"""What may stand in the parts of the files of the commands, each with every fault in one line."""

import re
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, field_validator, model_validator

from orchestrator.config.samplers import Integer, Number, Section
from orchestrator.errors import show

NAME = r"[a-z0-9][a-z0-9_.-]{0,62}"
"""What a job may be called."""

_UNITS = {"d": 86400, "h": 3600, "m": 60, "s": 1}


def _seconds(value: Any) -> Any:
    """Read a duration such as ``1h30m``."""
    if value is None:
        return value
    if not isinstance(value, str) or not re.fullmatch(r"(\d{1,6}[dhms])+", value, re.ASCII):
        raise ValueError(f"{show(value)} is no duration; write 90s, 30m, 2h or 1d")
    seconds = sum(int(part[:-1]) * _UNITS[part[-1]] for part in re.findall(r"\d+[dhms]", value))
    if not seconds:
        raise ValueError(f"{value!r} leaves no time; write 90s, 30m, 2h or 1d")
    return float(seconds)


Seconds = Annotated[float, BeforeValidator(_seconds)]
"""A duration, written 90s, 30m, 2h or 1d."""


def _point_name(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_.-]{1,64}", value):
        raise ValueError("is no name of a point; use at most 64 letters, digits, '-', '_' and '.'")
    return value


def _point(value: dict[str, Any]) -> dict[str, Any]:
    if not value:
        raise ValueError("holds no value; give at least one, {searched path: value}")
    return value


PointName = Annotated[str, AfterValidator(_point_name)]
Point = Annotated[dict[str, Any], AfterValidator(_point)]
"""Values of searched paths, one at least."""


def _source(value: Any) -> Any:
    """Read ``NAME`` of a sweep, or ``mlflow:EXPERIMENT``."""
    kind, colon, experiment = value.partition(":") if isinstance(value, str) else ("", "", "")
    if kind == "mlflow" and experiment.strip():
        return f"mlflow:{experiment.strip()}"
    if colon or not re.fullmatch(NAME, kind):
        raise ValueError(f"{show(value)} is no sweep; write the name of one, or mlflow:EXPERIMENT")
    return value


Source = Annotated[str, BeforeValidator(_source)]
"""An earlier sweep: ``NAME`` in the same storage, or ``mlflow:EXPERIMENT``."""


class Objective(Section):
    """A metric of the trainable that the search improves."""

    metric: str = Field(description="one of the trainable's metrics")
    mode: Literal["max", "min"] = Field(
        "max", description="which way is better; left out, the trainable's own"
    )

    @property
    def direction(self) -> Literal["maximize", "minimize"]:
        """The mode in Optuna's words."""
        return "maximize" if self.mode == "max" else "minimize"


class Budget(Section):
    """When the sweep ends: whatever comes first."""

    trials: Annotated[Integer, Field(ge=1)] = Field(description="trials in all")
    wall: Seconds | None = Field(
        None,
        description="time after which trials are stopped, over all runs of the command: 90s, 30m, 2h",
    )
    gpu_hours: Annotated[Number, Field(gt=0, allow_inf_nan=False)] | None = Field(
        None, description="hours that workers may hold GPUs, over all attempts and runs of the command"
    )
    no_gain_for: Annotated[Integer, Field(ge=1)] | None = Field(
        None, description="finished trials in a row without a better one"
    )
    failures: Annotated[Integer, Field(ge=1)] = Field(
        10, description="failed trials in a row, in one run of the command, that end it"
    )


class Resources(Section):
    """What a trial takes, and how many run at once."""

    workers: Annotated[Integer, Field(ge=1)] = Field(1, description="workers of a trial (data parallel)")
    cpus: Annotated[Integer, Field(ge=1)] = Field(1, description="CPUs of a worker")
    gpus: Annotated[Number, Field(ge=0, allow_inf_nan=False)] = Field(
        0.0, description="GPUs of a worker; below 1, trials share one"
    )
    concurrent: Literal["auto"] | Annotated[Integer, Field(ge=1)] = Field(
        "auto", description="trials at once; auto: as many as fit on the nodes that are there"
    )
    silence: Seconds = Field(
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
        if 0 < self.gpus < 1 and self.workers > 1:  # NCCL knows one rank a device
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
            raise ValueError(f"{show(value)} is neither auto nor a number of trials above 0")
        return value


class Registry(Section):
    """Where the best model is registered."""

    model: str = Field(description="name of the registered model")
    alias: str = Field("champion", description="alias that the best model gets")

    @field_validator("model", "alias")
    @classmethod
    def _name(cls, value: str) -> str:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}", value):
            raise ValueError(f"{show(value)} is no name; use letters, digits, '-', '_' and '.'")
        return value

    @field_validator("alias")
    @classmethod
    def _not_a_version(cls, value: str) -> str:
        if value.lower() == "latest" or re.fullmatch(r"[vV]\d+", value):
            raise ValueError(f"{value!r} is reserved by MLflow; use a word such as champion")
        return value


class Tracking(Section):
    """The MLflow server or database, and the experiment in it."""

    uri: str = Field("", description="default: MLFLOW_TRACKING_URI, else sqlite in the storage folder")
    experiment: str = Field("", description="default: the name of the sweep")

    @field_validator("uri", "experiment", mode="before")
    @classmethod
    def _null_is_default(cls, value: Any) -> Any:
        return "" if value is None else value
