"""What every driver does: check, plan, prepare the data, run the trials, conclude."""

import contextlib
import hashlib
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar, Generic, Literal, TypeVar

from optuna.exceptions import StorageInternalError
from pydantic import BaseModel
from rich.console import RenderableType
from sqlalchemy.exc import SQLAlchemyError

from orchestrator.components import code_digests, describe_raised
from orchestrator.config.document import strings
from orchestrator.config.job import Job
from orchestrator.console.progress import Progress
from orchestrator.drivers.waiting import PATIENCE_SECONDS, waiting
from orchestrator.errors import (
    ExitCode,
    InputError,
    LeaseLostError,
    StorageError,
    SweepError,
    TrackingError,
    UnreachableError,
)
from orchestrator.execution import cluster
from orchestrator.execution.cluster import Cluster
from orchestrator.execution.metrics import EndOfDriver, OutcomeMetric
from orchestrator.execution.reaper import ResourceReaper
from orchestrator.execution.runner import RunEnd, run_trials
from orchestrator.execution.tasks import check_bucket
from orchestrator.interrupt import Interrupt
from orchestrator.storage.directory import JobDirectory
from orchestrator.storage.lease import Activity, Lease
from orchestrator.storage.records import DamagedError
from orchestrator.storage.study_database import Problem, database_problem, explained_damage
from orchestrator.study.base import Study
from orchestrator.tracking import preflight
from orchestrator.tracking.tracker import Tracker
from orchestrator.trainable import DataSetRecord

_log = logging.getLogger(__name__)


class Outcome(BaseModel):
    """The record of a finished job."""

    tracking: str
    """Address of the tracking store."""

    report: str
    """Where a user finds the report."""

    delivered: bool = True
    """Whether all records have reached MLflow, and all files the storage."""


OutcomeType = TypeVar("OutcomeType", bound=Outcome)
StudyType = TypeVar("StudyType", bound=Study)


class Driver(ABC, Generic[OutcomeType]):
    """Drives one job from its validated file to its outcome."""

    outcome_type: ClassVar[type[Outcome]]

    trials_report_all: ClassVar[bool] = True
    """Whether each trial has to report every metric that the job needs."""

    after_failure: ClassVar[str] = "start over with --fresh, or rerun the command with a larger budget"
    """What helps once no trial has succeeded."""

    def __init__(self, job: Job, progress: Progress, interrupt: Interrupt) -> None:
        self._job, self._progress, self._interrupt = job, progress, interrupt
        self._directory = JobDirectory(job)
        self._refused_files: list[str] = []
        """What the storage did not take of the files that only show the outcome."""

    @property
    def trainable_package(self) -> str:
        """The top-level package of the trainable, which is also the name of its logger."""
        return self._job.trainable.partition(":")[0].partition(".")[0]

    def run(self, *, address: str | None, dry_run: bool, fresh: bool) -> int:
        """Drive the job; return the exit code.

        Args:
            address: the Ray cluster; None for RAY_ADDRESS or a local one.
            dry_run: stop after the plan.
            fresh: start over.

        Raises:
            InputError: the user's input is wrong; nothing was written.
            UnreachableError: a server or the storage does not answer now; no trial was started.
        """
        try:
            outcome = None if fresh else self._finished_outcome()
            if outcome is not None:
                self._progress.print(
                    f"the {self._job.kind} {self._job.name} is finished; --fresh starts it over"
                )
                self._present(outcome)
                return ExitCode.DONE
            if not dry_run:
                self._directory.check_driver()
            with self._explained_errors():
                try:
                    if not fresh:
                        self._directory.check_study()
                    joined = self._check_and_plan(address, fresh)
                except StorageError as error:
                    raise error.as_input_error() from error
                if dry_run:
                    self._progress.print("dry run: file, data and servers were checked; nothing was written")
                    return ExitCode.DONE
                code, outcome = self._run(joined, fresh)
                if outcome is not None:
                    self._present(outcome)
                return code
        except InputError as error:
            kind = UnreachableError if isinstance(error, UnreachableError) else InputError
            raise kind(self._job.located(str(error))) from error
        except LeaseLostError:  # the lease has said so
            return ExitCode.LEASE_LOST
        except SweepError as error:
            _log.error("%s; finished work is kept, rerun the command to resume", error)
            return ExitCode.INTERRUPTED if self._interrupt.requested else ExitCode.FAILED

    def _present(self, outcome: OutcomeType) -> None:
        """Show an outcome, and what has changed in the registry since it was recorded."""
        self.summarise(outcome)
        for line in self.registry_changes(outcome):
            self._progress.print(line)

    def run_within(self, joined: Cluster, sweep_id: str) -> tuple[int, OutcomeType | None]:
        """Run within the driver of a sweep, on its cluster; return the exit code and the outcome.

        A job of this name that belongs to an earlier sweep is set aside.
        """
        recorded = self._directory.recorded()
        fresh = recorded is not None and recorded["resolved"].get("sweep") != sweep_id
        outcome = None if fresh else self._finished_outcome()
        if outcome is not None:
            return ExitCode.DONE, outcome
        patiently = waiting(PATIENCE_SECONDS, self._progress)
        ended: tuple[int, OutcomeType | None] = patiently(self._run, joined, fresh)
        return ended

    def check(self, new: bool) -> None:
        """Check what takes longer than reading the file; writes nothing.

        Args:
            new: whether the job starts from nothing.

        Raises:
            InputError: the user's input is wrong; or the InputError of the trainable.
        """
        job = self._job
        try:
            with self._progress.activity("checking the data"):
                required = job.required_metrics() if self.trials_report_all else []
                for config in job.configs_to_check():
                    self.check_config(config, required)
        except OSError as error:
            raise InputError(f"config: {error.filename}: {error.strerror}") from error

    def check_config(self, config: BaseModel, metrics: Sequence[str]) -> None:
        """Check that the trainable accepts a config and reports ``metrics``; raises InputError."""
        with self.explained_data(config):
            self._job.implementation.check(config, self._job.resources.workers, metrics)

    def check_tracking(self, tracker: Tracker) -> None:
        """Check that everything the job will record can be recorded; raises TrackingError."""
        tracker.check_artifacts()

    @abstractmethod
    def is_final(self, outcome: OutcomeType) -> bool:
        """Return whether an outcome is that of the present file, so that nothing is left to do."""

    @abstractmethod
    def plan(self, joined: Cluster) -> RenderableType:
        """Return the plan, for the terminal."""

    @abstractmethod
    def columns(self) -> dict[str, Any]:
        """Return the few settings worth a column in a list of MLflow runs."""

    def checked(self, make_study: Callable[[], StudyType]) -> StudyType:
        """Return the study that a function opens, after a look at all that it has; raises StorageError."""
        with explained_damage(self._job.study or self._directory.locate("study.db")):
            study = make_study()
            study.check()
        return study

    @abstractmethod
    def open_study(self) -> Study:
        """Open the study in the directory of the job."""

    def follow_up(self, study: Study, joined: Cluster, lease: Lease) -> int:
        """Run the job that follows from the trials, if there is one; return its exit code."""
        return ExitCode.DONE

    @abstractmethod
    def conclude(self, study: Study, data_sets: Sequence[DataSetRecord], tracker: Tracker) -> OutcomeType:
        """Return the outcome of a study whose trials have ended, at least one of them complete."""

    def clean_up(self, study: Study) -> None:
        """Delete what a job that is finished and delivered does not need."""

    @abstractmethod
    def metrics(self, outcome: OutcomeType) -> dict[str, float]:
        """Return the metrics for the MLflow run of the job."""

    @abstractmethod
    def note(self, outcome: OutcomeType) -> str:
        """Return the outcome as Markdown, for the page of the MLflow run of the job."""

    @abstractmethod
    def summarise(self, outcome: OutcomeType) -> None:
        """Show the outcome on the terminal."""

    def registry_changes(self, outcome: OutcomeType) -> list[str]:
        """Return what has changed in the registry since an outcome was recorded, one line each."""
        return []

    def show_unfinished(self, study: Study) -> None:
        """Show what a study has so far, after an interruption."""

    def publish(self, *files: Path) -> None:
        """Copy files that show the outcome into the directory; a refused one does not fail the job."""
        for file in files:
            try:
                self._directory.publish(file)
            except StorageError as error:
                self._refused_files.append(f"{file.name} could not be written: {error}")

    def exit_code(self, outcome: OutcomeType) -> int:
        """Return the exit code of an outcome."""
        return ExitCode.DONE

    def _finished_outcome(self) -> OutcomeType | None:
        """Return the outcome of a job that is finished and delivered; None where something is left to do."""
        try:
            self._directory.check(fresh=False)
            outcome: OutcomeType | None = self._directory.outcome(self.outcome_type)  # type: ignore[assignment]
        except StorageError as error:
            raise error.as_input_error() from error
        except DamagedError:  # it is made again
            return None
        if outcome is None or not self.is_final(outcome) or not outcome.delivered:
            return None
        present = {  # the storage may have been moved
            "report": self._directory.locate(outcome.report.rpartition("/")[2]),
            "tracking": preflight.present_address(outcome.tracking, self._job.tracking.uri),
        }
        return outcome.model_copy(update=present)

    def _check_and_plan(self, address: str | None, fresh: bool) -> Cluster:
        """Check everything, start or join the cluster, and show the plan."""
        if fresh:
            self._directory.check(fresh=True)
        preflight.check(self._job.tracking.uri, self._job.tracking.experiment)
        self.check(fresh or self._directory.is_new())
        activity = "starting Ray" if address is None else f"joining the Ray cluster at {address}"
        try:
            with self._progress.activity(activity), self._interrupt.polled():
                joined = cluster.start(address, lambda: self._interrupt.requested)
        finally:
            if self._interrupt.requested:
                raise KeyboardInterrupt
        self._interrupt.install()  # Ray's core has replaced the handlers below Python, and would abort
        self._progress.show(self.plan(joined))
        return joined

    def _run(self, joined: Cluster, fresh: bool) -> tuple[int, OutcomeType | None]:
        """Hold the lease of the job and drive it; return the exit code and the outcome."""
        resources = self._job.resources
        workers = [{"CPU": resources.cpus, "GPU": resources.gpus}] * resources.workers
        prepared = self._prepare_data()
        data_sets = list(
            {(each.name, each.role, each.digest): each for each in chain(*prepared.values())}.values()
        )
        with (
            self._directory.open(fresh, self._interrupt) as (job_id, lease),
            ResourceReaper(lease.record.ray_jobs, workers, self._interrupt) as reaper,
        ):
            if joined.joined and self._directory.filesystem is not None:
                with self._progress.activity("checking that the nodes can read the storage"):
                    file = f"{self._directory.root}/{self._job.kind}.json"
                    check_bucket(self._directory.filesystem, file, self._directory.uri)
            with self._progress.activity(f"opening the tracking store {self._job.tracking.uri}"):
                study = self.open_study()
                study.check_data(prepared)
                study.note_code(code_digests(strings(self._job.model_dump(mode="json"))))
                for line in study.changed_code(upcoming=True):
                    _log.warning("%s", line)
                study.complete_ray_jobs(lease.record.ray_jobs)
                reaper.add_earlier(lease.record.ray_jobs)
                tracker = Tracker(
                    self._job.tracking.uri,
                    self._job.tracking.experiment,
                    self._job.name,
                    job_id,
                    self._job.kind,
                    lease.check,
                    self._directory.store.uri,
                )
            with tracker:
                with self._progress.activity("checking that files and models can be recorded"):
                    self._check_tracking(tracker)
                code, outcome, undelivered = self._drive(job_id, study, joined, lease, tracker, data_sets)
        return ExitCode.FAILED if undelivered and not code else code, outcome

    def _check_tracking(self, tracker: Tracker) -> None:
        try:
            self.check_tracking(tracker)
        except (InputError, TrackingError):
            tracker.finish("FAILED")
            raise

    def _drive(
        self,
        job_id: str,
        study: Study,
        joined: Cluster,
        lease: Lease,
        tracker: Tracker,
        data_sets: Sequence[DataSetRecord],
    ) -> tuple[int, OutcomeType | None, str]:
        """Run the trials and conclude; return the exit code, the outcome, and what was not delivered."""
        outcome: OutcomeType | None = None
        status: Literal["FINISHED", "FAILED", "KILLED"] = "FAILED"
        try:
            columns = {"trainable": self._job.trainable, **self.columns()}
            tracker.log_sweep(self._job.resolved(), columns, data_sets)
            code = self._run_trials(job_id, study, joined, lease, tracker)
            if code == ExitCode.DONE:
                code = self.follow_up(study, joined, lease)
            if code == ExitCode.DONE:
                study.record_usage(lease.record.used)
                outcome = self.conclude(study, data_sets, tracker)
                self._record(outcome, delivered=False)
                status, code = "FINISHED", self.exit_code(outcome)
            elif code == ExitCode.INTERRUPTED:
                status = "KILLED"
        except (KeyboardInterrupt, SweepError):
            status = "KILLED" if self._interrupt.requested else "FAILED"
            raise
        finally:
            undelivered = ""
            if not lease.lost:
                metrics, note = (self.metrics(outcome), self.note(outcome)) if outcome else ({}, "")
                tracker.finish(status, metrics, note)
                try:
                    with self._progress.activity("delivering the last records to MLflow"):
                        undelivered = "; ".join(filter(None, [tracker.flush(), *self._refused_files]))
                finally:
                    lease.on_heartbeat = self._last_activity(tracker)
                ended: dict[str, EndOfDriver] = {
                    "FINISHED": "finished",
                    "FAILED": "failed",
                    "KILLED": "stopped",
                }
                OutcomeMetric(self._job.name).set(ended[status])
            if undelivered:
                _log.warning("%s; rerun the command to try again", undelivered)
        if outcome is not None and not undelivered:
            self._record(outcome, delivered=True)
            lease.check()
            self.clean_up(study)
        return code, outcome, undelivered

    def _last_activity(self, tracker: Tracker) -> Callable[[float], Activity]:
        """Return what a driver that ends tells `status`: what it has not delivered."""
        problems = [tracker.delivery_problem(), *self._refused_files]
        activity = Activity(undelivered="; ".join(filter(None, problems)))
        return lambda seconds: activity

    def _record(self, outcome: OutcomeType, *, delivered: bool) -> None:
        self._directory.finish(outcome.model_copy(update={"delivered": delivered}).model_dump(mode="json"))

    def _prepare_data(self) -> dict[str, list[DataSetRecord]]:
        """Prepare the data of every config; return the records of its data sets by a hash of the config."""
        records: dict[str, list[DataSetRecord]] = {}
        # Several configs may use the same data.
        with self._progress.activity("preparing the data"), self._progress.without_repeats():
            for config in self._job.configs_to_prepare():
                with self.explained_data():
                    key = hashlib.blake2b(config.model_dump_json().encode(), digest_size=10).hexdigest()
                    records[key] = list(self._job.implementation.prepare(config))
        return records

    def _run_trials(self, job_id: str, study: Study, joined: Cluster, lease: Lease, tracker: Tracker) -> int:
        """Run the trials that remain; return the exit code, DONE when there is an outcome."""
        if started := len(study.started_trials):
            _log.info("resuming: %d trials started before, %d remain", started, study.remaining())
        end = run_trials(
            self._job, job_id, study, joined, self._directory, lease, tracker, self._progress, self._interrupt
        )
        if lease.lost:
            raise LeaseLostError("another driver took the job over")
        if end is not RunEnd.DONE:
            self.show_unfinished(study)
            if end is RunEnd.FAILED:
                return ExitCode.FAILED
            self._progress.print(f"interrupted; rerun the command to resume the {self._job.kind}")
            return ExitCode.INTERRUPTED
        if fault := study.outcome_fault():
            advice = "" if study.count()["complete"] else f"; fix the cause, and then {self.after_failure}"
            _log.error("%s%s", fault, advice)
            return ExitCode.FAILED
        return ExitCode.DONE

    @contextlib.contextmanager
    def explained_data(self, config: BaseModel | None = None) -> Iterator[None]:
        """Raise what the trainable raises as InputError, with the place of what is wrong.

        That is a key of ``config``, the config that the trainable is given, for its own InputError, which may
        be a ValueError, and else a line of its code.
        """
        try:
            yield
        except (InputError, SweepError):
            raise
        except self._job.implementation.InputError as error:
            path, colon, reason = str(error).partition(":")
            raise InputError(f"{self._job.place_of(path, config)}{colon}{reason}") from error
        except (Exception, SystemExit) as error:
            if isinstance(error, OSError) or database_problem(error) is not None:
                raise
            reason = describe_raised(error)
            raise InputError(
                f"trainable: {self._job.trainable} raised {reason}; correct it, and rerun the command"
            ) from error

    @contextlib.contextmanager
    def _explained_errors(self) -> Iterator[None]:
        """Raise errors of the study's database as errors of this package."""
        try:
            yield
        except (OSError, KeyError, SQLAlchemyError, StorageInternalError) as error:
            problem = database_problem(error)
            if problem is None and isinstance(error, OSError) and error.filename is not None:
                raise SweepError(f"{error.filename}: {error.strerror}") from error  # such as the report
            if problem is None:
                raise
            if problem.kind is Problem.DAMAGED:
                location = self._job.study or self._directory.locate("study.db")
                raise InputError(
                    f"study: {location} is damaged ({problem.message}); "
                    "restore a copy of it, or start over with --fresh"
                ) from error
            if problem.kind is Problem.FULL:
                raise SweepError(f"no space is left: {problem.message}") from error
            if self._job.study:
                verb = "refuses it" if problem.kind is Problem.REFUSED else "does not answer"
                line = f"study: {self._job.study} {verb}: {problem.message}; finished work is kept"
                raise UnreachableError(line) from error
            raise SweepError(f"the study's database does not answer: {problem.message}") from error


def run_ids(study: Study, tracker: Tracker) -> dict[int, str]:
    """Return the MLflow run of each trial; a trial that was refused before it started has none."""
    numbers = [trial.number for trial in study.started_trials]
    try:
        return tracker.run_ids(numbers)
    except TrackingError as error:
        _log.warning("%s", error)
        return {}
