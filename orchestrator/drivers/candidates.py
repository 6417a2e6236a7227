"""What a driver does with a trained trial: score it on the targets, and register its model."""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from mlflow.entities.model_registry import ModelVersion
from pydantic import BaseModel

from orchestrator.config.job import Job
from orchestrator.config.sections import Registry
from orchestrator.console.progress import Progress
from orchestrator.drivers.waiting import PATIENCE_SECONDS, waiting
from orchestrator.execution.checkpoints import opened
from orchestrator.execution.tasks import evaluate, result_of, score_version, trainable_task
from orchestrator.tracking.evidence import gather
from orchestrator.tracking.gate import Rule, TargetResults
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


def score(job: Job, candidates: Sequence[Candidate]) -> Iterator[dict[str, float]]:
    """Yield the scores of each candidate on the targets, computed on the cluster.

    Raises:
        SweepError: one could not be scored.
        InputError: for a reason that the user has to remove.
    """
    resources = job.resources
    references = [
        trainable_task(evaluate, resources.cpus, resources.gpus, f"score {candidate.name}").remote(
            job.trainable, candidate.values, candidate.checkpoint
        )
        for candidate in candidates
    ]
    for candidate, reference in zip(candidates, references, strict=True):
        yield _scores(reference, candidate.name, job)


class Registration(NamedTuple):
    """Where a candidate is registered, and the gate that it has to pass."""

    registry: Registry
    rule: Rule


def register_candidate(
    job: Job,
    candidate: Candidate,
    scores: Mapping[str, float],
    registration: Registration,
    tracker: Tracker,
    progress: Progress,
) -> RegisteredModel:
    """Register the model of a candidate; waits up to an hour for an MLflow server that does not answer.

    Args:
        job: the job that trained it.
        candidate: the candidate, with the files that its scoring added to its checkpoint.
        scores: its scores on the targets.
        registration: where it is registered.
        tracker: of the job.
        progress: shows what is done.

    Raises:
        TrackingError: MLflow did not accept something.
        SweepError: the champion could not be scored.
        InputError: the checkpoint is damaged.
        Exception: the InputError of the trainable.
    """
    implementation, config, (registry, rule) = job.implementation, candidate.config, registration
    with (
        progress.activity(f"registering the model of {candidate.name}"),
        tempfile.TemporaryDirectory() as folder,
        opened(candidate.checkpoint) as files,
    ):
        data_sets = implementation.prepare(config)
        data = {record.name: record.digest for record in data_sets}
        evidence = gather(job.trainable, implementation, config, files, rule=rule, scores=scores, data=data)
        model: RegisteredModel = waiting(PATIENCE_SECONDS, progress)(
            register,
            tracker,
            candidate.number,
            implementation.export(config, files, Path(folder)),
            model=registry.model,
            alias=registry.alias,
            evaluation=scores,
            record={"parameters": candidate.parameters, "data": data},
            evidence=evidence,
            score_model=lambda version: _score_version(job, candidate, version, tracker.uri, progress),
            data_sets=data_sets,
        )
        return model


def _score_version(
    job: Job, candidate: Candidate, version: ModelVersion, uri: str, progress: Progress
) -> Mapping[str, TargetResults]:
    """Score a registered version on the targets of a candidate; raises InputError or SweepError."""
    name = f"{version.name} version {version.version}"
    task = trainable_task(score_version, job.resources.cpus, job.resources.gpus, f"score {name}")
    with progress.activity(f"scoring {name} on the same targets"):
        reference = task.remote(job.trainable, candidate.values, uri, version)
        results: Mapping[str, TargetResults] = _scores(reference, name, job)
    return results


def _scores(reference: "ray.ObjectRef[Any]", name: str, job: Job) -> Any:
    """Return the result of a task that scores; raises InputError or SweepError."""
    return result_of(reference, f"{name} could not be scored", job.implementation.InputError)
