"""A group of Ray Train workers that runs one trial after the other."""

import contextlib
import threading
from collections.abc import Callable, Generator
from concurrent.futures import Future, wait
from typing import Any

import ray
import ray.train
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from orchestrator.errors import StorageError, is_full, one_line, plain_text
from orchestrator.execution.failures import (
    WorkersLostError,
    classify_controller_failure,
    classify_worker_failures,
)
from orchestrator.execution.mailbox import Mailbox, TrialJob
from orchestrator.execution.worker import TrialSpec, run_worker
from orchestrator.study.trial_report import TrialReport, decode, is_last

POLL_SECONDS = 1.0
"""How long a lane waits for a report before it looks whether its workers still run."""

_END_SECONDS = 30.0
"""How long a lane waits until idle workers have ended."""


class GroupEndedError(Exception):
    """The workers ended before they took the trial; ``fault`` says why, empty after their last trial."""

    def __init__(self, fault: str) -> None:
        super().__init__(fault)
        self.fault = fault


class WorkerGroup:
    """The workers of one lane, which Ray Train places, connects and watches.

    It ends by itself when a worker fails, when a trial left something behind, and after
    ``trials_per_worker`` trials.
    """

    def __init__(self, spec: TrialSpec, name: str, scratch: str) -> None:
        """Request the workers.

        Args:
            spec: what all trials of the job share.
            name: of the run of Ray Train, on the Ray dashboard.
            scratch: a local folder for the records that Ray Train keeps, which are never read.
        """
        self._scored = spec.scores_trials
        this_node = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        actor: Any = ray.remote(Mailbox).options(num_cpus=0, scheduling_strategy=this_node)
        self._mailbox = actor.remote(spec.workers, spec.trials_per_worker)
        self._outcome: Future[ray.train.Result] = Future()
        trainer = _trainer(spec, self._mailbox, name, scratch)
        threading.Thread(target=_settle, args=(self._outcome, trainer.fit), daemon=True).start()
        self._idle = True
        self._trials = 0

    def run(self, job: TrialJob) -> Generator[TrialReport | None, None, None]:
        """Run a trial; yield each of its reports, and None every second without one.

        The trial continues after a report when the next one is asked for. It stops early when the iterator
        is closed.

        Raises:
            TrialError: the trial failed, and the workers with it.
            WorkersLostError: the workers are lost by a fault of a machine or of the storage.
            StorageError: no space is left.
            GroupEndedError: the workers had ended before.
            RayError: the mailbox died; the workers end with the process of the lane.
        """
        self._idle = False
        self._trials += 1
        ray.get(self._mailbox.hand.remote(job))
        while True:
            ended = self._outcome.done()
            message = ray.get(self._mailbox.receive.remote(POLL_SECONDS))
            if message is None and ended:
                self._raise_outcome(job.number)
            report = None if message is None else decode(message[0])
            self._idle = report is not None and is_last(report, self._scored)
            if message is None or not message[1]:
                yield report
            else:
                yield from self._await_verdict(report)

    def _await_verdict(self, report: TrialReport | None) -> Generator[TrialReport | None, None, None]:
        try:
            yield report
        except GeneratorExit:
            self._idle = True
            with contextlib.suppress(RayError):  # workers without a mailbox end
                ray.get(self._mailbox.answer.remote(False))
            raise
        ray.get(self._mailbox.answer.remote(True))

    def close(self) -> None:
        """Let the workers end. Busy ones end with the process of their lane."""
        with contextlib.suppress(RayError):
            ray.get(self._mailbox.close.remote())
        if self._idle:
            wait([self._outcome], _END_SECONDS)

    def _raise_outcome(self, number: int) -> None:
        """Raise why the workers have ended; a trial that they did not take is not to blame."""
        taken = ray.get(self._mailbox.was_taken.remote(number))
        failure = self._outcome.exception()
        if not taken and failure is None:
            raise GroupEndedError(ray.get(self._mailbox.fault.remote()))
        if not taken and self._trials > 1:
            raise GroupEndedError(f"its workers ended: {one_line(failure, 300)}") from failure
        try:
            self._outcome.result()
        except ray.train.WorkerGroupError as error:
            raise classify_worker_failures(error.worker_failures, plain_text(error)) from error
        except (ray.train.TrainingFailedError, RayError) as error:
            raise classify_controller_failure(error) from error
        except OSError as error:
            if is_full(error):
                raise StorageError(f"storage: {error}", full=True) from error
            raise WorkersLostError(one_line(f"storage: {error}", 300), str(error), by_storage=True) from error
        raise WorkersLostError("its workers ended before the trial's end", "", by_storage=False)


def _trainer(spec: TrialSpec, mailbox: Any, name: str, scratch: str) -> "ray.train.torch.TorchTrainer":
    from ray.train.torch import TorchTrainer

    return TorchTrainer(
        run_worker,
        train_loop_config={"spec": spec, "mailbox": mailbox},
        scaling_config=ray.train.ScalingConfig(
            num_workers=spec.workers,
            use_gpu=spec.gpus > 0,
            resources_per_worker=spec.resources_per_worker(),
        ),
        run_config=ray.train.RunConfig(name=name, storage_path=scratch),
    )


def _settle(future: Future[Any], function: Callable[[], Any]) -> None:
    """Run ``function`` and set its result or exception, whatever it is."""
    try:
        future.set_result(function())
    except BaseException as error:
        future.set_exception(error)
