"""The runs of one job in MLflow: each method makes its requests at once, and may be repeated."""

import hashlib
import math
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Literal, NamedTuple

import mlflow
from mlflow.entities import Metric, Param, Run
from mlflow.exceptions import MlflowException

from orchestrator.errors import LeaseLostError
from orchestrator.tracking.records import SWEEP_TAG, run_source, run_tags
from orchestrator.tracking.store import open_experiment

State = Literal["COMPLETE", "PRUNED", "FAIL"]
_STATUS: dict[State, str] = {"COMPLETE": "FINISHED", "PRUNED": "KILLED", "FAIL": "FAILED"}

_SCHEMA = 2
"""Version of the tags of runs. Runs without the tag ``schema`` have version 1, with the same tags."""

_PARENT = "mlflow.parentRunId"

LOST = "lost trial"
"""The tag ``run.kind`` of a run whose trial was lost when an older copy of the study was put back."""

_STORAGE = "sweep.storage"
"""Tag with a checksum of the address of the storage, by which a job and a copy of it differ."""

_PAGE = 1000
"""Runs in one answer."""

_MAX_METRICS = 1000
"""Points that MLflow accepts in one request."""

_MAX_PARAMS = 100
"""Parameters that MLflow accepts in one request."""


class RecordedTrial(NamedTuple):
    """A trial as MLflow has it."""

    state: str
    epoch: int
    """The last one."""

    parent: str
    """The run of its job."""


def is_lost_run(client: mlflow.MlflowClient, run_id: str | None) -> bool:
    """Return whether a run is that of a trial that the study lost; False for a run that does not exist."""
    try:
        return run_id is not None and client.get_run(run_id).data.tags.get("run.kind") == LOST
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return False


class JobRuns:
    """The run of a job, and a child run for each of its trials.

    A repeated request duplicates nothing: runs are found by their tags `sweep.id` and `trial.number` before
    they are created, points have their own time, and recorded epochs are skipped.
    """

    def __init__(
        self,
        uri: str,
        experiment: str,
        name: str,
        job_id: str,
        kind: str,
        check: Callable[[], None],
        storage: str = "",
    ) -> None:
        """Open the store, and find or create the experiment and the run of the job.

        Args:
            uri: the store.
            experiment: name of the experiment.
            name: name of the job.
            job_id: its id.
            kind: its kind.
            check: is called before each write; raises LeaseLostError when nothing may be written any more.
            storage: address of the storage of the job.

        Raises:
            InputError: the experiment was deleted.
            LeaseLostError: ``check`` raised it.
            MlflowException, SQLAlchemyError, OSError: the store cannot be opened.
        """
        self._uri, self._name, self._job_id, self._kind, self._check = uri, name, job_id, kind, check
        # Not the address itself, which names folders of a machine.
        self._storage = hashlib.sha256(storage.encode()).hexdigest()[:12]
        self.ids: dict[int, str] = {}
        """Ids of the runs of trials, as far as they are known."""

        self._epochs: dict[int, set[int]] = {}
        """Epochs that MLflow has, of trials that it was asked about or that have not ended."""

        self.client, self.experiment_id = open_experiment(uri, experiment, check)
        self.job: Run = self._find() or self._create(None, name, self._tags(kind) | run_source())
        """The run of the job as it was when it was opened."""

        self.job_id: str = self.job.info.run_id
        """Id of that run."""

        self.client.update_run(self.job_id, status="RUNNING")

    def start_trial(
        self, number: int, name: str, params: Mapping[str, str], started: int, search: bool
    ) -> None:
        """Find or create the run of a trial, and record its parameters.

        Args:
            number: the trial.
            name: distinguishes it in lists.
            params: its parameters, as MLflow keeps them.
            started: time of its start (ms).
            search: whether the run may exist.
        """
        run = self._find(number) if search else None
        exists = run is not None
        if run is not None and run.data.tags.get(_PARENT) != self.job_id:
            self.client.set_tag(run.info.run_id, _PARENT, self.job_id)
        if run is None:
            tags = {"trial.number": str(number), "trial.state": "RUNNING", _PARENT: self.job_id}
            label = f"trial-{number:04d} {name}".strip()
            run = self._create(number, label, self._tags("trial") | tags, started)
        self._note(number, run)
        self.log_params(run.info.run_id, {k: v for k, v in params.items() if k not in run.data.params})
        if exists:
            self.client.set_tag(run.info.run_id, "trial.state", "RUNNING")
            self.client.update_run(run.info.run_id, status="RUNNING")

    def find_trial(self, number: int) -> bool:
        """Return whether a trial has a run, searching for one of an earlier process."""
        if number not in self.ids and (run := self._find(number)) is not None:
            self._note(number, run)
        return number in self.ids

    def list_trials(self, numbers: Iterable[int]) -> dict[int, RecordedTrial]:
        """Return those of the trials that MLflow has, as it has them.

        The runs are listed from the newest to the first thousand that holds none of the trials, so that
        a trial that started long before the others may be left out.
        """
        missing = set(numbers)
        trials: dict[int, RecordedTrial] = {}
        which = f"tags.`sweep.id` = '{self._job_id}' AND tags.`run.kind` = 'trial'"
        token: str | None = None
        while missing and (token is None or token):
            page = self.client.search_runs(
                [self.experiment_id],
                which,
                max_results=_PAGE,
                order_by=["attributes.start_time DESC"],
                page_token=token,
            )
            runs = {int(run.data.tags["trial.number"]): run for run in page}
            for number in missing & runs.keys():
                self._note(number, runs[number])
                trials[number] = _recorded_trial(runs[number])
            token = (page.token or "") if missing & runs.keys() else ""
            missing -= runs.keys()
        return trials

    def set_aside_all_but(self, known: Collection[int]) -> list[int]:
        """Set aside the runs of trials with other numbers than these, and return their numbers.

        Trials that the study does not know were lost when an older copy of it was put back. Their numbers
        are given again. The runs of a copy of the job in another storage stay. Lost runs are the newest.
        """
        which = f"tags.`sweep.id` = '{self._job_id}' AND tags.`run.kind` = 'trial'"
        newest = ["attributes.start_time DESC"]
        lost: list[Run] = []
        token: str | None = None
        while token is None or token:
            page = self.client.search_runs(
                [self.experiment_id], which, max_results=_PAGE, order_by=newest, page_token=token
            )
            unknown = [run for run in page if int(run.data.tags["trial.number"]) not in known]
            lost += [run for run in unknown if run.data.tags.get(_STORAGE) == self._storage]
            token = (page.token or "") if unknown else ""
        for run in lost:
            self._check()
            self.client.set_tag(run.info.run_id, "run.kind", LOST)
        return sorted(int(run.data.tags["trial.number"]) for run in lost)

    def recorded_epochs(self, number: int) -> set[int]:
        """Return the epochs of a trial that MLflow has."""
        history = self.client.get_metric_history(self.ids[number], "epoch")
        self._epochs[number] = {point.step for point in history}
        return self._epochs[number]

    def log_epochs(self, number: int, epochs: Mapping[int, list[Metric]]) -> set[int]:
        """Record the first of these epochs of a trial, as many as fit in a request, and return them."""
        recorded = self._epochs.setdefault(number, set())
        batch: dict[int, list[Metric]] = {}
        for epoch in sorted(epochs):
            if sum(map(len, batch.values())) + len(epochs[epoch]) > _MAX_METRICS and batch:
                break
            batch[epoch] = epochs[epoch]
        points = [point for epoch, values in batch.items() if epoch not in recorded for point in values]
        if points:
            self.client.log_batch(self.ids[number], metrics=points)
        recorded.update(batch)
        return set(batch)

    def end_trial(
        self, number: int, state: State, ended: int, metrics: Mapping[str, float], tags: Mapping[str, str]
    ) -> None:
        """Close the run of a trial with its last metrics and tags, at a time in ms."""
        points = make_points(metrics, ended, 0)
        self.client.log_batch(self.ids[number], metrics=points, tags=run_tags({"trial.state": state, **tags}))
        self.client.set_terminated(self.ids[number], _STATUS[state], ended)
        self._epochs.pop(number, None)

    def log_params(self, run_id: str, params: Mapping[str, str]) -> None:
        """Record parameters of a run."""
        items = [Param(key, value) for key, value in params.items()]
        for start in range(0, len(items), _MAX_PARAMS):
            self.client.log_batch(run_id, params=items[start : start + _MAX_PARAMS])

    def _note(self, number: int, run: Run) -> None:
        self.ids[number] = run.info.run_id
        last = int(run.data.metrics.get("epoch", 0))
        self._epochs.setdefault(number, set(range(1, last + 1)))

    def _create(self, number: int | None, name: str, tags: dict[str, str], started: int | None = None) -> Run:
        """Create the run of a trial, or of the job if ``number`` is None.

        A driver may be suspended between the check and the arrival of its request. If the job was lost
        meanwhile and its new driver created a run too, this one is deleted. Two runs stay if the new driver
        looks for one before this request arrives, and creates its own after this search.

        Raises:
            LeaseLostError: the job was lost.
        """
        run = self.client.create_run(self.experiment_id, start_time=started, tags=tags, run_name=name)
        try:
            self._check()
        except LeaseLostError:
            if len(self._find_all(number)) > 1:
                unchecked = mlflow.MlflowClient(self._uri, registry_uri=self._uri)  # writes after the loss
                unchecked.delete_run(run.info.run_id)
            raise
        return run

    def _find(self, number: int | None = None) -> Run | None:
        return next(iter(self._find_all(number)), None)

    def _find_all(self, number: int | None) -> list[Run]:
        """Return the runs of a trial, or of the job if ``number`` is None, the oldest first.

        There is more than one only while a driver loses the job: see `_create`.
        """
        which = f"tags.`run.kind` = '{self._kind if number is None else 'trial'}'"
        if number is not None:
            which += f" AND tags.`trial.number` = '{number}'"
        return self.client.search_runs(
            [self.experiment_id],
            f"tags.`sweep.id` = '{self._job_id}' AND {which}",
            max_results=2,
            order_by=["attributes.start_time ASC"],
        )

    def _tags(self, kind: str) -> dict[str, str]:
        tags = {"sweep.id": self._job_id, SWEEP_TAG: self._name, "run.kind": kind}
        return tags | {"schema": str(_SCHEMA), _STORAGE: self._storage}


def make_points(values: Mapping[str, float], time: int, step: int) -> list[Metric]:
    """Return values as points of one time (ms) and step.

    Infinities become NaN, because MLflow would store ±1.8e308, which flattens every chart.
    """
    return [
        Metric(key, value if math.isfinite(value) else math.nan, time, step) for key, value in values.items()
    ]


def now() -> int:
    """Return the time as MLflow records it, in ms."""
    return int(time.time() * 1000)


def _recorded_trial(run: Run) -> RecordedTrial:
    state = run.data.tags.get("trial.state", "") if run.info.status != "RUNNING" else "RUNNING"
    return RecordedTrial(state, int(run.data.metrics.get("epoch", 0)), run.data.tags.get(_PARENT, ""))
