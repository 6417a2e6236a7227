"""What a driver does with a trained trial: score it on the targets, and register its model."""

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import ray
from pydantic import BaseModel

from orchestrator.config.job import Job
from orchestrator.config.sections import Registry
from orchestrator.errors import SweepError
from orchestrator.execution.failures import explain
from orchestrator.execution.tasks import evaluate, trainable_task
from orchestrator.tracking.model_registry import RegisteredModel, register
from orchestrator.tracking.tracker import Tracker

if TYPE_CHECKING:
    import ray.train


class Candidate(NamedTuple):
    """A trained trial whose model may be registered."""

    number: int
    """Number of the trial in the study of its job."""

    name: str
    parameters: dict[str, Any]
    config: BaseModel
    checkpoint: "ray.train.Checkpoint"

    @property
    def values(self) -> dict[str, Any]:
        """The config as plain values, for a task."""
        return self.config.model_dump(mode="json", by_alias=True)


def score(job: Job, candidates: Sequence[Candidate]) -> list[dict[str, float]]:
    """Return the scores of each candidate on the targets, computed on the cluster; raises SweepError."""
    resources = job.resources
    references = [
        trainable_task(evaluate, resources.cpus, resources.gpus, f"score {candidate.name}").remote(
            job.trainable, candidate.values, candidate.checkpoint
        )
        for candidate in candidates
    ]
    scores: list[dict[str, float]] = []
    for candidate, reference in zip(candidates, references, strict=True):
        try:
            scores.append(ray.get(reference))
        except ray.exceptions.RayError as error:
            raise SweepError(f"{candidate.name} could not be scored: {explain(error)}") from error
    return scores


def register_candidate(
    job: Job, candidate: Candidate, scores: Mapping[str, float], registry: Registry, tracker: Tracker
) -> RegisteredModel:
    """Register the model of a candidate; raises TrackingError, or the InputError of the trainable."""
    with tempfile.TemporaryDirectory() as folder, candidate.checkpoint.as_directory() as checkpoint:
        implementation, config = job.implementation, candidate.config
        return register(
            tracker,
            candidate.number,
            implementation.export(config, Path(checkpoint), Path(folder)),
            model=registry.model,
            alias=registry.alias,
            evaluation=scores,
            record={
                "parameters": candidate.parameters,
                "data": {record.name: record.digest for record in implementation.prepare(config)},
            },
        )
