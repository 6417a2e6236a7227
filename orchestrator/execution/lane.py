"""A lane: the Ray Tune trial actor that runs one trial after the other on the same workers."""

import logging
import time
from typing import Any, ClassVar

import ray
from ray import tune
from ray.util.placement_group import placement_group_table
from ray.util.state import list_tasks

from orchestrator.errors import SweepError, TrialError, one_line
from orchestrator.execution.failures import WorkersLostError
from orchestrator.execution.mailbox import TrialJob
from orchestrator.execution.trial import Reports, run_trial
from orchestrator.execution.worker import TrialSpec
from orchestrator.execution.worker_group import GroupEndedError, WorkerGroup
from orchestrator.study.trial_report import WorkersReplaced, encode

_log = logging.getLogger(__name__)

_Filter = tuple[str, str, str | bool | int | float]

_SHARE_SECONDS, _MAX_SHARE_SECONDS = 10.0, 600.0
"""Shortest and longest time between two looks whether another job waits for resources."""


class Lane(tune.Trainable):
    """One of the trials that run at once; Tune reuses its process for the next trial.

    Tune asks for one report with every `train`, which tells the workers to continue. A trial that Tune stops
    early therefore ends exactly at its last report.
    """

    spec: ClassVar[TrialSpec]

    def setup(self, config: dict[str, Any]) -> None:
        """Prepare for the first trial."""
        self._workers: WorkerGroup | None = None
        self._groups = 0
        self._share_seconds = _SHARE_SECONDS
        self._looked = time.monotonic()
        self._reports: Reports | None = None
        self._next: dict[str, Any] | None = config

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Note the next trial; Tune would not repeat it if it failed here."""
        self._next = new_config
        return True

    def step(self) -> dict[str, Any]:
        """Return the next report of the trial, or an empty result after a second without one.

        Raises:
            RayError: the mailbox of the workers died. Tune runs the trial again on another lane.
        """
        if self._next is not None:
            self._end_trial()
            self._share()
            self._reports = run_trial(self._next, self.spec, self._run)
            self._next = None
        assert self._reports is not None
        report = next(self._reports)
        return {} if report is None else encode(report)

    def cleanup(self) -> None:
        """Stop the trial, and let the workers end."""
        self._end_trial()
        self._release()

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Save nothing: the workers save the checkpoints of their trial."""

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Load nothing: the trial continues from its checkpoint in the storage."""

    def __repr__(self) -> str:
        return f"lane of {self.spec.job}"

    def _run(self, job: TrialJob) -> Reports:
        """Run a trial on the workers of this lane, on new ones if it has none."""
        while True:
            if self._workers is None:
                self._groups += 1
                name = f"{self.spec.job}-{ray.get_runtime_context().get_actor_id()}-{self._groups}"
                self._workers = WorkerGroup(self.spec, name, self.logdir)
            try:
                yield from self._workers.run(job)
                return
            except GroupEndedError as ended:
                self._workers = None
                if ended.fault:
                    yield WorkersReplaced(ended.fault)
            except (TrialError, WorkersLostError, SweepError):
                self._release()
                raise

    def _end_trial(self) -> None:
        if self._reports is not None:
            self._reports.close()

    def _share(self) -> None:
        """Give the workers back if another job waits for resources, each time less often."""
        now = time.monotonic()
        if self._workers is None or now - self._looked < self._share_seconds:
            return
        self._looked = now
        if _another_job_waits():
            self._release()
            self._share_seconds = min(2 * self._share_seconds, _MAX_SHARE_SECONDS)

    def _release(self) -> None:
        if self._workers is not None:
            self._workers.close()
            self._workers = None


def lane_class(spec: TrialSpec, bundle: tune.PlacementGroupFactory) -> type[Lane]:
    """Return the lane of a job, with the resources of its process; its workers have their own."""

    class JobLane(Lane):
        @classmethod
        def default_resource_request(cls, config: dict[str, Any]) -> tune.PlacementGroupFactory:
            return bundle

    JobLane.__name__ = JobLane.__qualname__ = Lane.__name__
    JobLane.spec = spec
    return JobLane


def _another_job_waits() -> bool:
    """Return whether a placement group, a task or an actor of another Ray job waits for resources."""
    context = ray.get_runtime_context()
    job = context.get_job_id()
    try:
        groups: dict[str, dict[str, Any]] = placement_group_table()
        # The id of a group ends with that of its job.
        if any(entry["state"] == "PENDING" and group[-8:] != job for group, entry in groups.items()):
            return True
        waits: list[_Filter] = [("state", "=", "PENDING_NODE_ASSIGNMENT"), ("job_id", "!=", job)]
        return bool(list_tasks(address=context.gcs_address, filters=waits, limit=1, timeout=10))
    except Exception as error:  # Ray raises many types while its dashboard is unreachable
        _log.warning("cannot see whether another job waits: %s", one_line(error, 300))
        return False
