"""What the driver of a job records in MLflow, in the background."""

import math
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import yaml
from mlflow.entities import Metric
from mlflow.exceptions import MlflowException
from sqlalchemy.exc import SQLAlchemyError

from orchestrator.errors import InputError, SweepError, TrackingError, UnreachableError
from orchestrator.tracking import provenance
from orchestrator.tracking.outbox import Outbox, Subject, describe_error, is_final, is_unreachable
from orchestrator.tracking.records import dataset_inputs, param_texts, run_tags
from orchestrator.tracking.runs import JobRuns, RecordedTrial, State, make_points, now
from orchestrator.tracking.store import quiet_mlflow, remove_escaped_folder
from orchestrator.tracking.system_metrics import CheckedMonitor
from orchestrator.trainable import DataSetRecord

_DELIVERED = "trials.delivered"
"""Tag of the run of a job: every trial below this number has ended, and all its records are here."""


class Tracker:
    """The only writer to MLflow, in the driver of a job.

    Methods that record return at once; a background thread delivers to `JobRuns` in order, and `flush`
    returns what was not delivered. Delivering a record twice, or rerunning the sweep, duplicates nothing.
    """

    def __init__(
        self,
        uri: str,
        experiment: str,
        sweep_name: str,
        sweep_id: str,
        kind: str = "sweep",
        check: Callable[[], None] = lambda: None,
        storage: str = "",
    ) -> None:
        """Open the store, and find or create the experiment and the run of the job.

        Args:
            uri: the store.
            experiment: name of the experiment.
            sweep_name: name of the job.
            sweep_id: its id.
            kind: its kind.
            check: is called before each write; raises LeaseLostError when nothing may be written any more.
            storage: address of the storage of the job.

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
        self._waiting: dict[int, dict[int, list[Metric]]] = {}
        """Points that were not delivered yet, by trial and epoch."""

        self._lock = threading.Lock()
        self._monitor: CheckedMonitor | None = None
        self.check = check
        try:
            self._runs = JobRuns(self.uri, experiment, sweep_name, sweep_id, kind, check, storage)
        except (MlflowException, SQLAlchemyError, OSError) as error:
            kind_of_error = UnreachableError if is_unreachable(error) else InputError
            raise kind_of_error(
                f"tracking.uri: cannot record at {self.uri}: {describe_error(error)}"
            ) from error
        self.client, self.experiment_id = self._runs.client, self._runs.experiment_id
        self.parent_run_id = self._runs.job_id
        data = self._runs.job.data
        self.delivered = int(data.tags.get(_DELIVERED, 0))
        """Every trial below this number has ended, and MLflow has all its records."""

        self._recorded_params = set(data.params)
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
                f"tracking: this machine cannot write files to {self._runs.job.info.artifact_uri}, where the "
                f"experiment at {self.uri} keeps them: {describe_error(error)}{advice}"
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
            self._runs.log_params(self.parent_run_id, new)
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
        texts = param_texts(params)
        started = now()
        search = not new

        def write() -> None:
            nonlocal search
            may_exist, search = search, True  # if this attempt fails, its request may have been accepted
            self._runs.start_trial(number, name, texts, started, may_exist)

        self._outbox.post(f"the start of trial {number}", write, number)

    def recorded_trials(self, numbers: Iterable[int]) -> dict[int, RecordedTrial]:
        """Return those of the trials that MLflow has, as it has them.

        The runs are listed from the newest to the first thousand that holds none of the trials, so that
        a trial that started long before the others may be left out.

        Raises:
            TrackingError: MLflow does not answer.
        """
        with self._explained():
            return self._runs.list_trials(numbers)

    def set_aside_all_but(self, known: Collection[int]) -> list[int]:
        """Set aside the runs of trials with other numbers, which the study does not know; return these.

        Raises:
            TrackingError: MLflow does not answer.
        """
        with self._explained():
            return self._runs.set_aside_all_but(known)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Raise errors of MLflow as TrackingError."""
        try:
            yield
        except MlflowException as error:
            raise TrackingError(f"tracking: {self.uri}: {describe_error(error)}") from error

    def compare(self, expected: Mapping[int, RecordedTrial], repair: Callable[[int], None]) -> None:
        """Call ``repair`` with each trial that MLflow lacks or has otherwise, in the background thread."""

        def write() -> None:
            found = self._runs.list_trials(expected)
            for number in (number for number in expected if found.get(number) != expected[number]):
                repair(number)

        if expected:
            self._outbox.post(f"the comparison of {len(expected)} trials", write, "comparison")

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
        with self._explained():
            self.run_id(number)
            return self._runs.recorded_epochs(number)

    def log_epoch(
        self, number: int, epoch: int, metrics: Mapping[str, float], time: int | None = None
    ) -> None:
        """Record the metrics of one epoch, counted from 1; a recorded epoch is skipped.

        Epochs of a trial that wait for MLflow are delivered in one request. MLflow keeps one point for each
        ``time`` (ms, default: now).
        """
        points = make_points({**metrics, "epoch": float(epoch)}, now() if time is None else time, epoch)
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
        ended = now() if ended is None else ended
        metrics = dict(scores or {}) | ({} if value is None else {"objective": value})
        tags = {"trial.reason": reason, "mlflow.note.content": reason} if reason else {}

        def write() -> None:
            self._runs.end_trial(number, state, ended, metrics, tags)

        self._post_to_trial(number, f"the end of trial {number}", write)
        if log_tail:
            self._post_text(number, "log-tail.txt", log_tail)

    def run_id(self, number: int, timeout: float = 30.0) -> str:
        """Return the id of the run of a trial, created by this process or an earlier one.

        Raises:
            TrackingError: there is none, or it was not delivered within `timeout` seconds.
        """
        line = None
        if number not in self._runs.ids:
            line = self.flush(timeout)
        if not self._runs.find_trial(number):
            raise TrackingError(
                line or f"tracking: no run of trial {number} of sweep {self.sweep_id} at {self.uri}"
            )
        return self._runs.ids[number]

    def run_ids(self, numbers: Iterable[int], timeout: float = 30.0) -> dict[int, str]:
        """Return the ids of the runs of those trials that have one; raises TrackingError."""
        wanted, ids = set(numbers), self._runs.ids
        if wanted - ids.keys():
            self.flush(timeout)
        self.recorded_trials(wanted - ids.keys())
        return {number: ids[number] for number in sorted(wanted & ids.keys())}

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
        ended = now()
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
        try:
            delivered = self._runs.log_epochs(number, epochs)
        except MlflowException as error:
            if is_final(error) and len(epochs) > 1:
                return False
            if is_final(error):  # it would have the later epochs refused with it
                self._forget_epochs(number, epochs)
            raise
        self._forget_epochs(number, delivered)
        return True

    def _forget_epochs(self, number: int, epochs: Iterable[int]) -> None:
        with self._lock:
            for epoch in epochs:
                self._waiting[number].pop(epoch, None)
            if not self._waiting[number]:
                del self._waiting[number]

    def _post_to_trial(
        self, number: int, what: str, job: Callable[[], None], subject: Subject | None = None
    ) -> None:
        subject = number if subject is None else subject

        def write() -> None:
            if not self._runs.find_trial(number):  # its start was not accepted
                if subject != number and self._outbox.waits(number):
                    raise MlflowException(f"trial {number} has no run yet")
                raise MlflowException.invalid_parameter_value(f"trial {number} has no run")
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
                number, what, lambda: self.client.log_text(self._runs.ids[number], text, name), what
            )

    def _start_monitor(self) -> None:
        if self._monitor is None:
            self._monitor = CheckedMonitor(self.parent_run_id, self.uri, self.check)
            self._monitor.start()  # type: ignore[no-untyped-call]

    def _stop_monitor(self) -> None:
        if self._monitor is not None:
            self._monitor.finish()  # type: ignore[no-untyped-call]
            self._monitor = None
