"""Trials on the cluster: Ray Tune runs what the study suggests, and everyone who watches is told."""

import logging
import signal
import tempfile
import time
from collections.abc import Mapping
from typing import Any, Literal

from optuna.trial import FrozenTrial, TrialState
from ray import tune
from ray.tune import Callback, Stopper, Trainable
from ray.tune.trainable.function_trainable import wrap_function

from orchestrator.config.sections import Resources
from orchestrator.config.sweep import Job
from orchestrator.console.arguments import leave_at_once
from orchestrator.console.progress import Progress, clock
from orchestrator.execution.cluster import Cluster
from orchestrator.execution.metrics import SweepMetrics, by_reason
from orchestrator.execution.trial import HALT, LOG, LOST, STARTED, TrialSpec, is_epoch, name, run
from orchestrator.execution.tune_adapters import NotSnapshotted, StudyScheduler, StudySearcher
from orchestrator.storage.directory import JobDirectory
from orchestrator.storage.lease import BEAT, Lease
from orchestrator.study.base import POINT, Study, epochs
from orchestrator.tracking.tracker import State, Tracker, TrackingError

_STATES: dict[TrialState, State] = {
    TrialState.COMPLETE: "COMPLETE",
    TrialState.PRUNED: "PRUNED",
    TrialState.FAIL: "FAIL",
}
_WORDS = {
    TrialState.COMPLETE: "done",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
    TrialState.RUNNING: "stopped",
}
_TRAINING = "training"


_MOST_FAILURES = 10
"""How often Tune starts a trial anew whose own process, which only waits for its workers, died."""

_TRIALS = 1000
"""Trials of one run of Tune, which never forgets one: so the memory of the driver is bounded."""

End = Literal["done", "interrupted", "failing"]


class Limits(NotSnapshotted, Stopper):
    """When all trials have to stop: a budget is spent, or there is no point in going on."""

    def __init__(self, study: Study, lease: Lease) -> None:
        self._study, self._lease = study, lease
        self.halted = ""
        """Why no trial can go on."""

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """No trial is stopped alone."""
        if HALT in result:
            self.halted = result[HALT]
        return False

    def stop_all(self) -> bool:
        """Whether all trials have to stop now."""
        return bool(self.spent() or self.failing() or self.halted)

    def spent(self) -> str:
        """Which budget is spent, if one is."""
        spent, study = self._lease.record.spent, self._study
        if study.wall is not None and spent.seconds >= study.wall:
            return f"the wall budget of {clock(study.wall)} is spent"
        if study.gpu_hours is not None and spent.gpu_seconds >= study.gpu_hours * 3600:
            return f"the budget of {study.gpu_hours:g} GPU hours is spent"
        return ""

    def failing(self) -> str:
        """Why the last trials failed, if all of so many did."""
        reasons = self._study.failing
        if self._study.most_failures is None or len(reasons) < self._study.most_failures:
            return ""
        common = max(set(reasons), key=reasons.count)
        return (
            f"the last {len(reasons)} trials failed, {reasons.count(common)} of them with: {common}; "
            "mend it, and the same command goes on (budget.failures sets how many)"
        )


def search(
    job: Job,
    study: Study,
    cluster: Cluster,
    directory: JobDirectory,
    lease: Lease,
    tracker: Tracker,
    progress: Progress,
) -> End:
    """Run the trials that the study has left; says how that ended."""
    monitor = Monitor(job, study, lease, tracker, progress)
    monitor.catch_up()
    limits = Limits(study, lease)
    if study.left() and not limits.spent():
        spec = TrialSpec(
            job=job.name,
            trainable=job.trainable,
            folder=f"{directory.root}/trials",
            filesystem=directory.filesystem,
            workers=job.resources.workers,
            cpus=job.resources.cpus,
            gpus=job.resources.gpus,
            silence=job.resources.silence,
            scored=study.scored,
        )
        lease.at_beat = monitor.beat
        with progress.doing(monitor.status):
            going = True
            while going and not study.ended() and not limits.stop_all():
                going = _tune(study, cluster, job.resources, spec, limits, monitor)
        monitor.catch_up()
    if reason := limits.spent():
        progress.say(reason)
        for number in study.close(reason):
            monitor.ended(number)
        return "done"
    if reason := limits.failing() or limits.halted:
        progress.say(reason)
        return "failing"
    if lease.ending:
        return "interrupted"
    return "done" if study.ended() else "interrupted"


def _tune(
    study: Study,
    cluster: Cluster,
    resources: Resources,
    spec: TrialSpec,
    limits: Limits,
    monitor: "Monitor",
) -> bool:
    """Let Ray Tune run some of the trials that are left; returns False when the user interrupted it."""
    # Tune keeps records of its own, which nobody reads: a job continues from its study.
    with tempfile.TemporaryDirectory() as scratch:
        tuner = tune.Tuner(
            _tune_trainable(spec, cluster.driver_bundle()),
            tune_config=tune.TuneConfig(
                num_samples=min(study.left(), _TRIALS),
                search_alg=StudySearcher(study),
                scheduler=StudyScheduler(study),
                max_concurrent_trials=cluster.concurrency(resources),
                trial_name_creator=lambda made: name(made.config["number"]),
                trial_dirname_creator=lambda made: name(made.config["number"]),
            ),
            run_config=tune.RunConfig(
                name="tune",
                storage_path=scratch,
                stop=limits,
                failure_config=tune.FailureConfig(max_failures=_MOST_FAILURES),
                callbacks=[monitor],
                verbose=0,
            ),
        )
        # Tune would print the traceback of every failed trial: it stands in the trial's MLflow run.
        logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
        # Tune stops its trials at the first signal, and leaves the second to whom it found here.
        before = signal.signal(signal.SIGINT, leave_at_once)
        try:
            tuner.fit()
            return signal.getsignal(signal.SIGINT) is not leave_at_once
        finally:
            signal.signal(signal.SIGINT, before)


def _tune_trainable(spec: TrialSpec, bundle: tune.PlacementGroupFactory) -> type[Trainable]:
    """What Tune runs for each trial: an actor called after its trial on the dashboard."""

    class Trial(wrap_function(lambda point: run(point, spec))):  # type: ignore[misc]
        def __repr__(self) -> str:
            return str(self.trial_name)

        @classmethod
        def default_resource_request(cls, config: dict[str, Any]) -> tune.PlacementGroupFactory:
            return bundle

    return Trial


class Monitor(NotSnapshotted, Callback):
    """Tells the terminal, MLflow, the Ray metrics endpoint and the driver's record what the trials do."""

    def __init__(self, job: Job, study: Study, lease: Lease, tracker: Tracker, progress: Progress) -> None:
        self._job, self._study, self._lease = job, study, lease
        self._tracker, self._progress = tracker, progress
        self._begin = time.monotonic()
        self._ended_before = self._ended()
        self._epochs: dict[int, int] = {}
        self._doing: dict[int, str] = {}
        self._rates: dict[int, float] = {}
        self._metrics = SweepMetrics(job)
        self._measured = -BEAT

    def catch_up(self) -> None:
        """Tell MLflow what only the study knows, such as what a dead driver left untold."""
        try:
            known = self._tracker.known()
        except TrackingError as error:
            self._progress.say(str(error))
            return
        for trial in self._study.suggested:
            run = known.get(trial.number)
            if run is not None and trial.state in _STATES and run.state == _STATES[trial.state]:
                continue
            if run is None:
                self._start(trial.number, self._study.values(trial))
            for epoch, metrics in epochs(trial).items():
                if run is None or epoch > run.epoch:
                    self._log(trial.number, epoch, metrics)
            self._close(trial)

    def beat(self, seconds: float) -> dict[str, Any]:
        """Account for the seconds that went by, and say what every trial is doing."""
        doing = dict(self._doing)
        resources = self._job.resources
        working = sum(text == _TRAINING for text in doing.values())
        self._lease.record.spent.gpu_seconds += seconds * working * resources.workers * resources.gpus
        self._tracker.deliver()
        return {
            "trials": {
                name(number): f"{text}, epoch {self._epochs.get(number, 0)}" for number, text in doing.items()
            },
            "undelivered": self._tracker.trouble(),
        }

    def status(self) -> str:
        """One line: trials by state, how the study stands, epochs, time gone and time left."""
        counts = ", ".join(
            f"{count} {state.replace('complete', 'done')}" for state, count in self._study.count().items()
        )
        total, ended = self._study.total, self._ended()
        elapsed = time.monotonic() - self._begin
        epochs = sum(self._epochs.values())
        line = f"trials: {counts} of {total} | {self._study.standing()} | {epochs} epochs"
        line += f" | {clock(elapsed)} gone"
        done_here = ended - self._ended_before
        if done_here:
            line += f", about {clock(elapsed / done_here * (total - ended))} left"
        return line

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """Bring the metrics up to date, every few seconds."""
        if time.monotonic() - self._measured >= BEAT:
            self._measured = time.monotonic()
            self._measure()

    def on_experiment_end(self, trials: list[Any], **info: Any) -> None:
        """Leave the metrics as they are at the end."""
        self._measure()

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Tell of a trial that starts, and open its MLflow run."""
        number, values = trial.config["number"], trial.config["values"]
        self._start(number, values)
        again = " again" if number in self._doing else ""
        self._doing[number] = "waiting for its workers"
        self._progress.say(f"{name(number)} starts{again}: {describe(values)}")

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """Log one epoch, or what else a trial has to tell."""
        number = trial.config["number"]
        self._metrics.reported()
        if STARTED in result:
            self._doing[number] = _TRAINING
        if LOST in result:
            self._doing[number] = "waiting for its workers"
            self._progress.say(f"{name(number)} goes on from its last checkpoint: {result[LOST]}")
        if not is_epoch(result):
            return
        epoch = int(result["epoch"])
        metrics = epochs(self._study.trials[number])[epoch]
        self._log(number, epoch, metrics)
        self._epochs[number] = epoch
        if self._job.implementation.throughput:
            self._rates[number] = metrics.get(self._job.implementation.throughput, 0.0)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Tell how a trial ended, and close its MLflow run."""
        self.ended(trial.config["number"])

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Tell that the process of a trial died too often."""
        self.ended(trial.config["number"])

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Tell that the process of a trial died."""
        number = trial.config["number"]
        self._doing[number] = "waiting for a process"
        self._progress.say(f"{name(number)} goes on from its last checkpoint: its process died")

    def ended(self, number: int) -> None:
        """Tell the end of one trial as the study has it."""
        ended = self._study.trials[number]
        self._rates.pop(number, None)
        self._doing.pop(number, None)
        self._close(ended)
        self._progress.say(f"{name(number)} {_WORDS[ended.state]}: {self._study.describe(ended)}")

    def _start(self, number: int, values: Mapping[str, Any]) -> None:
        short = {path.rpartition(".")[2]: value for path, value in values.items()}
        label = " ".join(f"{key}={value}" for key, value in short.items() if not isinstance(value, float))
        point = self._study.trials[number].user_attrs.get(POINT, "")
        self._tracker.start_trial(number, f"{point} {label}".strip(), self._study.parameters(values))

    def _log(self, number: int, epoch: int, metrics: Mapping[str, float]) -> None:
        values = {metric: value for metric, value in metrics.items() if metric != "time"}
        self._tracker.log_epoch(number, epoch, values, int(metrics["time"]))

    def _close(self, trial: FrozenTrial) -> None:
        if trial.state in _STATES and trial.datetime_complete is not None:
            self._tracker.end_trial(
                trial.number,
                _STATES[trial.state],
                int(trial.datetime_complete.timestamp() * 1000),
                value=self._study.objective(trial),
                scores=self._study.scores(trial),
                reason=trial.user_attrs.get("reason", ""),
                log_tail=trial.user_attrs.get(LOG, ""),
            )

    def _measure(self) -> None:
        self._metrics.update(
            self._study,
            self._lease.record.spent,
            by_reason(self._doing, _TRAINING),
            sum(self._rates.values()),
            self._tracker.undelivered(),
        )

    def _ended(self) -> int:
        counts = self._study.count()
        return sum(counts.values()) - counts["running"]


def describe(values: Mapping[str, Any]) -> str:
    """Searched values in one line, numbers to three digits."""
    return ", ".join(
        f"{path}={value:.3g}" if isinstance(value, float) else f"{path}={value}"
        for path, value in values.items()
    )
