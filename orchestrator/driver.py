"""From a checked sweep file to a registered model, step by step."""

import contextlib
import dataclasses
import tempfile
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import ray

from orchestrator import cluster, registry, report, tracking, trainable
from orchestrator.cluster import Cluster
from orchestrator.config import Sweep
from orchestrator.directory import SweepDirectory
from orchestrator.errors import InputError, SweepError
from orchestrator.plan import pairs, plan
from orchestrator.progress import Progress
from orchestrator.search import search
from orchestrator.study import SweepStudy
from orchestrator.tracking import Tracker
from orchestrator.trainable import DataSetRecord
from orchestrator.trial import explain, name

INTERRUPTED = 130
FAILED = 1


def run(sweep: Sweep, progress: Progress, *, address: str | None, dry_run: bool, fresh: bool) -> int:
    """Check, plan, search, score, register and report; returns the exit code.

    Raises:
        InputError: the user's input is at fault; nothing was written.
    """
    directory = SweepDirectory(sweep)
    with _readable("storage"):
        directory.check(fresh)
    outcome = None if fresh else directory.outcome()
    if outcome is not None and outcome["budget"] == sweep.budget.model_dump():
        progress.say(f"the sweep {sweep.name} is finished; --fresh starts it over")
        _summarise(outcome, progress)
        return 0
    try:
        tracking.check(sweep.tracking.uri)
        with progress.doing("checking the data"), _readable("config"):
            for values in sweep.space.corners():
                sweep.implementation.check(sweep.trial_config(values), sweep.resources.workers)
        with progress.doing("starting Ray" if address is None else f"joining the Ray cluster at {address}"):
            joined = cluster.start(address)
        progress.show(plan(sweep, joined))
        if dry_run:
            progress.say("dry run: everything was checked, nothing was started")
            return 0
        return _run(sweep, directory, joined, progress, fresh)
    except sweep.implementation.InputError as error:
        raise InputError(f"config.{error}") from error
    except SweepError as error:
        progress.say(f"{error}; the same command tries again")
        return FAILED


@contextlib.contextmanager
def _readable(field: str) -> Iterator[None]:
    """Turn what the file system refuses during the checks into the user's one line."""
    try:
        yield
    except OSError as error:
        raise InputError(f"{field}: {error.filename}: {error.strerror}") from error


def _run(sweep: Sweep, directory: SweepDirectory, joined: Cluster, progress: Progress, fresh: bool) -> int:
    with progress.doing("preparing the data"):
        data_sets = sweep.implementation.prepare(sweep.trial_config({}), progress.say)
    with directory.open(fresh) as sweep_id:
        with progress.doing(f"opening the tracking store {sweep.tracking.uri}"):
            study = SweepStudy(sweep, directory.path)
            tracker = Tracker(sweep.tracking.uri, sweep.tracking.experiment, sweep.name, sweep_id)
        with tracker:
            status: Literal["FINISHED", "FAILED", "KILLED"] = "FAILED"
            metrics: dict[str, float] = {}
            note = ""
            try:
                columns = {"trainable": sweep.trainable, "trials": sweep.budget.trials}
                tracker.log_sweep(sweep.resolved(), columns, data_sets)
                code = _search(sweep, study, joined, directory, tracker, progress)
                if code == 0:
                    outcome = _conclude(sweep, directory, study, data_sets, tracker, progress)
                    directory.finish(outcome)
                    status, note = "FINISHED", _note(outcome)
                    metrics = outcome["scores"] | outcome["objective"]
                elif code == INTERRUPTED:
                    status = "KILLED"
            except KeyboardInterrupt:
                status = "KILLED"
                raise
            finally:
                tracker.finish(status, metrics, note)
                with progress.doing("handing the last records to MLflow"):
                    undelivered = tracker.flush()
                if undelivered:
                    progress.say(undelivered)
    if code == 0:
        _summarise(outcome, progress)
    return code


def _search(
    sweep: Sweep,
    study: SweepStudy,
    joined: Cluster,
    directory: SweepDirectory,
    tracker: Tracker,
    progress: Progress,
) -> int:
    """Run the trials that are left; returns the exit code, 0 when there is a best one."""
    if study.trials:
        progress.say(f"continuing: {len(study.trials)} trials are known, {study.left()} are left to run")
    if not search(sweep, study, joined, directory, tracker, progress):
        progress.say("interrupted; the same command continues the sweep")
        return INTERRUPTED
    if study.best() is None:
        reasons = sorted({trial.user_attrs.get("reason", "unknown") for trial in study.trials})
        progress.say(f"no trial of {len(study.trials)} succeeded: {'; '.join(reasons)}")
        return FAILED
    return 0


def _conclude(
    sweep: Sweep,
    directory: SweepDirectory,
    study: SweepStudy,
    data_sets: Sequence[DataSetRecord],
    tracker: Tracker,
    progress: Progress,
) -> dict[str, Any]:
    """Score the best trial's model on the targets, register it, and write the report."""
    best = study.best()
    assert best is not None, "the search found one"
    config = sweep.trial_config(best.params)
    checkpoint = study.checkpoint(best.number)
    with progress.doing(f"scoring {name(best.number)} on the targets"):
        score = ray.remote(_evaluate).options(
            num_cpus=sweep.resources.cpus, num_gpus=sweep.resources.gpus, name=f"score {name(best.number)}"
        )
        try:
            scores: dict[str, float] = ray.get(
                score.remote(sweep.trainable, config.model_dump(mode="json"), str(checkpoint))
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
        "report": str(directory.report),
        "model": None,
    }
    if sweep.registry is not None:
        with (
            progress.doing(f"registering the model of {name(best.number)}"),
            tempfile.TemporaryDirectory() as folder,
        ):
            model = registry.register(
                tracker,
                best.number,
                sweep.implementation.export(config, checkpoint, Path(folder)),
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
        report.write_report(study.study, _for_report(outcome, data_sets, study, tracker), directory.report)
        tracker.log_report(directory.report)
    return outcome


def _evaluate(dotted: str, config: dict[str, Any], checkpoint: str) -> dict[str, float]:
    subject = trainable.load(dotted)
    return subject.evaluate(subject.Config.model_validate(config), Path(checkpoint))


def _for_report(
    outcome: dict[str, Any], data_sets: Sequence[DataSetRecord], study: SweepStudy, tracker: Tracker
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
        "runs": _runs(study, tracker),
    }


def _runs(study: SweepStudy, tracker: Tracker) -> dict[int, str]:
    """The MLflow run of each trial; one that was refused before it started has none."""
    runs = {}
    for trial in study.trials:
        with contextlib.suppress(tracking.TrackingError):
            runs[trial.number] = tracker.run_id(trial.number)
    return runs


def _note(outcome: dict[str, Any]) -> str:
    """The outcome as Markdown for the page of the sweep's run."""
    lines = [f"Best: {name(outcome['best']['trial'])}", "", "| parameter | value |", "|---|---|"]
    lines += [f"| {path} | {_short(value)} |" for path, value in outcome["best"]["parameters"].items()]
    lines += ["", "| score | value |", "|---|---|"]
    lines += [f"| {metric} | {_short(value)} |" for metric, value in outcome["scores"].items()]
    return "\n".join(lines)


def _model(outcome: dict[str, Any]) -> str:
    return "{name} version {version}, alias {alias}".format(**outcome["model"])


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _commands(outcome: dict[str, Any]) -> dict[str, str]:
    """How to look at the outcome of a sweep and how to use it, as commands to copy."""
    uri = outcome["tracking"]
    look = uri if uri.startswith("http") else f"mlflow ui --backend-store-uri {uri}"
    commands = {"MLflow": look, "report": outcome["report"]}
    if outcome["model"]:
        commands["use the model"] = (
            f"MLFLOW_TRACKING_URI={uri} python -c "
            f"\"import mlflow; model = mlflow.pyfunc.load_model('{outcome['model']['uri']}')\""
        )
    return commands


def _summarise(outcome: dict[str, Any], progress: Progress) -> None:
    counts = outcome["trials"]
    rows = {
        "trials": f"{counts['complete']} done, {counts['pruned']} pruned, {counts['failed']} failed",
        "best trial": name(outcome["best"]["trial"]),
    }
    rows |= {metric: _short(value) for metric, value in outcome["objective"].items()}
    if outcome["model"]:
        rows["model"] = _model(outcome)
    progress.show(pairs(f"Sweep {outcome['sweep']}", rows))
    for title, values in ("Best parameters", outcome["best"]["parameters"]), ("Scores", outcome["scores"]):
        progress.show(pairs(title, {key: _short(value) for key, value in values.items()}))
    for what, command in _commands(outcome).items():
        progress.say(f"{what}: {command}")
