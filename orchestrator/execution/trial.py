"""One trial: a Ray Tune function that trains on a group of Ray Train workers and retries if it loses them."""

import contextlib
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import replace
from typing import Any

import ray
import ray.train
from ray import tune
from ray.exceptions import RayError
from ray.train import UserCallback
from ray.util.queue import Empty, Queue
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from tenacity import RetryCallState, Retrying, retry_if_exception_type, wait_random_exponential

from orchestrator.errors import StorageError, TrialError, is_full, one_line
from orchestrator.execution.checkpoints import TrialFolder
from orchestrator.execution.failures import (
    Decision,
    FailurePolicy,
    WorkersLostError,
    classify_controller_failure,
    classify_worker_failures,
    explain,
)
from orchestrator.execution.tasks import evaluate, trainable_task
from orchestrator.execution.worker import HANG_PREFIX, TrialSpec, run_worker
from orchestrator.study.trial_report import (
    EpochEnded,
    Failed,
    Halted,
    Scored,
    Trained,
    TrialReport,
    WorkersLost,
    decode,
    encode,
    trial_name,
)

_REPORT_SECONDS = 1.0
"""How long a trial waits for a report before it looks whether its training has ended."""

_WAITS = wait_random_exponential(min=0.5, max=30)


def run_trial(suggestion: Mapping[str, Any], spec: TrialSpec) -> None:
    """Train one suggestion from its last checkpoint on, and score it if the job scores every trial.

    Args:
        suggestion: the fields of `orchestrator.study.base.Suggestion`.
        spec: what all trials of the job share.
    """
    checkpoint = suggestion["checkpoint"]
    if checkpoint is None:
        try:
            checkpoint = _train(suggestion, spec)
        except TrialError as error:
            _report(Failed(error.reason, error.log))
            return
        except StorageError as error:
            _report(Halted(str(error)))
            return
    if spec.scores_trials:
        _score(suggestion, spec, checkpoint)


def _score(suggestion: Mapping[str, Any], spec: TrialSpec, path: str | None) -> None:
    if path is None:
        _report(Failed("it ended without a checkpoint"))
        return
    _report(Trained(path))
    task = trainable_task(evaluate, spec.cpus, spec.gpus, f"score {trial_name(suggestion['number'])}")
    try:
        checkpoint = ray.train.Checkpoint(path, spec.filesystem)
        scores = ray.get(task.remote(spec.trainable, suggestion["config"], checkpoint))
    except RayError as error:
        _report(Failed(f"it could not be scored: {explain(error)}", str(error)))
    else:
        _report(Scored(scores))


def _train(suggestion: Mapping[str, Any], spec: TrialSpec) -> str | None:
    """Train until the trial is done; return the path of its last checkpoint.

    Raises:
        TrialError: the trial failed.
        StorageError: no space is left.
    """
    folder = spec.trial_folder(suggestion["number"])
    storage = Retrying(retry=retry_if_exception_type(OSError), wait=_WAITS, before_sleep=_report_lost)
    hangs = set(storage(folder.list_names, HANG_PREFIX))
    policy = FailurePolicy(storage(folder.registered), len(hangs))
    checkpoint: str | None = None
    for attempt in Retrying(
        retry=retry_if_exception_type(WorkersLostError), wait=_WAITS, before_sleep=_report_lost, reraise=True
    ):
        with attempt:
            try:
                checkpoint = _attempt(suggestion, spec, folder)
            except (WorkersLostError, TrialError, StorageError) as error:
                registered, before = "", hangs
                if isinstance(error, WorkersLostError) and not error.unlimited:
                    registered = storage(folder.registered)
                    hangs = set(storage(folder.list_names, HANG_PREFIX))
                decision = policy.decide(error, checkpoint=registered, hung=bool(hangs - before))
                if decision is not Decision.FAIL or not isinstance(error, WorkersLostError):
                    raise
                if policy.has_hung:
                    reason = f"{policy.reason}: no report for {spec.report_timeout:g} s"
                    raise TrialError(reason, storage(folder.read, max(hangs))) from error
                raise TrialError(policy.reason, error.log) from error
    return checkpoint


def _attempt(suggestion: Mapping[str, Any], spec: TrialSpec, folder: TrialFolder) -> str | None:
    """Train on one worker group from the last checkpoint on; raises as `_train`, or WorkersLostError."""
    folder.delete_unregistered()
    this_node = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    reports = Queue(actor_options={"num_cpus": 0, "scheduling_strategy": this_node})
    outcome: Future[ray.train.Result] = Future()
    trainer = _trainer(suggestion, spec, reports)
    threading.Thread(target=_settle, args=(outcome, trainer.fit), daemon=True).start()
    try:
        # Only this thread reports to Tune: Tune hangs when two do, as with Ray's own callback for this.
        while not outcome.done() or not reports.empty():
            with contextlib.suppress(Empty):
                tune.report(reports.get(timeout=_REPORT_SECONDS))
        checkpoint = outcome.result().checkpoint
    except ray.train.WorkerGroupError as error:
        raise classify_worker_failures(error.worker_failures, str(error)) from error
    except (ray.train.TrainingFailedError, RayError) as error:
        raise classify_controller_failure(error) from error
    except OSError as error:
        if is_full(error):
            raise StorageError(f"storage: {error}", full=True) from error
        raise WorkersLostError(one_line(f"storage: {error}", 300), str(error), unlimited=True) from error
    folder.delete_unregistered()
    return None if checkpoint is None else str(checkpoint.path)


def _trainer(
    suggestion: Mapping[str, Any], spec: TrialSpec, reports: Queue
) -> "ray.train.torch.TorchTrainer":
    from ray.train.torch import TorchTrainer

    number = suggestion["number"]
    return TorchTrainer(
        run_worker,
        train_loop_config={
            "trainable": spec.trainable,
            "config": suggestion["config"],
            "spec": spec,
            "number": number,
        },
        scaling_config=ray.train.ScalingConfig(
            num_workers=spec.workers,
            use_gpu=spec.gpus > 0,
            resources_per_worker=spec.resources_per_worker(),
        ),
        run_config=ray.train.RunConfig(
            # By this name Train finds the checkpoint of an interrupted trial.
            name=trial_name(number),
            storage_path=spec.folder,
            storage_filesystem=spec.filesystem,
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=1),
            callbacks=[ForwardReports(reports)],  # type: ignore[list-item]
        ),
    )


class ForwardReports(UserCallback):
    """Hands the reports of rank 0, with the path of its checkpoint, from Train's controller to the trial."""

    def __init__(self, reports: Queue) -> None:
        self._reports = reports

    def after_report(
        self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: ray.train.Checkpoint | None
    ) -> None:
        """Forward one report."""
        report = decode(metrics[0])
        if isinstance(report, EpochEnded) and checkpoint is not None:
            report = replace(report, checkpoint=str(checkpoint.path))
        if report is not None:
            self._reports.put(encode(report))


def _report(report: TrialReport) -> None:
    tune.report(encode(report))


def _report_lost(state: RetryCallState) -> None:
    assert state.outcome is not None
    _report(WorkersLost(one_line(state.outcome.exception(), 500)))


def _settle(future: Future[Any], function: Callable[[], Any]) -> None:
    """Run ``function`` and set its result or exception, whatever it is."""
    try:
        future.set_result(function())
    except BaseException as error:
        future.set_exception(error)
