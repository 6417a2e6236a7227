"""The runs of a job in MLflow: a parent run for the job, a child run for each trial."""

import math
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, NamedTuple, Self

import mlflow
import yaml
from mlflow.entities import Metric, Param, Run
from mlflow.exceptions import MlflowException
from sqlalchemy.exc import SQLAlchemyError

from orchestrator.errors import InputError, LeaseLostError, SweepError, TrackingError, UnreachableError
from orchestrator.tracking import provenance
from orchestrator.tracking.outbox import Outbox, Subject, describe_error, is_final, is_unreachable
from orchestrator.tracking.records import dataset_inputs, param_texts, run_source, run_tags
from orchestrator.tracking.store import open_experiment, quiet_mlflow, remove_escaped_folder
from orchestrator.tracking.system_metrics import CheckedMonitor
from orchestrator.trainable import DataSetRecord

State = Literal["COMPLETE", "PRUNED", "FAIL"]
_STATUS: dict[State, str] = {"COMPLETE": "FINISHED", "PRUNED": "KILLED", "FAIL": "FAILED"}

_SCHEMA = 2
"""Version of the tags of runs. Runs without the tag ``schema`` have version 1, with the same tags."""

_DELIVERED = "trials.delivered"
"""Tag of the run of a job: every trial below this number has ended, and all its records are here."""

_PARENT = "mlflow.parentRunId"

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


class Tracker:
    """The only writer to MLflow, in the driver of a job.

    Delivering a record twice, or rerunning the sweep, duplicates nothing: runs are found by their tags
    `sweep.id` and `trial.number` before they are created, points have their own time, and recorded epochs are
    skipped. Methods that record return at once; a background thread delivers in order, and `flush` returns
    what was not delivered.
    """

    def __init__(
        self,
        uri: str,
        experiment: str,
        sweep_name: str,
        sweep_id: str,
        kind: str = "sweep",
        check: Callable[[], None] = lambda: None,
    ) -> None:
        """Open the store, and find or create the experiment and the run of the job.

        Args:
            uri: the store.
            experiment: name of the experiment.
            sweep_name: name of the job.
            sweep_id: its id.
            kind: its kind.
            check: is called before each write; raises LeaseLostError when nothing may be written any more.

        Raises:
            InputError: the store cannot be opened.
            UnreachableError: it does not answer.
            LeaseLostError: `check` raised it.
        """
        quiet_mlflow()
        self.uri = uri.rstrip("/") if uri.startswith("http") else uri
        self.sweep_name = sweep_name
        self.sweep_id = sweep_id
        self.kind = kind
        self._run_ids: dict[int, str] = {}
        self._recorded: dict[int, set[int]] = {}
        """Epochs that MLflow has, of trials that it was asked about or that have not ended."""

        self._waiting: dict[int, dict[int, list[Metric]]] = {}
        """Points that were not delivered yet, by trial and epoch."""

        self._lock = threading.Lock()
        self._monitor: CheckedMonitor | None = None
        self.check = check
        try:
            self.client, self.experiment_id = open_experiment(self.uri, experiment, check)
            parent = self._find_run() or self._create_run(None, sweep_name, self._tags(kind) | run_source())
            self.parent_run_id: str = parent.info.run_id
            self._artifact_uri = parent.info.artifact_uri
            self.client.update_run(self.parent_run_id, status="RUNNING")
        except (MlflowException, SQLAlchemyError, OSError) as error:
            kind_of_error = UnreachableError if is_unreachable(error) else InputError
            raise kind_of_error(
                f"tracking.uri: cannot record at {self.uri}: {describe_error(error)}"
            ) from error
        self.delivered = int(parent.data.tags.get(_DELIVERED, 0))
        """Every trial below this number has ended, and MLflow has all its records."""

        self._recorded_params = set(parent.data.params)
        self._outbox = Outbox(self.uri, check)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def check_artifacts(self) -> None:
        """Check that files can be kept, by keeping the list of installed packages.

        Raises:
            TrackingError: the store accepts no files from this machine.
            LeaseLostError: another driver has taken the job over.
        """
        try:
            self.client.log_text(self.parent_run_id, provenance.packages(), "requirements.txt")
        except SweepError:  # of the check of the lease
            raise
        except Exception as error:  # the clients of artifact stores have no common type
            advice = "; start the server with --artifacts-destination" * self.uri.startswith("http")
            raise TrackingError(
                f"tracking: this machine cannot write files to {self._artifact_uri}, where the experiment at "
                f"{self.uri} keeps them: {describe_error(error)}{advice}"
            ) from error

    def log_sweep(
        self,
        config: Mapping[str, Any],
        params: Mapping[str, Any],
        data_sets: Iterable[DataSetRecord],
        note: str = "",
    ) -> None:
        """Record the settings of the job, and start the system metrics of this machine.

        Args:
            config: the resolved sweep file, kept as the artifact `config.yaml`.
            params: the few settings worth a column in the list of runs.
            data_sets: the data used, recorded as inputs with their digest.
            note: Markdown for the page of the run.
        """
        text = yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True)
        code = provenance.git_state(Path(__file__).parent)
        machine = provenance.hardware()
        inputs = dataset_inputs(data_sets)
        tags = {f"git.{key}": value for key, value in code.items()}
        tags |= {f"host.{key}": value for key, value in machine.items()}
        tags |= {"mlflow.note.content": note} if note else {}
        recorded = self._recorded_params
        new = param_texts({key: value for key, value in params.items() if key not in recorded})
        self._recorded_params |= set(params)

        def write() -> None:
            self._log_params(self.parent_run_id, new)
            self.client.log_batch(self.parent_run_id, tags=run_tags(tags))
            self.client.log_inputs(self.parent_run_id, datasets=inputs)

        self._outbox.post(f"the {self.kind}'s settings", write)
        self._post_text(None, "config.yaml", text)
        self._start_monitor()

    def start_trial(self, number: int, name: str, params: Mapping[str, Any], new: bool = False) -> None:
        """Find or create the run of a trial.

        Args:
            number: the trial.
            name: distinguishes it in lists, such as `gru 128`.
            params: its parameters.
            new: whether no driver has started it before, so that MLflow need not be searched for its run.
        """
        flat = param_texts(params)
        started = _now()
        searched = not new

        def write() -> None:
            nonlocal searched
            run = self._find_run(number) if searched else None
            searched = True  # if this attempt fails, its request may have been accepted all the same
            exists = run is not None
            if run is not None and run.data.tags.get(_PARENT) != self.parent_run_id:
                self.client.set_tag(run.info.run_id, _PARENT, self.parent_run_id)
            if run is None:
                tags = {
                    "trial.number": str(number),
                    "trial.state": "RUNNING",
                    _PARENT: self.parent_run_id,
                }
                label = f"trial-{number:04d} {name}".strip()
                run = self._create_run(number, label, self._tags("trial") | tags, started)
            self._note_run(number, run)
            self._log_params(run.info.run_id, {k: v for k, v in flat.items() if k not in run.data.params})
            if exists:
                self.client.set_tag(run.info.run_id, "trial.state", "RUNNING")
                self.client.update_run(run.info.run_id, status="RUNNING")

        self._outbox.post(f"the start of trial {number}", write, number)

    def recorded_trials(self, numbers: Iterable[int]) -> dict[int, RecordedTrial]:
        """Return those of the trials that MLflow has, as it has them.

        The runs are listed from the newest to the first thousand that holds none of the trials, so that
        a trial that started long before the others may be left out.

        Raises:
            TrackingError: MLflow does not answer.
        """
        try:
            return self._list_trials(numbers)
        except MlflowException as error:
            raise TrackingError(f"tracking: {self.uri}: {describe_error(error)}") from error

    def compare(self, expected: Mapping[int, RecordedTrial], repair: Callable[[int], None]) -> None:
        """Call ``repair`` with each trial that MLflow lacks or has otherwise, in the background thread."""

        def write() -> None:
            found = self._list_trials(expected)
            for number in (number for number in expected if found.get(number) != expected[number]):
                repair(number)

        if expected:
            self._outbox.post(f"the comparison of {len(expected)} trials", write, "comparison")

    def _list_trials(self, numbers: Iterable[int]) -> dict[int, RecordedTrial]:
        missing = set(numbers)
        trials: dict[int, RecordedTrial] = {}
        which = f"tags.`sweep.id` = '{self.sweep_id}' AND tags.`run.kind` = 'trial'"
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
                self._note_run(number, runs[number])
                trials[number] = _recorded_trial(runs[number])
            token = (page.token or "") if missing & runs.keys() else ""
            missing -= runs.keys()
        return trials

    def note_delivered(self, number: int) -> None:
        """Record that every trial below ``number`` has ended, once all that was posted is delivered."""

        def write() -> None:
            self.client.set_tag(self.parent_run_id, _DELIVERED, str(number))
            self.delivered = number

        self._outbox.post(f"the delivery of {number} trials", write, "delivered", after_all=True)

    def recorded_epochs(self, number: int) -> set[int]:
        """Return the epochs of a trial that MLflow has; raises TrackingError.

        Where the last epoch is recorded, an earlier one may be missing: its record may have been refused.
        """
        try:
            history = self.client.get_metric_history(self.run_id(number), "epoch")
        except MlflowException as error:
            raise TrackingError(f"tracking: {self.uri}: {describe_error(error)}") from error
        self._recorded[number] = {point.step for point in history}
        return self._recorded[number]

    def log_epoch(
        self, number: int, epoch: int, metrics: Mapping[str, float], time: int | None = None
    ) -> None:
        """Record the metrics of one epoch, counted from 1; a recorded epoch is skipped.

        Epochs of a trial that wait for MLflow are delivered in one request.

        MLflow keeps one point for each ``time`` (ms, default: now). Infinities are recorded as NaN, because
        MLflow would store ±1.8e308, which flattens every chart.
        """
        now = _now() if time is None else time
        values = {**metrics, "epoch": float(epoch)}
        points = [
            Metric(key, value if math.isfinite(value) else math.nan, now, epoch)
            for key, value in values.items()
        ]

        with self._lock:
            self._waiting.setdefault(number, {})[epoch] = points

        def write() -> None:
            with self._lock:
                waiting = dict(self._waiting.get(number, {}))
            if epoch in waiting and not self._deliver_epochs(number, waiting):
                self._deliver_epochs(number, {epoch: points})

        self._post_to_trial(number, f"epoch {epoch} of trial {number}", write)

    def end_trial(
        self,
        number: int,
        state: State,
        ended: int | None = None,
        *,
        value: float | None = None,
        scores: Mapping[str, float] | None = None,
        reason: str = "",
        log_tail: str = "",
    ) -> None:
        """Close the run of a trial: FINISHED when complete, KILLED when pruned, FAILED with reason and log.

        Args:
            number: the trial.
            state: as Optuna names it.
            ended: time of the end (ms), default: now.
            value: its objective, the metric `objective` that lists are sorted by.
            scores: of its last checkpoint on the targets, where it was scored.
            reason: why it ended, one line.
            log_tail: the end of its log, kept as the artifact `log-tail.txt`.
        """
        ended = _now() if ended is None else ended
        tags = {"trial.state": state} | (
            {"trial.reason": reason, "mlflow.note.content": reason} if reason else {}
        )
        values = dict(scores or {}) | ({} if value is None else {"objective": value})
        metrics = [
            Metric(key, each if math.isfinite(each) else math.nan, ended, 0) for key, each in values.items()
        ]

        def write() -> None:
            run_id = self._run_ids[number]
            self.client.log_batch(run_id, metrics=metrics, tags=run_tags(tags))
            self.client.set_terminated(run_id, _STATUS[state], ended)
            self._recorded.pop(number, None)

        self._post_to_trial(number, f"the end of trial {number}", write)
        if log_tail:
            self._post_text(number, "log-tail.txt", log_tail)

    def run_id(self, number: int, timeout: float = 30.0) -> str:
        """Return the id of the run of a trial, created by this process or an earlier one.

        Raises:
            TrackingError: there is none, or it was not delivered within `timeout` seconds.
        """
        line = None
        if number not in self._run_ids:
            line = self.flush(timeout)
        if number not in self._run_ids and (run := self._find_run(number)) is not None:
            self._run_ids[number] = run.info.run_id
        if number not in self._run_ids:
            raise TrackingError(
                line or f"tracking: no run of trial {number} of sweep {self.sweep_id} at {self.uri}"
            )
        return self._run_ids[number]

    def run_ids(self, numbers: Iterable[int], timeout: float = 30.0) -> dict[int, str]:
        """Return the ids of the runs of those trials that have one; raises TrackingError."""
        wanted = set(numbers)
        if wanted - self._run_ids.keys():
            self.flush(timeout)
        self.recorded_trials(wanted - self._run_ids.keys())
        return {number: self._run_ids[number] for number in sorted(wanted & self._run_ids.keys())}

    def log_file(self, path: Path, folder: str | None = None) -> None:
        """Keep a file, such as the HTML report, as an artifact (in ``folder``) of the sweep's run."""
        self._outbox.post(
            f"the file {path.name}",
            lambda: self.client.log_artifact(self.parent_run_id, str(path), folder),
            f"file {folder}/{path.name}",
        )

    def finish(
        self,
        status: Literal["FINISHED", "FAILED", "KILLED"],
        metrics: Mapping[str, float] | None = None,
        note: str = "",
    ) -> None:
        """Close the sweep's run with its summary metrics; `note` is Markdown, such as the best parameters."""
        self._stop_monitor()
        ended = _now()
        points = [
            Metric(key, value, ended, 0) for key, value in (metrics or {}).items() if math.isfinite(value)
        ]
        tags = {"mlflow.note.content": note} if note else {}

        def write() -> None:
            self.client.log_batch(self.parent_run_id, metrics=points, tags=run_tags(tags))
            self.client.set_terminated(self.parent_run_id, status, ended)

        self._outbox.post(f"the end of the {self.kind}", write)

    def deliver(self) -> None:
        """Try again to deliver what waits; return at once."""
        self._outbox.deliver()

    def delivery_problem(self) -> str:
        """Return how many records wait for MLflow and why, and how many it refused; else an empty line."""
        return self._outbox.problem()

    def undelivered(self) -> int:
        """Return how many records wait for MLflow or were refused."""
        return len(self._outbox) + len(self._outbox.refused)

    def flush(self, timeout: float = 30.0) -> str | None:
        """Wait until everything is delivered; return None, or one line about what was not."""
        return self._outbox.flush(timeout)

    def close(self, timeout: float = 30.0) -> str | None:
        """Flush and stop; return the same as `flush`. What was not delivered is dropped."""
        self._stop_monitor()
        line = self._outbox.close(timeout)
        remove_escaped_folder(self.uri)
        return line

    def _deliver_epochs(self, number: int, epochs: Mapping[int, list[Metric]]) -> bool:
        """Deliver epochs of a trial in one request; return False if it is refused and they are several."""
        recorded = self._recorded.setdefault(number, set())
        batch: dict[int, list[Metric]] = {}
        for epoch in sorted(epochs):
            if sum(map(len, batch.values())) + len(epochs[epoch]) > _MAX_METRICS and batch:
                break
            batch[epoch] = epochs[epoch]
        points = [point for epoch, values in batch.items() if epoch not in recorded for point in values]
        try:
            if points:
                self.client.log_batch(self._run_ids[number], metrics=points)
        except MlflowException as error:
            if len(batch) > 1 and is_final(error):
                return False
            raise
        recorded.update(batch)
        with self._lock:
            for epoch in batch:
                self._waiting[number].pop(epoch, None)
            if not self._waiting[number]:
                del self._waiting[number]
        return True

    def _note_run(self, number: int, run: Run) -> None:
        self._run_ids[number] = run.info.run_id
        last = int(run.data.metrics.get("epoch", 0))
        self._recorded.setdefault(number, set(range(1, last + 1)))

    def _create_run(
        self, number: int | None, name: str, tags: dict[str, str], started: int | None = None
    ) -> Run:
        """Create the run of a trial, or of the job if ``number`` is None.

        A driver may be suspended between the check and the arrival of its request. If the job was lost
        meanwhile and its new driver created a run too, this one is deleted. Two runs stay if the new driver
        looks for one before this request arrives, and creates its own after this search.

        Raises:
            LeaseLostError: the job was lost.
        """
        run = self.client.create_run(self.experiment_id, start_time=started, tags=tags, run_name=name)
        try:
            self.check()
        except LeaseLostError:
            if len(self._find_runs(number)) > 1:
                unchecked = mlflow.MlflowClient(self.uri, registry_uri=self.uri)  # writes after the loss
                unchecked.delete_run(run.info.run_id)
            raise
        return run

    def _post_to_trial(
        self, number: int, what: str, job: Callable[[], None], subject: Subject | None = None
    ) -> None:
        subject = number if subject is None else subject

        def write() -> None:
            if number not in self._run_ids:  # started by an earlier process, or its start was not accepted
                run = self._find_run(number)
                if run is None and subject != number and self._outbox.waits(number):
                    raise MlflowException(f"trial {number} has no run yet")
                if run is None:
                    raise MlflowException.invalid_parameter_value(f"trial {number} has no run")
                self._note_run(number, run)
            job()

        self._outbox.post(what, write, subject)

    def _post_text(self, number: int | None, name: str, text: str) -> None:
        """Keep a text as an artifact of a trial or the job; a store may refuse files and accept metrics."""
        if number is None:
            what = f"the file {name}"
            self._outbox.post(what, lambda: self.client.log_text(self.parent_run_id, text, name), what)
        else:
            what = f"the file {name} of trial {number}"
            self._post_to_trial(
                number, what, lambda: self.client.log_text(self._run_ids[number], text, name), what
            )

    def _find_run(self, number: int | None = None) -> Run | None:
        return next(iter(self._find_runs(number)), None)

    def _find_runs(self, number: int | None) -> list[Run]:
        """Return the runs of a trial, or of the job if ``number`` is None, the oldest first.

        There is more than one only while a driver loses the job: see `_create_run`.
        """
        which = f"tags.`run.kind` = '{self.kind}'" if number is None else f"tags.`trial.number` = '{number}'"
        return self.client.search_runs(
            [self.experiment_id],
            f"tags.`sweep.id` = '{self.sweep_id}' AND {which}",
            max_results=2,
            order_by=["attributes.start_time ASC"],
        )

    def _tags(self, kind: str) -> dict[str, str]:
        tags = {"sweep.id": self.sweep_id, "sweep.name": self.sweep_name, "run.kind": kind}
        return tags | {"schema": str(_SCHEMA)}

    def _log_params(self, run_id: str, params: dict[str, str]) -> None:
        items = [Param(key, value) for key, value in params.items()]
        for start in range(0, len(items), _MAX_PARAMS):
            self.client.log_batch(run_id, params=items[start : start + _MAX_PARAMS])

    def _start_monitor(self) -> None:
        if self._monitor is None:
            self._monitor = CheckedMonitor(self.parent_run_id, self.uri, self.check)
            self._monitor.start()  # type: ignore[no-untyped-call]

    def _stop_monitor(self) -> None:
        if self._monitor is not None:
            self._monitor.finish()  # type: ignore[no-untyped-call]
            self._monitor = None


def _recorded_trial(run: Run) -> RecordedTrial:
    state = run.data.tags.get("trial.state", "") if run.info.status != "RUNNING" else "RUNNING"
    return RecordedTrial(state, int(run.data.metrics.get("epoch", 0)), run.data.tags.get(_PARENT, ""))


def _now() -> int:
    return int(time.time() * 1000)
