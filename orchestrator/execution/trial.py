"""One trial: a Ray Tune function that runs the trainable on a group of Ray Train workers."""

import contextlib
import faulthandler
import json
import os
import re
import tempfile
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.fs
import ray.train
from ray import tune
from ray.exceptions import RayError, RayTaskError
from ray.train import UserCallback
from ray.tune.integration.ray_train import CHECKPOINT_PATH_KEY
from ray.util.queue import Empty, Queue
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_exception_type,
    wait_random_exponential,
)

from orchestrator import trainable
from orchestrator.errors import StorageError, is_full
from orchestrator.execution.checkpoints import TrialFolder, storing
from orchestrator.execution.metrics import mark_worker

FAILURE = "failure"
"""Key under which a trial reports why it failed, in one line."""

LOG = "log"
"""Key under which a failed trial reports the traceback."""

TRAINED = "trained"
"""Key under which a trial that is going to be scored reports its last checkpoint."""

SCORES = "scores"
"""Key under which a trial reports the scores of its last checkpoint, as JSON: Tune takes mappings apart."""

STARTED = "started"
"""Key under which a trial reports that its workers run, after it waited for them."""

LOST = "lost"
"""Key under which a trial reports what it lost, before it goes on from its last checkpoint."""

HALT = "halt"
"""Key under which a trial reports why no trial can go on; it stays unfinished."""

NAMES = "names"
"""Key under which a report names the metrics of the trainable, among what Ray adds."""

_REPORTED = "reported.json"
"""File of a checkpoint with every report up to it."""

_REPORT_SECONDS = 1.0
"""How long a trial waits for a report before it looks whether its training has ended."""

_HUNG = "hung"
"""Files of a trial's folder that begin so hold the stacks of its worker when it was given up as hung."""

_HANGS = 2
"""How often a trial may hang before it fails."""

_ATTEMPTS = 5
"""How often in a row a trial may lose its workers without a new checkpoint before it fails."""


def name(number: int) -> str:
    """The name of a trial everywhere: folder, Ray dashboard, MLflow run."""
    return f"trial-{number:04d}"


def is_epoch(result: Mapping[str, Any]) -> bool:
    """Whether a report is that of an epoch, not that of how the trial went on or ended."""
    return not result.keys() & {FAILURE, TRAINED, SCORES, STARTED, LOST, HALT}


@dataclass(frozen=True, slots=True)
class TrialSpec:
    """What every trial of a job shares, small enough to travel with each one."""

    job: str
    trainable: str
    folder: str
    filesystem: pyarrow.fs.FileSystem | None
    """Where the folder lies; None for a local or shared one."""

    workers: int
    cpus: float
    gpus: float
    silence: float
    """Seconds without a report after which a worker counts as hung."""

    scored: bool
    """Whether each trial's last checkpoint is scored on the targets."""

    def resources_per_worker(self) -> dict[str, float]:
        """Ray resources of one Train worker."""
        return {"CPU": self.cpus, "GPU": self.gpus} if self.gpus else {"CPU": self.cpus}

    def folder_of(self, number: int) -> TrialFolder:
        """The folder of a trial."""
        return TrialFolder(self.filesystem or pyarrow.fs.LocalFileSystem(), f"{self.folder}/{name(number)}")


class WorkerContext:
    """The trainable's view of one Ray Train worker (see `orchestrator.trainable.Context`).

    A checkpoint carries every report up to it. On resume all are made again, since nobody knows which of
    them a dying driver still heard; those who listen leave out what they know.
    """

    def __init__(self, folder: TrialFolder, sign_of_life: Callable[[], None] = lambda: None) -> None:
        from ray.train.torch import get_device

        context = ray.train.get_context()
        self.rank: int = context.get_world_rank()
        self.world_size: int = context.get_world_size()
        self.device = str(get_device())
        self._reported: list[dict[str, float]] = []
        self._folder, self._sign_of_life = folder, sign_of_life
        ray.train.report({STARTED: True})

    def report(self, metrics: dict[str, float], save: Callable[[Path], None] | None) -> None:
        """Report one epoch; rank 0 uploads what ``save`` writes as the trial's checkpoint."""
        self._reported.append(metrics)
        report = {**metrics, NAMES: list(metrics)}
        if save is None or self.rank != 0:
            with storing():
                ray.train.report(report)
        else:
            with tempfile.TemporaryDirectory() as folder, storing():
                save(Path(folder))
                (Path(folder) / _REPORTED).write_text(json.dumps(self._reported))
                checkpoint = ray.train.Checkpoint.from_directory(folder)
                ray.train.report(report, checkpoint=checkpoint, checkpoint_upload_fn=self._folder.upload)
        self._sign_of_life()

    def restore(self) -> Path | None:
        """A folder with the trial's last checkpoint, or None when it starts from the beginning."""
        checkpoint = ray.train.get_checkpoint()
        if checkpoint is None:
            return None
        with storing():
            folder = Path(checkpoint.to_directory())
            self._reported = json.loads((folder / _REPORTED).read_text())
        for metrics in self._reported:
            ray.train.report({**metrics, NAMES: list(metrics), CHECKPOINT_PATH_KEY: checkpoint.path})
        self._sign_of_life()
        return folder


def work(job: Mapping[str, Any]) -> None:
    """What each Ray Train worker runs."""
    subject = trainable.load(job["trainable"])
    spec, number = job["spec"], job["number"]
    alive, over = threading.Event(), threading.Event()
    threading.Thread(target=_watch, args=(alive, over, spec, number), daemon=True).start()
    threading.Thread(target=mark_worker, args=(spec.job, name(number), over), daemon=True).start()
    try:
        context = WorkerContext(spec.folder_of(number), alive.set)
        subject.fit(subject.Config.model_validate(job["config"]), context)
    finally:
        over.set()
        alive.set()


def _watch(alive: threading.Event, over: threading.Event, spec: TrialSpec, number: int) -> None:
    """End this worker when it shows no sign of life for too long, and keep what it was doing."""
    while alive.wait(spec.silence):
        if over.is_set():
            return
        alive.clear()
    try:
        with tempfile.TemporaryFile() as stacks:
            faulthandler.dump_traceback(stacks)
            stacks.seek(0)
            worker = ray.get_runtime_context().get_worker_id()
            spec.folder_of(number).write(f"{_HUNG}-{worker}.txt", stacks.read())
    finally:
        os._exit(1)


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
        except TrialError as error:
            tune.report({FAILURE: error.reason, LOG: error.log})
            return
        except StorageError as error:
            tune.report({HALT: str(error)})
            return
    if not spec.scored:
        return
    if checkpoint is None:
        tune.report({FAILURE: "it ended without a checkpoint"})
        return
    tune.report({TRAINED: checkpoint})
    task = trainable_task(evaluate, spec.cpus, spec.gpus, f"score {name(point['number'])}")
    try:
        trained = ray.train.Checkpoint(checkpoint, spec.filesystem)
        scores = ray.get(task.remote(spec.trainable, point["config"], trained))
    except RayError as error:
        tune.report({FAILURE: f"it could not be scored: {explain(error)}", LOG: str(error)})
    else:
        tune.report({SCORES: json.dumps(scores)})


class TrialError(Exception):
    """A trial failed, by a fault of its own or by too many of its machines."""

    def __init__(self, reason: str, log: str) -> None:
        super().__init__(reason)
        self.reason, self.log = reason, log


class _LostError(Exception):
    """A machine or the storage failed the trial; ``patient``: it is worth any number of attempts."""

    def __init__(self, reason: str, log: str, patient: bool) -> None:
        super().__init__(reason)
        self.reason, self.log, self.patient = reason, log, patient


def _train(point: Mapping[str, Any], spec: TrialSpec) -> str | None:
    """Train on a worker group until it is done; gives the folder of the last checkpoint.

    What a machine fails is tried again from the last checkpoint, elsewhere if need be: for ever while there
    is progress, or while the storage does not answer.

    Raises:
        TrialError: the trial failed by itself, hung twice, or lost its workers too often without progress.
        StorageError: there is no space left.
    """
    folder = spec.folder_of(point["number"])

    def tell(state: RetryCallState) -> None:
        assert state.outcome is not None
        tune.report({LOST: str(state.outcome.exception())[:500]})

    waits = wait_random_exponential(min=0.5, max=30)
    look = Retrying(retry=retry_if_exception_type(OSError), wait=waits, before_sleep=tell)
    stacks = set(look(folder.names, _HUNG))
    hangs, known, vain = min(len(stacks), 1), look(folder.registered), 0

    def give_up(state: RetryCallState) -> bool:
        nonlocal stacks, hangs, known, vain
        assert state.outcome is not None
        error = state.outcome.exception()
        assert isinstance(error, _LostError)
        if error.patient:
            return False
        found = set(look(folder.names, _HUNG))
        if found - stacks:  # one for each worker that had the time
            stacks, hangs = found, hangs + 1
        before, known = known, look(folder.registered)
        vain = 1 if known != before else vain + 1
        return vain >= _ATTEMPTS or hangs >= _HANGS

    attempts = Retrying(
        retry=retry_if_exception_type(_LostError),
        stop=give_up,
        wait=waits,
        before_sleep=tell,
        reraise=True,
    )
    try:
        checkpoint: str | None = attempts(_attempt, point, spec)
    except _LostError as error:
        if hangs >= _HANGS:
            reason = f"it hung: no report for {spec.silence:g} s, {_HANGS} times"
            raise TrialError(reason, look(folder.read, max(stacks))) from error
        raise TrialError(f"{error.reason}, {_ATTEMPTS} times without progress", error.log) from error
    return checkpoint


def _attempt(point: Mapping[str, Any], spec: TrialSpec) -> str | None:
    """Train on a worker group from the last checkpoint on; raises as `_train`, or _LostError."""
    from ray.train.torch import TorchTrainer

    number = point["number"]
    folder = spec.folder_of(number)
    folder.forget_unregistered()
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    reports = Queue(actor_options={"num_cpus": 0, "scheduling_strategy": here})
    trainer = TorchTrainer(
        work,
        train_loop_config={
            "trainable": spec.trainable,
            "config": point["config"],
            "spec": spec,
            "number": number,
        },
        scaling_config=ray.train.ScalingConfig(
            num_workers=spec.workers,
            use_gpu=spec.gpus > 0,
            resources_per_worker=spec.resources_per_worker(),
        ),
        run_config=ray.train.RunConfig(
            # Train finds the checkpoint of an interrupted trial by this name.
            name=name(number),
            storage_path=spec.folder,
            storage_filesystem=spec.filesystem,
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=1),
            callbacks=[Forward(reports)],  # type: ignore[list-item]
        ),
    )
    outcome: Future[ray.train.Result] = Future()
    threading.Thread(target=_settle, args=(outcome, trainer.fit), daemon=True).start()
    try:
        # Only this thread reports to Tune: it hangs when two do, as with Ray's own callback for this.
        while not outcome.done() or not reports.empty():
            with contextlib.suppress(Empty):
                tune.report(reports.get(timeout=_REPORT_SECONDS))
        checkpoint = outcome.result().checkpoint
    except ray.train.WorkerGroupError as error:
        raise _cause(error.worker_failures, str(error)) from error
    except (ray.train.TrainingFailedError, RayError) as error:  # of Train's controller, or of a preemption
        stored = _is_of_storage(error)
        reason = explain(getattr(error, "controller_failure", error))
        raise _LostError(f"storage: {reason}" if stored else reason, str(error), patient=stored) from error
    except OSError as error:
        if is_full(error):
            raise StorageError(f"storage: {error}", full=True) from error
        raise _LostError(f"storage: {error}"[:300], str(error), patient=True) from error
    folder.forget_unregistered()
    return None if checkpoint is None else str(checkpoint.path)


class Forward(UserCallback):
    """Hands what rank 0 reports, with the path of its checkpoint, from Train's controller to the trial."""

    def __init__(self, reports: Queue) -> None:
        self._reports = reports

    def after_report(
        self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: ray.train.Checkpoint | None
    ) -> None:
        """Forward one report."""
        path = {} if checkpoint is None else {CHECKPOINT_PATH_KEY: checkpoint.path}
        self._reports.put({**metrics[0], **path})


def _settle(future: Future[Any], function: Callable[[], Any]) -> None:
    try:
        future.set_result(function())
    except BaseException as error:
        future.set_exception(error)


def _cause(failures: Mapping[int, BaseException], log: str) -> Exception:
    """What the failures of a worker group mean: when a machine fails, the workers on others fail with it."""
    found = list(failures.values())
    if full := next((each for each in found if isinstance(each, StorageError) and each.full), None):
        return full
    if unanswered := next((each for each in found if isinstance(each, StorageError)), None):
        return _LostError(str(unanswered), log, patient=not unanswered.missing)
    machine = next((each for each in found if _is_of_a_machine(each)), None)
    if machine is None:
        return TrialError(explain(failures[min(failures)]), log)
    reason = explain(machine)
    if "running low on memory" in log:  # Ray ends the worker that takes too much
        used = re.search(r"running low on memory.* was (\S+ used / \S+ limit)", log)
        return TrialError(f"out of memory: its node ran low{', ' + used[1] if used else ''}", log)
    return _LostError(reason, log, patient=False)


def _is_of_a_machine(error: BaseException) -> bool:
    if isinstance(error, RayTaskError):  # raised by code of the trainable
        return False
    # Ray Train has no public names for what the checks of its workers find.
    return isinstance(error, RayError) or type(error).__name__.startswith("WorkerHealthCheck")


def trainable_task(function: Callable[..., Any], cpus: float, gpus: float, label: str) -> Any:
    """A Ray task that works with a trainable; within a trial, it is not held to the trial's own bundle."""
    return ray.remote(function).options(
        num_cpus=cpus, num_gpus=gpus, name=label, scheduling_strategy="DEFAULT", max_retries=0
    )


def evaluate(dotted: str, config: dict[str, Any], checkpoint: ray.train.Checkpoint) -> dict[str, float]:
    """Score a checkpoint on the targets; what a Ray task runs."""
    subject = trainable.load(dotted)
    with checkpoint.as_directory() as folder:
        scores = subject.evaluate(subject.Config.model_validate(config), Path(folder))
    return {key: float(value) for key, value in scores.items()}


def explain(error: BaseException) -> str:
    """One line for what was raised inside a Ray task or actor."""
    error = _root(error)
    lines = [line for line in str(error).splitlines() if line.strip()] or ["no message"]
    line = lines[-1] if isinstance(error, RayError) else f"{type(error).__name__}: {lines[0]}"
    return line.partition(" Some common causes")[0][:500]


def _root(error: BaseException) -> BaseException:
    """What was raised first: Ray wraps what its tasks raise, and Ray Train what ended a worker."""
    for wrapping in ("cause", "health_check_failure", "controller_failure"):
        if isinstance(inner := getattr(error, wrapping, None), BaseException):
            return _root(inner)
    return error


def _is_of_storage(error: BaseException) -> bool:
    """Whether Train's controller failed for want of its storage; it runs no code of a trainable.

    One that dies as it begins leaves only words: those of Arrow's S3 client.
    """
    return isinstance(_root(error), OSError) or "AWS Error" in str(error)
