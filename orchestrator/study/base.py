"""The study of a job: the single record of what was suggested and how it ended.

Ray Tune asks it for trials and whether to stop one (`orchestrator.execution.tune_adapters`). The study writes
to persistent storage before Tune continues, so a new driver resumes from the study alone.
"""

import bisect
import logging
import posixpath
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState
from pydantic import RootModel, ValidationError

from orchestrator.config.job import Job
from orchestrator.errors import InputError, newer_schema, one_line
from orchestrator.storage.base import StudyStorage, transaction
from orchestrator.storage.directory import JobDirectory
from orchestrator.storage.lease import MAX_RAY_JOBS, BudgetUsage
from orchestrator.storage.records import JOB, JobRecord, is_valid
from orchestrator.study import attributes
from orchestrator.study.trial_report import EpochEnded, Failed, Halted, TrialReport, trial_name
from orchestrator.trainable import DataSetRecord, changed_data, digests

if TYPE_CHECKING:
    import ray.train

_log = logging.getLogger(__name__)

optuna.logging.set_verbosity(optuna.logging.WARNING)
logging.getLogger("alembic").setLevel(logging.WARNING)

_MAX_DEATHS = 3
"""How often Ray Tune may give a trial up, because its process died, until it fails."""

_LOG_CHARACTERS = 4000
"""Length of the log that is kept of a failed trial, from its end."""


_RecordedData = RootModel[dict[str, dict[str, list[str]]]]
_RecordedCode = RootModel[dict[str, list[tuple[str, int]]]]


@dataclass(frozen=True, slots=True)
class Suggestion:
    """One trial to run: its number in the study, the values that define it, and its complete config."""

    number: int
    values: dict[str, Any]
    config: dict[str, Any]
    checkpoint: str | None = None
    """The last checkpoint, if the trial is already trained and only has to be scored."""


class Study(ABC):
    """The trials of a job: which remain, what each one reported, and how it ended.

    It keeps everything that was ever reported; MLflow is brought up to date from it. A trial that a previous
    driver left RUNNING resumes under the same number from its last checkpoint.
    """

    scores_trials: ClassVar[bool] = False
    """Whether every trial is scored on the targets as soon as it is trained."""

    wall: float | None = None
    """Seconds after which trials are stopped."""

    gpu_hours: float | None = None
    """Hours for which workers may hold GPUs."""

    max_failures: int | None = None
    """Failed trials in a row after which the job ends."""

    fault: Exception | None = None
    """The error after which this process may hold in memory what is not recorded."""

    _busy_since: float | None = None
    """Time at which the suggestion or record began that is under way."""

    def __init__(self, job: Job, directory: JobDirectory, **options: Any) -> None:
        self._directory, self._job_kind = directory, job.kind
        self._storage = directory.study_storage()
        self.study = optuna.create_study(
            study_name=job.name, storage=self._storage, load_if_exists=True, **options
        )
        self._check_schema()
        self._record_job()
        trials = self.trials
        if not trials and (problem := directory.store.emptied_study(job.name)):
            raise InputError(f"study: {problem}, or start over with --fresh")
        self._live: dict[int, optuna.Trial] = {}
        self._deaths: Counter[int] = Counter()
        self._verdicts: dict[int, tuple[TrialState, str]] = {}
        self._ended_elsewhere: set[int] = set()
        """Trials that another program has ended while they trained."""

        self._interrupted = self._running()
        self._ended_count = sum(trial.state.is_finished() for trial in trials)
        self.recent_failures: list[str] = []
        """Reasons of the trials that failed in a row, since this driver started."""

    def check(self) -> None:
        """Look at everything that the study has of each trial; raises some exception for damaged values."""
        for trial in self.started_trials:
            for report in attributes.epochs(trial).values():
                float(report["time"])
                sum(map(float, report.values()))
            self.values(trial)
            self.scores(trial)
            self.objective(trial)
            self.describe(trial)

    @property
    def trials(self) -> list[FrozenTrial]:
        """All trials of the study, by number; `trial` returns a single one sooner."""
        trials: list[FrozenTrial] = self.study.get_trials(deepcopy=False)
        return trials

    def trial(self, number: int) -> FrozenTrial:
        """Return a trial as it is now."""
        trial: FrozenTrial = self._storage.get_trial(self._trial_id(number))
        return trial

    @property
    def started_trials(self) -> list[FrozenTrial]:
        """The trials of this job that were started, by number."""
        return self.trials

    @property
    @abstractmethod
    def total(self) -> int:
        """Number of trials that the job will have."""

    @abstractmethod
    def count(self) -> dict[str, int]:
        """Return the number of trials by state: running, complete, failed, ..."""

    @abstractmethod
    def remaining(self) -> int:
        """Return how many trials have not ended: running, interrupted and not yet suggested."""

    def is_finished(self) -> bool:
        """Return whether nothing is left to run."""
        return self.remaining() == 0

    @abstractmethod
    def ask(self) -> Suggestion | None:
        """Return the next trial, interrupted ones first, or None when there is none."""

    @abstractmethod
    def should_stop(self, number: int, report: EpochEnded) -> bool:
        """Take one epoch of a trial into account; return whether the trial has to stop now."""

    @abstractmethod
    def record_completion(self, number: int, last: TrialReport | None) -> str | None:
        """Record a trial that ran to its end as complete, or return what it lacks.

        ``last`` is the last report of the trial.
        """

    def outcome_fault(self) -> str:
        """Return why trials that have all ended have no outcome, in one line, or an empty text."""
        if self.count()["complete"]:
            return ""
        trials = self.started_trials
        reasons = sorted(set(map(attributes.reason, trials)) - {""})
        return f"none of {len(trials)} trials succeeded" + f": {'; '.join(reasons)}" * bool(reasons)

    @abstractmethod
    def headline(self) -> str:
        """Return the state of the study in a few words."""

    @abstractmethod
    def describe(self, trial: FrozenTrial) -> str:
        """Return how a trial ended, in one line."""

    def values(self, trial: FrozenTrial) -> dict[str, Any]:
        """Return the values that define a trial."""
        return dict(trial.params)

    def parameters(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return what MLflow records as the parameters of a trial with these ``values``."""
        return dict(values)

    def objective(self, trial: FrozenTrial) -> float | None:
        """Return the value by which ended trials are ranked, where they are."""
        return None

    def best_objective(self) -> dict[str, float]:
        """Return the best value so far, by its metric."""
        return {}

    def scores(self, trial: FrozenTrial) -> dict[str, float]:
        """Return the scores of a trial on the targets, where it was scored."""
        return dict(trial.user_attrs.get(attributes.SCORES, {}))

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Make all that is recorded in a block permanent at once when it ends."""
        outer, self._busy_since = self._busy_since, self._busy_since or time.monotonic()
        try:
            with transaction(self._storage):
                yield
        finally:
            self._busy_since = outer

    def seconds_busy(self) -> float:
        """Return how long the present suggestion or record has taken so far; 0 if there is none."""
        since = self._busy_since  # another thread may set it to None
        return 0.0 if since is None else time.monotonic() - since

    def check_data(self, data_sets: Mapping[str, Sequence[DataSetRecord]]) -> None:
        """Record the content of the data; the trials of a study are compared, so they have to share it.

        Args:
            data_sets: those of each prepared config, by a hash of the config.

        Raises:
            InputError: the content has changed since earlier trials, of which one or more did not fail.
        """
        contents = {config: digests(used) for config, used in data_sets.items()}
        recorded: dict[str, Any] = self.study.user_attrs.get(attributes.DATA, {})
        if self._all_failed() or not is_valid(recorded, _RecordedData):
            recorded = {}
        for config, content in contents.items():
            before = recorded.get(config, {})
            if changed := changed_data(before, content):
                raise InputError(
                    f"{changed}: the content has changed since earlier trials of "
                    f"{self._job_kind} {self._directory.uri}, so that results could not be compared; put the "
                    "data back, change 'name' in the file, or start over with --fresh (which keeps the old "
                    "folder)"
                )
        if recorded | contents != recorded:
            self.study.set_user_attr(attributes.DATA, recorded | contents)

    def note_code(self, code: Mapping[str, str]) -> None:
        """Record the digests of the modules of trainable and components, by module."""
        recorded: dict[str, Any] = self.study.user_attrs.get(attributes.CODE, {})
        if self._all_failed() or not is_valid(recorded, _RecordedCode):
            recorded = {}
        versions = {}
        for module in recorded.keys() | code.keys():
            used = self._used(recorded.get(module, []))
            if module in code and (not used or used[-1][0] != code[module]):
                used = [*used, [code[module], self._ended_count]]
            versions[module] = used
        if versions != recorded:
            self.study.set_user_attr(attributes.CODE, versions)

    def changed_code(self, upcoming: bool = False) -> list[str]:
        """Return one line for each module that has changed between trials that have ended.

        ``upcoming``: the trials that remain count as well.
        """
        recorded: dict[str, Any] = self.study.user_attrs.get(attributes.CODE, {})
        if not is_valid(recorded, _RecordedCode):
            return []
        everything = upcoming and self.remaining() > 0
        changed = [
            module for module, used in recorded.items() if len(used if everything else self._used(used)) > 1
        ]
        return [
            f"the code of {module} has changed between trials of this {self._job_kind}; results before and "
            "after the change may not be comparable"
            for module in changed
        ]

    def _used(self, versions: list[list[Any]]) -> list[list[Any]]:
        """Return the versions of a module under which a trial has ended."""
        return [[version, ended] for version, ended in versions if ended < self._ended_count]

    def _all_failed(self) -> bool:
        return all(trial.state == TrialState.FAIL for trial in self.started_trials)

    def record_usage(self, used: BudgetUsage) -> None:
        """Record what of the budget is used."""
        self.study.set_user_attr(attributes.USED, used.model_dump())

    def add_usage(self, used: BudgetUsage) -> None:
        """Raise ``used`` to what is recorded, which is more where the record of the driver was lost."""
        recorded = self.recorded_usage()
        used.seconds = max(used.seconds, recorded.seconds)
        used.gpu_seconds = max(used.gpu_seconds, recorded.gpu_seconds)

    def recorded_usage(self) -> BudgetUsage:
        """Return what of the budget was used when it was last recorded; 0 where nothing is."""
        try:
            return BudgetUsage.model_validate(self.study.user_attrs.get(attributes.USED, {}))
        except ValidationError:
            return BudgetUsage()

    def complete_ray_jobs(self, jobs: list[str]) -> None:
        """Add recorded Ray jobs of earlier drivers to ``jobs``, which lacks them if a record was lost.

        All of them are recorded again.
        """
        recorded = self.study.user_attrs.get(attributes.RAY_JOBS, [])
        if isinstance(recorded, list):
            jobs[:0] = [job for job in recorded if isinstance(job, str) and job not in jobs]
        self.study.set_user_attr(attributes.RAY_JOBS, jobs[-MAX_RAY_JOBS:])

    def record_epoch(self, number: int, report: EpochEnded) -> None:
        """Record the metrics of an epoch; an epoch that is recorded already stays as it is."""
        key = attributes.epoch_key(report.epoch)
        if key not in self.trial(number).user_attrs:
            metrics = {metric: float(value) for metric, value in report.metrics.items()}
            self._set(number, key, {"time": int(time.time() * 1000), **metrics})

    def record_checkpoint(self, number: int, checkpoint: str) -> None:
        """Record the path of a trial's last checkpoint."""
        # Without "/", paths in a bucket would be looked up in the working directory, which may be gone.
        relative = posixpath.relpath(f"/{checkpoint}", f"/{self._directory.root}")
        self._set(number, attributes.CHECKPOINT, relative)

    def record_scores(self, number: int, scores: Mapping[str, float]) -> None:
        """Record the scores of a trial's last checkpoint."""
        self._set(number, attributes.SCORES, dict(scores))

    def on_trial_end(self, number: int, last: TrialReport | None, died: bool = False) -> None:
        """Record how a trial ended: COMPLETE, PRUNED, or FAIL with its reason.

        Ray Tune does not call this for a trial that an interruption stops: it stays RUNNING, and the next
        driver resumes it. The same holds for a trial that was halted.

        Args:
            number: the trial.
            last: its last report.
            died: whether its process died. The trial resumes, unless that has happened too often.
        """
        if isinstance(last, Halted) or number in self._ended_elsewhere:
            return
        if died:
            self._deaths[number] += 1
            if self._deaths[number] < _MAX_DEATHS:
                bisect.insort(self._interrupted, number)
                return
        with self.accepting_end(number), self.transaction():
            self._record_end(number, last, died)
        if isinstance(self._storage, StudyStorage):
            self._storage.on_trial_end()
        trial = self.trial(number)
        if number in self._ended_elsewhere:  # it says nothing about the trainable
            return
        if trial.state == TrialState.FAIL:
            self.recent_failures.append(attributes.reason(trial))
        else:
            self.recent_failures.clear()

    @contextmanager
    def accepting_end(self, number: int) -> Iterator[None]:
        """Accept that another program has ended a trial, which a block finds out when it writes to it."""
        try:
            yield
        except UpdateFinishedTrialError:
            storage = self._storage
            if not isinstance(storage, StudyStorage) or not storage.read_anew(self._trial_id(number)):
                raise
            self._ended_elsewhere.add(number)
            self._verdicts.pop(number, None)
            self._note_ended(number)
            state = self.trial(number).state.name
            _log.warning("another program has ended %s in the study, as %s", trial_name(number), state)

    def _record_end(self, number: int, last: TrialReport | None, died: bool) -> None:
        if died:
            self._finish(number, TrialState.FAIL, "its process died repeatedly")
        elif isinstance(last, Failed):
            self._set(number, attributes.LOG, last.log[-_LOG_CHARACTERS:])
            self._finish(number, TrialState.FAIL, last.reason)
        elif number in self._verdicts:
            self._finish(number, *self._verdicts.pop(number))
        elif missing := self.record_completion(number, last):
            self._finish(number, TrialState.FAIL, missing)

    def checkpoint(self, number: int) -> "ray.train.Checkpoint":
        """Return the last checkpoint of a trained trial."""
        return self._directory.checkpoint(str(self.trial(number).user_attrs[attributes.CHECKPOINT]))

    def prune_running(self, reason: str) -> list[int]:
        """Prune every trial that still runs, because the budget is spent; return their numbers."""
        running = self._running()
        for number in running:
            with self.accepting_end(number):
                self._finish(number, TrialState.PRUNED, reason)
        return running

    def _running(self) -> list[int]:
        return [trial.number for trial in self.started_trials if trial.state == TrialState.RUNNING]

    def _record_job(self) -> None:
        """Copy the record of the job into the study; raises InputError if it is that of another job."""
        record = self._directory.record
        recorded: dict[str, Any] = self.study.user_attrs.get(JOB, {})
        if not record or recorded == record:
            return
        if is_valid(recorded, JobRecord) and recorded["id"] != record["id"]:
            file = self._directory.locate(f"{self._job_kind}.json")
            if recorded.get("storage", record["storage"]) != record["storage"]:
                remedy = f"it is that of the job in {one_line(recorded['storage'], 100)}; name another one"
            else:
                remedy = "if that file is damaged, delete it, and it is restored"
            raise InputError(
                f"study: it has the trials of job {one_line(recorded['id'], 40)}, but {file} names job "
                f"{one_line(record['id'], 40)}; {remedy}"
            )
        self.study.set_user_attr(JOB, record)

    def _check_schema(self) -> None:
        schema = int(self.study.user_attrs.get(attributes.SCHEMA, 1))
        if schema > attributes.SCHEMA_VERSION:
            raise InputError(newer_schema("study: it", schema, attributes.SCHEMA_VERSION))
        if schema < attributes.SCHEMA_VERSION:
            self.study.set_user_attr(attributes.SCHEMA, attributes.SCHEMA_VERSION)

    def _finish(self, number: int, state: TrialState, reason: str) -> None:
        self._set(number, attributes.REASON, reason)
        self._tell(number, state=state)

    def _tell(self, number: int, **result: Any) -> None:
        self._ended_count += 1
        self._set(number, attributes.ORDER, self._ended_count)
        self.study.tell(number, **result)
        self._note_ended(number)

    def _note_ended(self, number: int) -> None:
        """Keep up with a trial that has ended in the study."""
        self._live.pop(number, None)

    def _set(self, number: int, key: str, value: Any) -> None:
        with self.transaction():
            self._storage.set_trial_user_attr(self._trial_id(number), key, value)

    def _trial(self, number: int) -> optuna.Trial:
        if number not in self._live:  # suggested by a previous driver
            self._live[number] = optuna.Trial(self.study, self._trial_id(number))
        return self._live[number]

    def _trial_id(self, number: int) -> int:
        return int(self._storage.get_trial_id_from_study_id_trial_number(self.study._study_id, number))
