"""Trials on the cluster: Ray Tune runs what the study suggests, and everyone who watches is told."""

import logging
import signal
import time
from collections.abc import Mapping
from typing import Any

from optuna.trial import TrialState
from ray import tune
from ray.tune import Callback, Trainable
from ray.tune.trainable.function_trainable import wrap_function
from ray.util.metrics import Gauge

from orchestrator.cluster import Cluster
from orchestrator.config import Job
from orchestrator.directory import JobDirectory
from orchestrator.progress import Progress, clock
from orchestrator.study import NotSnapshotted, Study, StudyScheduler, StudySearcher
from orchestrator.tracking import State, Tracker
from orchestrator.trial import LOG, NAMES, TrialSpec, is_epoch, name, run

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


def search(
    job: Job,
    study: Study,
    cluster: Cluster,
    directory: JobDirectory,
    tracker: Tracker,
    progress: Progress,
) -> bool:
    """Run the trials that the study has left; returns False when it was interrupted."""
    if study.left() == 0:
        return True  # a driver before this one came to the end, but not to the outcome
    monitor = Monitor(job, study, tracker, progress)
    spec = TrialSpec(
        trainable=job.trainable,
        folder=str(directory.trials),
        workers=job.resources.workers,
        cpus=job.resources.cpus,
        gpus=job.resources.gpus,
        scored=study.scored,
    )

    tuner = tune.Tuner(
        _tune_trainable(spec, cluster.driver_bundle()),
        tune_config=tune.TuneConfig(
            num_samples=study.left(),
            search_alg=StudySearcher(study),
            scheduler=StudyScheduler(study),
            max_concurrent_trials=cluster.concurrency(job.resources),
            time_budget_s=study.wall,
            trial_name_creator=lambda made: name(made.config["number"]),
            trial_dirname_creator=lambda made: name(made.config["number"]),
        ),
        run_config=tune.RunConfig(
            name=time.strftime("%Y%m%d-%H%M%S"),
            storage_path=str(directory.tune),
            callbacks=[monitor],
            verbose=0,
        ),
    )
    # Tune would print the traceback of every failed trial: it stands in the trial's MLflow run.
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    begin = time.monotonic()
    on_interrupt = signal.getsignal(signal.SIGINT)
    try:
        with progress.doing(monitor.status):
            tuner.fit()
    finally:
        signal.signal(signal.SIGINT, on_interrupt)  # Tune leaves its own behind
    if study.wall is not None and time.monotonic() - begin >= study.wall:
        progress.say(f"the wall budget of {clock(study.wall)} is spent")
        for number in study.close("the wall budget was spent"):
            monitor.ended(number, None)
        return True
    return study.ended()


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
    """Tells the terminal, MLflow and the Ray metrics endpoint what the trials do."""

    def __init__(self, job: Job, study: Study, tracker: Tracker, progress: Progress) -> None:
        self._job, self._study, self._tracker, self._progress = job, study, tracker, progress
        self._begin = time.monotonic()
        self._ended_before = self._ended()
        self._epochs: dict[int, int] = {}
        self._rates: dict[int, float] = {}
        self._trials = Gauge("sweep_trials", "Trials of the sweep by state", ("sweep", "state"))
        self._best = Gauge("sweep_best_objective", "Best objective of a complete trial", ("sweep", "metric"))
        self._throughput = Gauge(
            f"sweep_{job.implementation.throughput or 'throughput'}",
            "Work per second of all running trials",
            ("sweep",),
        )
        self._gauge()

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

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Tell of a trial that starts, and open its MLflow run."""
        number, values = trial.config["number"], trial.config["values"]
        short = {path.rpartition(".")[2]: value for path, value in values.items()}
        label = " ".join(f"{key}={value}" for key, value in short.items() if not isinstance(value, float))
        self._tracker.start_trial(number, label, self._study.parameters(values))
        self._progress.say(f"{name(number)} starts: {describe(values)}")
        self._gauge()

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """Log one epoch."""
        if not is_epoch(result):
            return
        number = trial.config["number"]
        epoch = int(result["epoch"])
        metrics = {key: float(result[key]) for key in result[NAMES] if key != "epoch"}
        self._tracker.log_epoch(number, epoch, metrics)
        self._epochs[number] = epoch
        if self._job.implementation.throughput:
            self._rates[number] = metrics.get(self._job.implementation.throughput, 0.0)
        self._gauge()

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Tell how a trial ended, and close its MLflow run."""
        self.ended(trial.config["number"], trial.last_result.get(LOG))

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Tell that the process of a trial died."""
        self.ended(trial.config["number"], str(trial.get_error()))

    def ended(self, number: int, log: str | None) -> None:
        """Tell the end of one trial as the study has it."""
        ended = self._study.trials[number]
        self._rates.pop(number, None)
        if ended.state in _STATES:
            self._tracker.end_trial(
                number,
                _STATES[ended.state],
                value=self._study.objective(ended),
                scores=self._study.scores(ended),
                reason=ended.user_attrs.get("reason", ""),
                log_tail=log or "",
            )
        self._progress.say(f"{name(number)} {_WORDS[ended.state]}: {self._study.describe(ended)}")
        self._gauge()

    def _ended(self) -> int:
        counts = self._study.count()
        return sum(counts.values()) - counts["running"]

    def _gauge(self) -> None:
        for state, count in self._study.count().items():
            self._trials.set(count, {"sweep": self._job.name, "state": state})
        for metric, value in self._study.best_objective().items():
            self._best.set(value, {"sweep": self._job.name, "metric": metric})
        self._throughput.set(sum(self._rates.values()), {"sweep": self._job.name})


def describe(values: Mapping[str, Any]) -> str:
    """Searched values in one line, numbers to three digits."""
    return ", ".join(
        f"{path}={value:.3g}" if isinstance(value, float) else f"{path}={value}"
        for path, value in values.items()
    )
