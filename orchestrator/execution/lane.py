"""A lane: the Ray Tune trial actor that runs one trial after the other on the same workers."""

import logging
from typing import Any, ClassVar

import ray
from ray import tune
from ray.exceptions import RayError
from ray.util.placement_group import placement_group_table

from orchestrator.errors import SweepError, TrialError
from orchestrator.execution.failures import WorkersLostError
from orchestrator.execution.mailbox import TrialJob
from orchestrator.execution.trial import Reports, run_trial
from orchestrator.execution.worker import TrialSpec
from orchestrator.execution.worker_group import GroupEndedError, WorkerGroup
from orchestrator.study.trial_report import WorkersReplaced, encode

_log = logging.getLogger(__name__)

_SHARE_SECONDS = 10.0
"""Age from which a lane gives its workers back, after a trial, when another job waits for resources."""


class Lane(tune.Trainable):
    """One of the trials that run at once; Tune reuses its process for the next trial.

    Tune asks for one report with every `train`, which tells the workers to continue. A trial that Tune stops
    early therefore ends exactly at its last report.
    """

    spec: ClassVar[TrialSpec]

    def setup(self, config: dict[str, Any]) -> None:
        """Begin the first trial."""
        self._workers: WorkerGroup | None = None
        self._groups = 0
        self._begin(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Begin the next trial."""
        self._end_trial()
        if self._workers is not None and self._workers.age > _SHARE_SECONDS and _another_job_waits():
            self._release()
        self._begin(new_config)
        return True

    def step(self) -> dict[str, Any]:
        """Return the next report of the trial, or an empty result after a second without one."""
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

    def _begin(self, suggestion: dict[str, Any]) -> None:
        self._reports = run_trial(suggestion, self.spec, self._run)

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
        try:
            self._reports.close()
        except (TrialError, WorkersLostError, SweepError) as error:  # the workers died as they were stopped
            _log.warning("%s", error)
            self._release()

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
    """Return whether a placement group of another Ray job waits for resources."""
    job = ray.get_runtime_context().get_job_id()
    try:
        groups: dict[str, dict[str, Any]] = placement_group_table()
    except RayError:
        return False
    # The id of a group ends with that of its job.
    return any(entry["state"] == "PENDING" and group[-8:] != job for group, entry in groups.items())
