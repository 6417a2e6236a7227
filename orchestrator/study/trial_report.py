"""What a trial reports while it runs, as types, and as the flat mappings that Ray Tune transports."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

FINALS = "finals"
"""What the driver of a sweep calls its finals among the activities of trials."""


def trial_name(number: int) -> str:
    """Return the name of a trial: its folder, its actor on the Ray dashboard, and its MLflow run."""
    return f"trial-{number:04d}"


@dataclass(frozen=True, slots=True)
class Started:
    """The workers of the trial run; it no longer waits for resources."""


@dataclass(frozen=True, slots=True)
class EpochEnded:
    """One epoch was trained."""

    epoch: int
    metrics: dict[str, float]
    """Metrics of the trainable, without ``epoch``."""

    checkpoint: str | None = None
    """Path of the checkpoint of this epoch in the file system of the storage."""


@dataclass(frozen=True, slots=True)
class WorkersLost:
    """The trial lost its workers and resumes from its last checkpoint."""

    reason: str


@dataclass(frozen=True, slots=True)
class WorkersReplaced:
    """The trial gets new workers, because the trial before left something behind in them."""

    reason: str


@dataclass(frozen=True, slots=True)
class Trained:
    """The trial is trained to its end. If the job scores every trial, it will be scored."""

    checkpoint: str
    """Path of its last checkpoint."""


@dataclass(frozen=True, slots=True)
class Scored:
    """The last checkpoint was scored on the targets."""

    scores: dict[str, float]


@dataclass(frozen=True, slots=True)
class Failed:
    """The trial failed and is not tried again."""

    reason: str
    log: str = ""


@dataclass(frozen=True, slots=True)
class Halted:
    """No trial can continue, such as when no space is left; this one stays unfinished."""

    reason: str


TrialReport = Started | EpochEnded | WorkersLost | WorkersReplaced | Trained | Scored | Failed | Halted

_KIND = "report"
_TYPES: dict[str, type[TrialReport]] = {
    "started": Started,
    "epoch": EpochEnded,
    "workers_lost": WorkersLost,
    "workers_replaced": WorkersReplaced,
    "trained": Trained,
    "scored": Scored,
    "failed": Failed,
    "halted": Halted,
}
_NAMES = {report: name for name, report in _TYPES.items()}
_MAPPINGS = ("metrics", "scores")
"""Fields that travel as JSON: Tune would flatten a mapping."""


def is_last(report: TrialReport, scored: bool) -> bool:
    """Return whether nothing follows a report; ``scored`` says whether the job scores every trial."""
    return isinstance(report, Failed | Halted | Scored) or (isinstance(report, Trained) and not scored)


def encode(report: TrialReport) -> dict[str, Any]:
    """Return a report as a flat mapping for ``tune.report``."""
    fields = {name: getattr(report, name) for name in type(report).__dataclass_fields__}
    encoded = {
        name: json.dumps(value) if name in _MAPPINGS else value
        for name, value in fields.items()
        if value is not None
    }
    return {_KIND: _NAMES[type(report)], **encoded}


def decode(result: Mapping[str, Any]) -> TrialReport | None:
    """Return the report in a result of Ray Tune, which adds keys to it; None where there is no report."""
    if _KIND not in result:
        return None
    report_type = _TYPES[result[_KIND]]
    names = [name for name in report_type.__dataclass_fields__ if name in result]
    return report_type(**{n: json.loads(result[n]) if n in _MAPPINGS else result[n] for n in names})
