"""From a checked file to its outcome, step by step: what every job does, and how a sweep ends."""

import contextlib
import dataclasses
import signal
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, ClassVar, Literal

import ray
from optuna.exceptions import StorageInternalError
from rich.console import RenderableType
from sqlalchemy.exc import DatabaseError, OperationalError

from orchestrator.config.sweep import Job, Sweep
from orchestrator.console.arguments import leave_at_once
from orchestrator.console.progress import Progress
from orchestrator.drivers.plan import pairs, plan
from orchestrator.errors import InputError, StorageError, SweepError, is_full
from orchestrator.execution import cluster
from orchestrator.execution.cluster import Cluster
from orchestrator.execution.reaper import Watch
from orchestrator.execution.runner import search
from orchestrator.execution.trial import evaluate, explain, name, trainable_task
from orchestrator.report import sweep as report
from orchestrator.storage.directory import JobDirectory
from orchestrator.storage.lease import Lease
from orchestrator.study import warm_start
from orchestrator.study.base import Study, SweepStudy
from orchestrator.study.warm_start import Fitted
from orchestrator.tracking import model_registry as registry
from orchestrator.tracking import preflight as tracking_store
from orchestrator.tracking import tracker as tracking
from orchestrator.tracking.tracker import Tracker
from orchestrator.trainable import DataSetRecord

INTERRUPTED = 130
FAILED = 1


class Driver(ABC):
    """Checks, plans, runs the trials of a job, and concludes."""

    outcome_keys: ClassVar[tuple[str, ...]]
    """What is recorded of a finished job."""

    def __init__(self, job: Job, progress: Progress) -> None:
        self._job = job
        self._progress = progress
        self._directory = JobDirectory(job, progress.say)

    def run(self, *, address: str | None, dry_run: bool, fresh: bool) -> int:
        """Do it all; returns the exit code.

        Raises:
            InputError: the user's input is at fault; nothing was written.
        """
        job, progress = self._job, self._progress
        try:
            self._directory.check(fresh)
            outcome = None if fresh else self._directory.outcome(*self.outcome_keys)
        except StorageError as error:
            raise InputError(str(error)) from error
        if outcome is not None and self.is_final(outcome) and outcome.get("delivered", True):
            progress.say(f"the {job.kind} {job.name} is finished; --fresh starts it over")
            self.summarise(outcome)
            return 0
        try:
            tracking_store.check(job.tracking.uri)
            self.check(fresh or self._directory.is_new())
            with progress.doing(
                "starting Ray" if address is None else f"joining the Ray cluster at {address}"
            ):
                joined = cluster.start(address)
            # As Ctrl-C does; Ray would end the process without a word.
            signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
            progress.show(self.plan(joined))
            if dry_run:
                progress.say("dry run: everything was checked, nothing was started")
                return 0
            return self._run(joined, fresh)
        except job.implementation.InputError as error:
            raise InputError(f"config.{error}") from error
        except (OSError, DatabaseError, StorageInternalError) as error:
            if type(error) is DatabaseError:  # no subclass: SQLite finds its file damaged
                raise InputError(
                    f"study: {self._directory.locate('study.db')} is damaged ({error.orig}); "
                    "put back a copy of it, or start over with --fresh"
                ) from error
            line = _space(error)
            if not line:
                raise
            progress.say(f"{line}; all that was written is kept, and the same command goes on")
            return FAILED
        except SweepError as error:
            progress.say(f"{error}; the same command tries again")
            return FAILED

    def check(self, new: bool) -> None:
        """Check whatever takes longer than reading the file; writes nothing.

        Raises:
            InputError: it is at fault, or the InputError of the trainable.
        """
        job = self._job
        try:
            with self._progress.doing("checking the data"):
                for config in job.to_check():
                    job.implementation.check(config, job.resources.workers, job.needed_metrics())
        except OSError as error:
            raise InputError(f"config: {error.filename}: {error.strerror}") from error

    @abstractmethod
    def is_final(self, outcome: dict[str, Any]) -> bool:
        """Whether what was recorded is what the file asks for, so that there is nothing left to do."""

    @abstractmethod
    def plan(self, joined: Cluster) -> RenderableType:
        """What is going to happen, for the terminal."""

    @abstractmethod
    def columns(self) -> dict[str, Any]:
        """The few settings worth a column in a list of MLflow runs."""

    @abstractmethod
    def open_study(self) -> Study:
        """The study in the folder of the job."""

    @abstractmethod
    def conclude(self, study: Study, data_sets: Sequence[DataSetRecord], tracker: Tracker) -> dict[str, Any]:
        """Make the outcome of a study whose trials have ended, one at least complete."""

    @abstractmethod
    def metrics(self, outcome: dict[str, Any]) -> dict[str, float]:
        """The outcome in figures, for the MLflow run of the job."""

    @abstractmethod
    def note(self, outcome: dict[str, Any]) -> str:
        """The outcome as Markdown, for the page of the MLflow run of the job."""

    @abstractmethod
    def summarise(self, outcome: dict[str, Any]) -> None:
        """Show the outcome on the terminal."""

    def interrupted(self, study: Study) -> None:  # noqa: B027 - nothing, unless a job has something to show
        """Show what there is of a study that was interrupted."""

    def code(self, outcome: dict[str, Any]) -> int:
        """The exit code of an outcome."""
        return 0

    def _run(self, joined: Cluster, fresh: bool) -> int:
        progress, uri, resources = self._progress, self._job.tracking.uri, self._job.resources
        workers = [{"CPU": resources.cpus, "GPU": resources.gpus}] * resources.workers
        data_sets = self._prepare()
        outcome: dict[str, Any] | None = None
        undelivered: str | None = None
        with (
            self._directory.open(fresh) as (job_id, lease),
            Watch(lease.record.ray_jobs, workers, progress.say, lease.end),
        ):
            with progress.doing(f"opening the tracking store {uri}"):
                study = self.open_study()
                tracker = Tracker(uri, self._job.tracking.experiment, self._job.name, job_id, self._job.kind)
            with tracker:
                status: Literal["FINISHED", "FAILED", "KILLED"] = "FAILED"
                try:
                    columns = {"trainable": self._job.trainable, **self.columns()}
                    tracker.log_sweep(self._job.resolved(), columns, data_sets)
                    code = self._search(study, joined, lease, tracker)
                    if code == 0:
                        outcome = self.conclude(study, data_sets, tracker)
                        self._directory.finish({**outcome, "delivered": False})
                        status, code = "FINISHED", self.code(outcome)
                    elif code == INTERRUPTED:
                        signal.signal(signal.SIGINT, leave_at_once)
                        status = "KILLED"
                except KeyboardInterrupt:
                    signal.signal(signal.SIGINT, leave_at_once)
                    status = "KILLED"
                    raise
                finally:
                    figures, note = (self.metrics(outcome), self.note(outcome)) if outcome else ({}, "")
                    tracker.finish(status, figures, note)
                    with progress.doing("handing the last records to MLflow"):
                        undelivered = tracker.flush()
                    if undelivered:
                        progress.say(f"{undelivered}; the same command delivers them")
                if outcome is not None and not undelivered:
                    self._directory.finish({**outcome, "delivered": True})
        if outcome is not None:
            self.summarise(outcome)
        return FAILED if undelivered and not code else code

    def _prepare(self) -> list[DataSetRecord]:
        """Prepare the data of every config; gives one record for each set in each role."""
        records: dict[tuple[str, str, str], DataSetRecord] = {}
        said: set[str] = set()

        def say(line: str) -> None:
            if line not in said:  # the same data may serve several configs
                said.add(line)
                self._progress.say(line)

        with self._progress.doing("preparing the data"):
            for config in self._job.to_prepare():
                for record in self._job.implementation.prepare(config, say):
                    records[record.name, record.role, record.digest] = record
        return list(records.values())

    def _search(self, study: Study, joined: Cluster, lease: Lease, tracker: Tracker) -> int:
        """Run the trials that are left; returns the exit code, 0 when one at least is complete."""
        progress, suggested = self._progress, study.suggested
        if suggested:
            progress.say(f"continuing: {len(suggested)} trials are known, {study.left()} are left to run")
        end = search(self._job, study, joined, self._directory, lease, tracker, progress)
        if end != "done":
            self.interrupted(study)
            if end == "failing":
                return FAILED
            progress.say(f"interrupted; the same command continues the {self._job.kind}")
            return INTERRUPTED
        if not study.count()["complete"]:
            suggested = study.suggested
            reasons = sorted({trial.user_attrs.get("reason", "unknown") for trial in suggested})
            progress.say(f"no trial of {len(suggested)} succeeded: {'; '.join(reasons)}")
            return FAILED
        return 0


class SweepDriver(Driver):
    """Searches, scores the best model, registers and reports it."""

    outcome_keys = ("budget", "sweep", "trials", "best", "objective", "scores", "tracking", "report", "model")

    def __init__(self, sweep: Sweep, progress: Progress) -> None:
        super().__init__(sweep, progress)
        self._sweep = sweep
        self._earlier: list[Fitted] | None = None

    def is_final(self, outcome: dict[str, Any]) -> bool:
        """Whether it was made with the budget of the file."""
        return bool(outcome["budget"] == self._sweep.budget.model_dump())

    def plan(self, joined: Cluster) -> RenderableType:
        """Search space, budget and resources."""
        return plan(self._sweep, joined)

    def columns(self) -> dict[str, Any]:
        """The budget."""
        return {"trials": self._sweep.budget.trials}

    def check(self, new: bool) -> None:
        """The data, and that the earlier sweeps to start from are there."""
        super().check(new)
        if new:
            self._earlier = self._read_earlier()

    def open_study(self) -> SweepStudy:
        """The study of the search."""
        study = SweepStudy(self._sweep, self._directory)
        if not study.begun:
            study.begin(self._read_earlier() if self._earlier is None else self._earlier)
        return study

    def _read_earlier(self) -> list[Fitted]:
        """The trials of earlier sweeps that fit into this one; tells how many of each."""
        used: list[Fitted] = []
        for source in self._sweep.warm_start:
            with self._progress.doing(f"reading {source}"):
                if source.startswith(warm_start.MLFLOW):
                    experiment = source.removeprefix(warm_start.MLFLOW)
                    earlier = warm_start.from_mlflow(self._sweep.tracking.uri, experiment)
                else:
                    earlier = warm_start.from_study(*self._directory.neighbour(source))
            fitted, left_out = warm_start.fit(self._sweep, earlier, used)
            for line in warm_start.describe(fitted, left_out, source):
                self._progress.say(line)
            used += fitted
        return used

    def conclude(self, study: Study, data_sets: Sequence[DataSetRecord], tracker: Tracker) -> dict[str, Any]:
        """Score the best trial's model on the targets, register it, and write the report."""
        assert isinstance(study, SweepStudy)
        sweep, progress = self._sweep, self._progress
        best = study.best()
        assert best is not None, "a trial is complete"
        config = sweep.trial_config(best.params)
        checkpoint = study.checkpoint(best.number)
        with progress.doing(f"scoring {name(best.number)} on the targets"):
            task = trainable_task(
                evaluate, sweep.resources.cpus, sweep.resources.gpus, f"score {name(best.number)}"
            )
            try:
                scores: dict[str, float] = ray.get(
                    task.remote(sweep.trainable, config.model_dump(mode="json"), checkpoint)
                )
            except ray.exceptions.RayError as error:
                raise SweepError(f"{name(best.number)} could not be scored: {explain(error)}") from error
        outcome: dict[str, Any] = {
            "budget": sweep.budget.model_dump(),
            "sweep": sweep.name,
            "trials": study.count(),
            "best": {"trial": best.number, "parameters": best.params},
            "objective": {o.metric: value for o, value in zip(sweep.objective, best.values, strict=True)},
            "scores": scores,
            "tracking": sweep.tracking.uri,
            "report": self._directory.locate("report.html"),
            "model": None,
        }
        if sweep.registry is not None:
            with (
                progress.doing(f"registering the model of {name(best.number)}"),
                tempfile.TemporaryDirectory() as folder,
                checkpoint.as_directory() as trained,
            ):
                model = registry.register(
                    tracker,
                    best.number,
                    sweep.implementation.export(config, Path(trained), Path(folder)),
                    model=sweep.registry.model,
                    alias=sweep.registry.alias,
                    evaluation=scores,
                    record={
                        "parameters": best.params,
                        "data": {record.name: record.digest for record in data_sets},
                    },
                )
            outcome["model"] = dataclasses.asdict(model)
        with progress.doing("writing the report"):
            summary = _for_report(outcome, data_sets, study, tracker)
            file = self._directory.path / "report.html"
            report.write_report(study.study, summary, file)
            self._directory.publish(file)
            tracker.log_file(file)
        return outcome

    def metrics(self, outcome: dict[str, Any]) -> dict[str, float]:
        """Scores and objectives of the best trial."""
        return {**outcome["scores"], **outcome["objective"]}

    def note(self, outcome: dict[str, Any]) -> str:
        """Best parameters and scores."""
        lines = [f"Best: {name(outcome['best']['trial'])}", "", "| parameter | value |", "|---|---|"]
        lines += [f"| {path} | {_short(value)} |" for path, value in outcome["best"]["parameters"].items()]
        lines += ["", "| score | value |", "|---|---|"]
        lines += [f"| {metric} | {_short(value)} |" for metric, value in outcome["scores"].items()]
        return "\n".join(lines)

    def summarise(self, outcome: dict[str, Any]) -> None:
        """Counts, best trial, model, parameters, scores and commands."""
        counts = outcome["trials"]
        rows = {
            "trials": f"{counts['complete']} done, {counts['pruned']} pruned, {counts['failed']} failed",
            "best trial": name(outcome["best"]["trial"]),
        }
        rows |= {metric: _short(value) for metric, value in outcome["objective"].items()}
        if outcome["model"]:
            rows["model"] = _model(outcome)
        self._progress.show(pairs(f"Sweep {outcome['sweep']}", rows))
        for title, values in (
            ("Best parameters", outcome["best"]["parameters"]),
            ("Scores", outcome["scores"]),
        ):
            self._progress.show(pairs(title, {key: _short(value) for key, value in values.items()}))
        for what, command in _commands(outcome).items():
            self._progress.say(f"{what}: {command}")


def _space(error: BaseException | None) -> str:
    """Says that there is no space left, or that the database is away, when that is what an error means."""
    while error is not None:
        if is_full(error) or "disk is full" in str(error) or "No space left" in str(error):
            return f"no space is left: {' '.join(str(error).split())[:200]}"
        if isinstance(error, OperationalError):
            return f"the study's database does not answer: {' '.join(str(error.orig).split())[:200]}"
        error = error.__cause__
    return ""


def _for_report(
    outcome: dict[str, Any], data_sets: Sequence[DataSetRecord], study: Study, tracker: Tracker
) -> dict[str, Any]:
    begun = [trial.datetime_start for trial in study.trials if trial.datetime_start is not None]
    return {
        "name": outcome["sweep"],
        "started": f"{min(begun):%Y-%m-%d %H:%M}",
        "duration": (datetime.now() - min(begun)).total_seconds(),
        "metric": next(iter(outcome["objective"])),
        "sweep_id": tracker.sweep_id,
        "scores": outcome["scores"],
        "data_sets": data_sets,
        "model": _model(outcome) if outcome["model"] else "not registered",
        "commands": _commands(outcome),
        "runs": runs(study, tracker),
    }


def runs(study: Study, tracker: Tracker) -> dict[int, str]:
    """The MLflow run of each trial; one that was refused before it started has none."""
    found = {}
    for trial in study.trials:
        with contextlib.suppress(tracking.TrackingError):
            found[trial.number] = tracker.run_id(trial.number)
    return found


def _model(outcome: dict[str, Any]) -> str:
    return "{name} version {version}, alias {alias}".format(**outcome["model"])


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _commands(outcome: dict[str, Any]) -> dict[str, str]:
    """How to look at the outcome of a sweep and how to use it, as commands to copy."""
    uri = outcome["tracking"]
    commands = {"MLflow": tracking_store.look(uri), "report": outcome["report"]}
    if outcome["model"]:
        commands["use the model"] = (
            f"MLFLOW_TRACKING_URI={uri} python -c "
            f"\"import mlflow; model = mlflow.pyfunc.load_model('{outcome['model']['uri']}')\""
        )
    return commands
