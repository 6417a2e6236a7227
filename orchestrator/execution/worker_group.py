"""A group of Ray Train workers that runs one trial after the other."""

import contextlib
import threading
import time
from collections.abc import Callable, Generator
from concurrent.futures import Future
from typing import Any

import ray
import ray.train
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from orchestrator.errors import StorageError, is_full, one_line
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
    """The workers ended before they took the trial; ``fault`` says whether their last trial is the cause."""

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
        self._begin = time.monotonic()
        self._idle = True

    @property
    def age(self) -> float:
        """Seconds since the workers were requested."""
        return time.monotonic() - self._begin

    def run(self, job: TrialJob) -> Generator[TrialReport | None, None, None]:
        """Run a trial; yield each of its reports, and None every second without one.

        The trial continues after a report when the next one is asked for. It stops early when the iterator
        is closed.

        Raises:
            TrialError: the trial failed, and the workers with it.
            WorkersLostError: the workers are lost by a fault of a machine or of the storage.
            StorageError: no space is left.
            GroupEndedError: the workers had ended before.
        """
        self._idle = False
        started = False
        try:
            ray.get(self._mailbox.hand.remote(job))
            while True:
                message = ray.get(self._mailbox.receive.remote(POLL_SECONDS))
                if message is None and self._outcome.done():
                    self._raise_outcome(started)
                report = None if message is None else decode(message[0])
                started = started or report is not None
                self._idle = report is not None and is_last(report, self._scored)
                if message is None or not message[1]:
                    yield report
                else:
                    yield from self._await_verdict(job.number, report)
        except RayError as error:  # the mailbox died
            raise classify_controller_failure(error) from error

    def _await_verdict(
        self, number: int, report: TrialReport | None
    ) -> Generator[TrialReport | None, None, None]:
        continues = False
        try:
            yield report
            continues = True
        finally:
            self._idle = not continues
            ray.get(self._mailbox.answer.remote(number, continues))

    def close(self) -> None:
        """Let the workers end. Busy ones end with the process of their lane."""
        with contextlib.suppress(RayError):
            ray.get(self._mailbox.close.remote())
        if self._idle:
            with contextlib.suppress(Exception):  # what ended them earlier no longer matters
                self._outcome.result(_END_SECONDS)

    def _raise_outcome(self, started: bool) -> None:
        """Raise why the workers have ended."""
        try:
            self._outcome.result()
        except ray.train.WorkerGroupError as error:
            raise classify_worker_failures(error.worker_failures, str(error)) from error
        except (ray.train.TrainingFailedError, RayError) as error:
            raise classify_controller_failure(error) from error
        except OSError as error:
            if is_full(error):
                raise StorageError(f"storage: {error}", full=True) from error
            raise WorkersLostError(one_line(f"storage: {error}", 300), str(error), unlimited=True) from error
        if started:
            raise WorkersLostError("its workers ended before the trial", "", unlimited=False)
        raise GroupEndedError(ray.get(self._mailbox.fault.remote()))


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
