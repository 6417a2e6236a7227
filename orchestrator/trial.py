"""One trial: a Ray Tune function that runs the trainable on a group of Ray Train workers."""

import json
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray.train
from ray import tune
from ray.exceptions import RayError
from ray.tune.integration.ray_train import CHECKPOINT_PATH_KEY, TuneReportCallback

from orchestrator import trainable

FAILURE = "failure"
"""Key under which a trial reports why it failed, in one line."""

LOG = "log"
"""Key under which a failed trial reports the traceback."""

TRAINED = "trained"
"""Key under which a trial that is going to be scored reports its last checkpoint."""

SCORES = "scores"
"""Key under which a trial reports the scores of its last checkpoint, as JSON: Tune takes mappings apart."""

NAMES = "names"
"""Key under which a report names the metrics of the trainable, among what Ray adds."""

_REPORTED = "reported.json"
"""File of a checkpoint with every report up to it."""


def name(number: int) -> str:
    """The name of a trial everywhere: folder, Ray dashboard, MLflow run."""
    return f"trial-{number:04d}"


def is_epoch(result: Mapping[str, Any]) -> bool:
    """Whether a report is that of an epoch, not that of how the trial went on or ended."""
    return not result.keys() & {FAILURE, TRAINED, SCORES}


@dataclass(frozen=True, slots=True)
class TrialSpec:
    """What every trial of a job shares, small enough to travel with each one."""

    trainable: str
    folder: str
    workers: int
    cpus: float
    gpus: float
    scored: bool
    """Whether each trial's last checkpoint is scored on the targets."""

    def resources_per_worker(self) -> dict[str, float]:
        """Ray resources of one Train worker."""
        return {"CPU": self.cpus, "GPU": self.gpus} if self.gpus else {"CPU": self.cpus}


class WorkerContext:
    """The trainable's view of one Ray Train worker (see `orchestrator.trainable.Context`).

    A checkpoint carries every report up to it. On resume all are made again, since nobody knows which of
    them a dying driver still heard; those who listen leave out what they know.
    """

    def __init__(self) -> None:
        from ray.train.torch import get_device

        context = ray.train.get_context()
        self.rank: int = context.get_world_rank()
        self.world_size: int = context.get_world_size()
        self.device = str(get_device())
        self._reported: list[dict[str, float]] = []

    def report(self, metrics: dict[str, float], save: Callable[[Path], None] | None) -> None:
        """Report one epoch; rank 0 uploads what ``save`` writes as the trial's checkpoint."""
        self._reported.append(metrics)
        report = {**metrics, NAMES: list(metrics)}
        if save is None or self.rank != 0:
            ray.train.report(report)
            return
        with tempfile.TemporaryDirectory() as folder:
            save(Path(folder))
            (Path(folder) / _REPORTED).write_text(json.dumps(self._reported))
            ray.train.report(report, checkpoint=ray.train.Checkpoint.from_directory(folder))

    def restore(self) -> Path | None:
        """A folder with the trial's last checkpoint, or None when it starts from the beginning."""
        checkpoint = ray.train.get_checkpoint()
        if checkpoint is None:
            return None
        folder = Path(checkpoint.to_directory())
        self._reported = json.loads((folder / _REPORTED).read_text())
        for metrics in self._reported:
            ray.train.report({**metrics, NAMES: list(metrics), CHECKPOINT_PATH_KEY: checkpoint.path})
        return folder


def work(job: Mapping[str, Any]) -> None:
    """What each Ray Train worker runs."""
    subject = trainable.load(job["trainable"])
    subject.fit(subject.Config.model_validate(job["config"]), WorkerContext())


def run(point: Mapping[str, Any], spec: TrialSpec) -> None:
    """Train one point on a worker group of its own, from its last checkpoint on, and score it if wanted.

    Args:
        point: ``number`` of the trial in the study, its whole ``config``, and the ``checkpoint`` of one that
            was trained before.
        spec: what every trial of the job shares.
    """
    checkpoint = point["checkpoint"]
    if checkpoint is None:
        try:
            checkpoint = _train(point, spec)
        except ray.train.TrainingFailedError as error:
            failures = error.worker_failures if isinstance(error, ray.train.WorkerGroupError) else {}
            reason = explain(failures[min(failures)] if failures else error)
            tune.report({FAILURE: reason, LOG: str(error)})
            return
    if not spec.scored:
        return
    if checkpoint is None:
        tune.report({FAILURE: "it ended without a checkpoint"})
        return
    tune.report({TRAINED: checkpoint})
    task = trainable_task(evaluate, spec.cpus, spec.gpus, f"score {name(point['number'])}")
    try:
        scores = ray.get(task.remote(spec.trainable, point["config"], checkpoint))
    except RayError as error:
        tune.report({FAILURE: f"it could not be scored: {explain(error)}", LOG: str(error)})
    else:
        tune.report({SCORES: json.dumps(scores)})


def _train(point: Mapping[str, Any], spec: TrialSpec) -> str | None:
    """Train on a worker group; gives the folder of the last checkpoint. Raises TrainingFailedError."""
    from ray.train.torch import TorchTrainer

    trainer = TorchTrainer(
        work,
        train_loop_config={"trainable": spec.trainable, "config": point["config"]},
        scaling_config=ray.train.ScalingConfig(
            num_workers=spec.workers,
            use_gpu=spec.gpus > 0,
            resources_per_worker=spec.resources_per_worker(),
        ),
        run_config=ray.train.RunConfig(
            # Train finds the checkpoint of an interrupted trial by this name.
            name=name(point["number"]),
            storage_path=spec.folder,
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=1),
            callbacks=[TuneReportCallback()],  # type: ignore[no-untyped-call, list-item]
        ),
    )
    checkpoint = trainer.fit().checkpoint
    return None if checkpoint is None else str(checkpoint.path)


def trainable_task(function: Callable[..., Any], cpus: float, gpus: float, label: str) -> Any:
    """A Ray task that works with a trainable; within a trial, it is not held to the trial's own bundle."""
    return ray.remote(function).options(
        num_cpus=cpus, num_gpus=gpus, name=label, scheduling_strategy="DEFAULT", max_retries=0
    )


def evaluate(dotted: str, config: dict[str, Any], checkpoint: str) -> dict[str, float]:
    """Score a checkpoint on the targets; what a Ray task runs."""
    subject = trainable.load(dotted)
    scores = subject.evaluate(subject.Config.model_validate(config), Path(checkpoint))
    return {key: float(value) for key, value in scores.items()}


def explain(error: BaseException) -> str:
    """One line for what was raised inside a Ray task or actor."""
    while isinstance(inner := getattr(error, "cause", None), BaseException):  # Ray wraps what its tasks raise
        error = inner
    lines = [line for line in str(error).splitlines() if line.strip()] or ["no message"]
    line = lines[-1] if isinstance(error, RayError) else f"{type(error).__name__}: {lines[0]}"
    return line[:500]
