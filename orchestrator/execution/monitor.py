"""Publishes the progress of the trials: terminal, log, MLflow, Ray's metrics and the driver's record."""

import logging
import math
import re
import time
from collections.abc import Mapping
from typing import Any

from optuna.trial import FrozenTrial, TrialState
from ray.tune import Callback

from orchestrator.config.job import Job
from orchestrator.console.tables import format_count, format_duration, format_values
from orchestrator.errors import TrackingError
from orchestrator.execution.metrics import SweepMetrics
from orchestrator.execution.tune_adapters import NotSnapshotted
from orchestrator.storage.lease import HEARTBEAT_SECONDS, Activity, Lease
from orchestrator.storage.names import CHECKPOINT
from orchestrator.study import attributes
from orchestrator.study.base import Study
from orchestrator.study.trial_report import (
    EpochEnded,
    Started,
    WorkersLost,
    WorkersReplaced,
    decode,
    trial_name,
)
from orchestrator.tracking.runs import RecordedTrial, State
from orchestrator.tracking.tracker import Tracker
from orchestrator.trainable import metric_name_fault

_log = logging.getLogger(__name__)

_STATES: dict[TrialState, State] = {
    TrialState.COMPLETE: "COMPLETE",
    TrialState.PRUNED: "PRUNED",
    TrialState.FAIL: "FAIL",
}
_WORDS = {
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
    TrialState.RUNNING: "stopped",
}

_TRIALS_PER_NOTE = 200
"""Trials that end until MLflow is told again how many are delivered."""

_LONG_SECONDS = 10.0
"""Time of a suggestion or record after which the line of the state names it."""

_USAGE_SECONDS = 60.0
"""Time after which the study is told again what of the budget is used."""

_REPEAT_SECONDS = 600.0
"""How long the same fault of the storage is not logged again for the same trial."""

_TRAINING = "training"
_WAITING = "waiting for "


class Estimate:
    """An estimate of the time that trials will take, by the mean of those that ended before."""

    def __init__(self) -> None:
        self._ended, self._seconds = 0, 0.0

    def remaining(self, ended: int, left: int, elapsed: float) -> float | None:
        """Return the seconds until ``left`` trials have ended; None before the first end, or if one is late.

        Args:
            ended: trials that have ended.
            left: those that have not.
            elapsed: seconds since the first start. Between two ends the estimate counts down.
        """
        if ended != self._ended:
            self._ended, self._seconds = ended, elapsed
        if not ended:
            return None
        seconds = self._seconds / ended * left - (elapsed - self._seconds)
        return None if left and seconds <= 0 else max(0.0, seconds)


class TrialMonitor(NotSnapshotted, Callback):
    """A callback of Ray Tune that publishes every report of every trial."""

    def __init__(self, job: Job, study: Study, lease: Lease, tracker: Tracker) -> None:
        self._job, self._study, self._lease, self._tracker = job, study, lease, tracker
        self._start = time.monotonic()
        self._ended_before = self._ended()
        self._first = len(study.trials)
        """Trials from this number on are new: no earlier driver has started them."""

        self._started: set[int] = set()
        self._published = 0
        self._epochs: dict[int, int] = {}
        self._activity: dict[int, str] = {}
        self._losses: dict[int, list[str]] = {}
        """Why each trial lost its workers since its last new epoch."""

        self._logged: dict[tuple[int, str], float] = {}
        """When each fault of the storage was last logged, by trial and reason."""

        self._rates: dict[int, float] = {}
        self._metrics = SweepMetrics(job)
        self._estimate = Estimate()
        self._last_update = -HEARTBEAT_SECONDS
        self._last_usage = self._start

    def catch_up(self) -> None:
        """Record in MLflow what only the study has, such as what a driver that died did not deliver."""
        trials = [trial for trial in self._study.started_trials if trial.number >= self._tracker.delivered]
        try:
            known = {trial.number for trial in self._study.trials}
            if lost := self._tracker.set_aside_all_but(known):
                names = ", ".join(map(trial_name, lost))
                _log.warning(
                    "MLflow has %s, which the study does not have: was an older copy of it put back? "
                    "Their runs are set aside, with the tag run.kind 'lost trial'",
                    names,
                )
            recorded = self._tracker.recorded_trials(trial.number for trial in trials)
            for trial in trials:
                self._catch_up_trial(trial, recorded.get(trial.number))
        except TrackingError as error:  # the next driver catches up
            _log.warning("%s", error)
            return
        self._note_delivered()

    def compare_delivered(self) -> None:
        """Record again, in the background, delivered trials whose runs were deleted or damaged in MLflow."""
        trials = {
            trial.number: trial
            for trial in self._study.started_trials
            if trial.number < self._tracker.delivered and trial.state in _STATES
        }
        expected = {
            number: RecordedTrial(
                _STATES[trial.state],
                max(attributes.epochs(trial), default=0),
                self._tracker.parent_run_id,
            )
            for number, trial in trials.items()
        }
        self._tracker.compare(expected, lambda number: self._record_again(trials[number]))

    def _record_again(self, trial: FrozenTrial) -> None:
        """Record all that the study has of a trial; what MLflow has of it is skipped."""
        _log.info("%s is not in MLflow as it was recorded; it is recorded again", trial_name(trial.number))
        self._track_start(trial.number, self._study.values(trial))
        for epoch, metrics in attributes.epochs(trial).items():
            self._track_epoch(trial.number, epoch, metrics)
        self._track_end(trial)

    def _catch_up_trial(self, trial: FrozenTrial, run: RecordedTrial | None) -> None:
        """Record in MLflow what it lacks of a trial; raises TrackingError."""
        epochs = attributes.epochs(trial)
        if run is None or run.parent != self._tracker.parent_run_id:
            self._track_start(trial.number, self._study.values(trial))
            missing = set(epochs)  # those that the run has are skipped
        else:
            missing = set(epochs) - self._tracker.recorded_epochs(trial.number)
            if not missing and trial.state in _STATES and run.state == _STATES[trial.state]:
                return
        for epoch in sorted(missing):
            self._track_epoch(trial.number, epoch, epochs[epoch])
        self._track_end(trial)

    def on_heartbeat(self, seconds: float) -> Activity:
        """Account for the seconds since the last heartbeat; return the activity for the driver's record."""
        activity = dict(self._activity)
        resources = self._job.resources
        training = sum(text == _TRAINING for text in activity.values())
        self._lease.record.used.gpu_seconds += seconds * training * resources.workers * resources.gpus
        self._tracker.deliver()
        trials = {
            trial_name(number): f"{text}, epoch {self._epochs.get(number, 0)}{self._describe_losses(number)}"
            for number, text in activity.items()
        }
        return Activity(trials=trials, undelivered=self._tracker.delivery_problem())

    def status_line(self) -> str:
        """Return trials by state, the headline of the study, epochs, times, and what is waited for."""
        counts = ", ".join(f"{count} {state}" for state, count in self._study.count().items())
        total, ended = self._study.total, self._ended()
        elapsed = time.monotonic() - self._start
        epochs = sum(self._epochs.values())
        line = f"trials: {counts} of {total} | {self._study.headline()} | {format_count(epochs, 'epoch')}"
        line += f" | {format_duration(elapsed)} elapsed"
        remaining = self._estimate.remaining(ended - self._ended_before, total - ended, elapsed)
        if remaining is not None:
            line += f", about {format_duration(remaining)} remaining"
        if waiting := sum(text != _TRAINING for text in list(self._activity.values())):
            line += f" | {waiting} waiting for workers"
        if (seconds := self._study.seconds_busy()) > _LONG_SECONDS:
            line += f" | waiting for the study for {format_duration(seconds)}"
        return line

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """Update the metrics every few seconds."""
        if time.monotonic() - self._last_update >= HEARTBEAT_SECONDS:
            self._last_update = time.monotonic()
            self._update_metrics()

    def on_experiment_end(self, trials: list[Any], **info: Any) -> None:
        """Leave the final metrics."""
        self._update_metrics()

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Log a trial that starts, and open its MLflow run."""
        number, values = trial.config["number"], trial.config["values"]
        self._track_start(number, values, new=number >= self._first and number not in self._started)
        self._started.add(number)
        again = " again" if number in self._activity else ""
        self._activity[number] = f"{_WAITING}its workers"
        _log.info("%s starts%s: %s", trial_name(number), again, format_values(values))

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """Publish one report of a trial."""
        number = trial.config["number"]
        report = decode(result)
        if report is None:
            return
        self._metrics.note_report()
        match report:
            case Started():
                self._activity[number] = _TRAINING
            case WorkersLost(reason):
                self._activity[number] = f"{_WAITING}its workers"
                losses = self._losses.setdefault(number, [])
                losses.append(reason)
                # While the storage fails, a trial is tried again without limit; `status` counts how often.
                repeated = reason.startswith("storage:") and self._is_repeated(number, reason)
                if not repeated:
                    _log.warning("%s resumes from its last checkpoint: %s", trial_name(number), reason)
            case WorkersReplaced(reason):
                _log.info("%s gets new workers: after their last trial, %s", trial_name(number), reason)
            case EpochEnded(epoch):
                # As the study has it: a repeated epoch keeps its first metrics and its time.
                metrics = self._study.trial(number).user_attrs.get(attributes.epoch_key(epoch))
                if metrics is None:  # another program had ended the trial
                    return
                self._track_epoch(number, epoch, metrics)
                if epoch > self._epochs.get(number, 0):
                    self._losses.pop(number, None)
                self._epochs[number] = epoch
                if self._job.implementation.throughput:
                    self._rates[number] = metrics.get(self._job.implementation.throughput, 0.0)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Publish the end of a trial."""
        self.publish_end(trial.config["number"])

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Publish the end of a trial whose process died too often, unless the study lets it resume."""
        number = trial.config["number"]
        if self._study.trial(number).state.is_finished():
            self.publish_end(number)
        else:
            self.on_trial_recover(iteration, trials, trial)

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Log that the process of the lane of a trial died."""
        number = trial.config["number"]
        self._activity[number] = f"{_WAITING}a process"
        _log.warning("%s resumes from its last checkpoint: its process died", trial_name(number))

    def publish_end(self, number: int) -> None:
        """Publish the end of one trial as the study has it."""
        trial = self._study.trial(number)
        self._rates.pop(number, None)
        self._activity.pop(number, None)
        self._losses.pop(number, None)
        self._logged = {key: logged for key, logged in self._logged.items() if key[0] != number}
        self._track_end(trial)
        self._published += 1
        if time.monotonic() - self._last_usage >= _USAGE_SECONDS:
            self._last_usage = time.monotonic()
            self._study.record_usage(self._lease.record.used)
        if self._published % _TRIALS_PER_NOTE == 0:
            self._note_delivered()
        _log.info("%s %s: %s", trial_name(number), _WORDS[trial.state], self._study.describe(trial))

    def _note_delivered(self) -> None:
        """Let the next driver skip the trials up to the first that has not ended, once they are delivered."""
        trials = self._study.trials
        first = next((trial.number for trial in trials if not trial.state.is_finished()), len(trials))
        if first > self._tracker.delivered:
            self._tracker.note_delivered(first)

    def _track_start(self, number: int, values: Mapping[str, Any], new: bool = False) -> None:
        short = {path.rpartition(".")[2]: value for path, value in values.items()}
        label = " ".join(f"{key}={value}" for key, value in short.items() if not isinstance(value, float))
        point = self._study.trial(number).user_attrs.get(attributes.POINT, "")
        self._tracker.start_trial(number, f"{point} {label}".strip(), self._study.parameters(values), new)

    def _track_epoch(self, number: int, epoch: int, metrics: Mapping[str, float]) -> None:
        # Metrics of an earlier version may have names that MLflow refuses.
        values = {
            metric: value
            for metric, value in metrics.items()
            if metric != "time" and metric_name_fault(metric) is None
        }
        self._tracker.log_epoch(number, epoch, values, int(metrics["time"]))

    def _track_end(self, trial: FrozenTrial) -> None:
        if trial.state in _STATES and trial.datetime_complete is not None:
            self._tracker.end_trial(
                trial.number,
                _STATES[trial.state],
                int(trial.datetime_complete.timestamp() * 1000),
                value=self._study.objective(trial),
                scores=self._study.scores(trial),
                reason=attributes.reason(trial),
                log_tail=trial.user_attrs.get(attributes.LOG, ""),
            )

    def _is_repeated(self, number: int, reason: str) -> bool:
        """Return whether this loss was logged a short time ago; otherwise note that it is logged now."""
        # Each attempt writes a checkpoint of another name.
        now, key = time.monotonic(), (number, re.sub(rf"{CHECKPOINT}[\w-]+", CHECKPOINT, reason))
        if now - self._logged.get(key, -math.inf) < _REPEAT_SECONDS:
            return True
        self._logged[key] = now
        return False

    def _describe_losses(self, number: int) -> str:
        """Return how often a trial lost its workers since its last new epoch, and why last; else nothing."""
        losses = self._losses.get(number)
        return f"; lost its workers {format_count(len(losses), 'time')}: {losses[-1]}" if losses else ""

    def _update_metrics(self) -> None:
        waiting = [text.removeprefix(_WAITING) for text in self._activity.values() if text != _TRAINING]
        self._metrics.update(
            self._study,
            self._lease.record.used,
            waiting,
            sum(self._rates.values()),
            self._tracker.undelivered(),
        )

    def _ended(self) -> int:
        counts = self._study.count()
        return sum(counts.values()) - counts["running"]
