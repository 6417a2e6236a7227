"""The status of a job, read without its driver."""

import json
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from orchestrator.console.tables import format_duration
from orchestrator.errors import InputError, StorageError
from orchestrator.storage import lease, lookup
from orchestrator.storage.base import Store
from orchestrator.storage.records import RecordedOutcome, read_record
from orchestrator.storage.study_database import StudyReader, open_study
from orchestrator.study import attributes
from orchestrator.study.selection import (
    ATTRIBUTES,
    best_trials,
    describe_trial,
    infeasible_trials,
    own_trials,
)
from orchestrator.study.trial_report import FINALS, trial_name

_ATTRIBUTES = (*ATTRIBUTES, attributes.CELL, attributes.POINT, attributes.REASON)
"""Attributes of trials that a status depends on."""

_READERS = 8
"""Jobs that are read at once."""


@dataclass
class Status:
    """The status of a job, as ``--json`` prints it."""

    name: str
    kind: str
    uri: str
    state: str
    driver: dict[str, Any] | None = None
    stop_requested: bool = False
    trials: dict[str, int] = field(default_factory=dict)
    budget: dict[str, list[float | None]] = field(default_factory=dict)
    best: dict[str, Any] | None = None
    pareto_set: list[dict[str, Any]] = field(default_factory=list)
    """For several objectives: trials as ``best`` is."""

    infeasible: int = 0
    """Complete trials that violate a constraint."""

    activity: dict[str, str] = field(default_factory=dict)
    failures: list[dict[str, Any]] = field(default_factory=list)
    undelivered: str = ""
    model: str = ""
    report: str = ""
    problem: str = ""
    """What is missing or cannot be read."""


@dataclass
class TrialStatus:
    """The status of one trial, as ``--json`` prints it."""

    trial: str
    state: str
    parameters: dict[str, Any]
    objective: dict[str, float]
    scores: dict[str, float]
    activity: str
    reason: str
    started: str | None
    ended: str | None
    epochs: int
    last_report: dict[str, Any] | None
    """``epoch``, ``seconds_ago`` and ``metrics``."""

    checkpoint: str | None
    log: str


def read_status(store: Store, name: str) -> Status:
    """Return the status of a job.

    Raises:
        InputError: there is no such job, or its records are damaged.
        StorageError: the storage does not answer, or the study cannot be read.
    """
    status, resolved, used, activity = _begin(store, name)
    kind = status.kind
    outcome = _outcome(store, name)
    started: int | None = 0
    try:
        started = _add_study(status, store, resolved, activity)
        if started is None:
            missing = "its study is missing: put it back before you rerun the command"
            status.problem = store.foreign_study(name) or missing * (outcome is not None)
        if not started and not status.problem and (problem := store.emptied_study(name)):
            status.problem = f"study: {problem}"
    except StorageError as error:
        if outcome is None or error.unreachable:
            raise
        status.problem = f"{error}; the outcome is intact"
    if FINALS in activity:
        status.activity[FINALS] = activity[FINALS]
    budget = resolved.get("budget", {})
    status.budget = {
        "trials": [started or 0, _total(store, name, kind, resolved)],
        "seconds": [round(used.seconds, 1), budget.get("wall")],
        "gpu_hours": [round(used.gpu_seconds / 3600, 4), budget.get("gpu_hours")],
    }
    # An outcome may be that of a smaller budget, or of a comparison before it was extended.
    final = outcome is not None and all(
        getattr(outcome, name) == resolved.get(name) for name in ("budget", "finals")
    )
    if outcome is not None and final and status.state not in lookup.DRIVEN and "running" not in status.trials:
        report = outcome.report.rpartition("/")[2]  # the storage may have been moved
        status.state, status.report = "finished", store.locate(f"{name}/{report}")
        if model := outcome.model:
            taken = "alias" if model.promoted else "without the alias"
            status.model = f"{model.name} version {model.version}, {taken} {model.alias}"
        if not outcome.delivered:
            status.undelivered = status.undelivered or "some records or files"
            status.undelivered += "; rerun the command to deliver them"
    if kind == "sweep" and status.state == "stopped" and _has_failed(status):
        status.state = "failed"
    return status


def _add_study(
    status: Status, store: Store, resolved: Mapping[str, Any], activity: Mapping[str, str]
) -> int | None:
    """Add what the study has; return the number of started trials, None where it does not exist."""
    with open_study(store, status.name, resolved) as study:
        if study is None:
            _add_trials(status, [], activity)
            return None
        trials = _own_trials(status.kind, study.read_trials(_ATTRIBUTES))
        with_ages = _with_ages(trials, activity, study)
        if status.kind == "sweep":
            _add_best(status, trials, resolved["objective"], study)
        _add_trials(status, trials, with_ages)
        return len(trials) - status.trials.get("waiting", 0)


def _has_failed(status: Status) -> bool:
    """Return whether the budget of a sweep is used, and all its trials ended without success."""
    is_used = any(limit is not None and (used or 0) >= limit for used, limit in status.budget.values())
    return is_used and bool(status.trials) and not {"complete", "running"} & status.trials.keys()


def list_status(store: Store) -> list[Status]:
    """Return the status of every job of a store, by name; of one that cannot be read, its ``problem``.

    Raises:
        StorageError: the storage does not answer.
    """

    def read(name: str) -> Status:
        try:
            return read_status(store, name)
        except (InputError, StorageError) as error:
            return Status(name, "", store.locate(name), "unreadable", problem=str(error))

    # A driver in a bucket without a heartbeat is watched for seconds.
    with ThreadPoolExecutor(_READERS) as readers:
        return list(readers.map(read, lookup.job_names(store)))


def read_trial_status(store: Store, name: str, number: int) -> TrialStatus:
    """Return the status of one trial.

    Raises:
        InputError: there is no such job or trial, or its records are damaged.
        StorageError: the storage does not answer, or the study cannot be read.
    """
    status, resolved, _, activity = _begin(store, name)
    with open_study(store, name, resolved) as study:
        trials = [] if study is None else study.read_trials(())
        if study is None or not 0 <= number < len(trials):
            held = f"0 to {len(trials) - 1}" if trials else "none yet"
            raise InputError(f"--trial {number}: {status.uri} has no such trial; it has {held}")
        # Within the block, which explains damaged values.
        trial = study.complete(trials[number])
        attrs, reports = trial.user_attrs, attributes.epochs(trial)
        last = max(reports, default=None)
        state = _state(trial)
        objectives = [each["metric"] for each in resolved.get("objective", [])]
        return TrialStatus(
            trial=trial_name(number),
            state=state,
            parameters=dict(attrs.get(attributes.CELL, trial.params)),
            objective=dict(zip(objectives, trial.values or (), strict=False)),
            scores=dict(attrs.get(attributes.SCORES, {})),
            activity=activity.get(trial_name(number), _default_activity(status))
            if state == "running"
            else "",
            reason=attributes.reason(trial),
            started=_time(trial.datetime_start),
            ended=_time(trial.datetime_complete),
            epochs=len(reports),
            last_report=None
            if last is None
            else {
                "epoch": last,
                "seconds_ago": _seconds_ago(reports[last]),
                "metrics": {key: value for key, value in reports[last].items() if key != "time"},
            },
            checkpoint=_checkpoint(store, name, attrs.get(attributes.CHECKPOINT)),
            log=str(attrs.get(attributes.LOG, "")),
        )


def _begin(store: Store, name: str) -> tuple[Status, dict[str, Any], lease.BudgetUsage, Mapping[str, str]]:
    """Return the status of a job with its driver, its recorded file, the used budget, and what trials do."""
    job = lookup.recorded_job(store, name)
    if job is None:
        raise lookup.no_such_job(store, name)
    kind, resolved = job
    status = Status(name, kind, store.locate(name), "stopped")
    return status, resolved, *_add_driver(status, store)


def _checkpoint(store: Store, name: str, relative: str | None) -> str | None:
    """Return the address of a checkpoint; None if there is none (any more)."""
    exists = relative is not None and bool(store.list_files(f"{name}/{relative}"))
    return store.locate(f"{name}/{relative}") if exists else None


def _outcome(store: Store, name: str) -> RecordedOutcome | None:
    record = read_record(store, f"{name}/outcome.json", RecordedOutcome)
    return None if record is None else RecordedOutcome.model_validate(record)


def _state(trial: FrozenTrial) -> str:
    return {"FAIL": "failed"}.get(trial.state.name, trial.state.name.lower())


def _time(moment: datetime | None) -> str | None:
    return None if moment is None else f"{moment:%Y-%m-%d %H:%M:%S}"


def _seconds_ago(report: Mapping[str, float]) -> float:
    return round(max(0.0, time.time() - report["time"] / 1000), 1)


def _default_activity(status: Status) -> str:
    return "starting" if status.state in lookup.DRIVEN else "resumes when the command is rerun"


def _with_ages(
    trials: Sequence[FrozenTrial], activity: Mapping[str, str], study: StudyReader
) -> dict[str, str]:
    """Return the activity of each trial with the age of its last report."""
    with_ages = dict(activity)
    for trial in trials:
        if trial.state == TrialState.RUNNING and trial_name(trial.number) in with_ages:
            reports = attributes.epochs(study.complete(trial))
            if reports:
                age = format_duration(_seconds_ago(reports[max(reports)]))
                with_ages[trial_name(trial.number)] += f", last report {age} ago"
    return with_ages


def _add_driver(status: Status, store: Store) -> tuple[lease.BudgetUsage, Mapping[str, str]]:
    """Add the driver to the status; return what of the budget was used, and what each trial is doing."""
    current = lease.read_driver_record(store, status.name)
    if current is None:
        return lease.BudgetUsage(), {}
    driver, activity = current[0], {}
    status.driver = (
        None
        if not driver.identity
        else {
            "host": driver.host,
            "pid": driver.pid,
            "started": driver.started,
            "seconds_since_heartbeat": round(max(0.0, time.time() - driver.renewed), 1),
        }
    )
    status.state = lookup.driver_state(store, status.name, driver)
    if status.state in lookup.DRIVEN:
        request = store.read(lease.stop_request_name(status.name))
        status.stop_requested = request is not None and request[0] == driver.identity.encode()
        activity = driver.activity.trials
    status.undelivered = driver.activity.undelivered
    return driver.used, activity


def _own_trials(kind: str, trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """Return the trials without those of earlier sweeps, and only the last attempt at each cell."""
    if kind == "sweep":
        return own_trials(trials)
    cell = attributes.CELL
    cells = {str(trial.user_attrs[cell]): trial for trial in trials if cell in trial.user_attrs}
    return sorted(cells.values(), key=lambda trial: trial.number)


def _add_trials(status: Status, trials: Sequence[FrozenTrial], activity: Mapping[str, str]) -> None:
    """Count the trials; add what each unfinished one is doing and why others failed."""
    default = _default_activity(status)
    states = [_state(trial) for trial in trials]
    status.trials = {state: states.count(state) for state in sorted(set(states))}
    reasons: dict[str, list[str]] = {}
    for trial, state in zip(trials, states, strict=True):
        name = trial_name(trial.number)
        if state == "running":
            status.activity[name] = activity.get(name, default)
        elif state == "waiting":
            status.activity[name] = f"enqueued: {trial.user_attrs.get(attributes.POINT, '')}"
        elif state == "failed":
            reasons.setdefault(attributes.reason(trial), []).append(name)
    status.failures = [
        {"reason": reason, "trials": names}
        for reason, names in sorted(reasons.items(), key=lambda item: -len(item[1]))
    ]


def _add_best(
    status: Status, trials: Sequence[FrozenTrial], objectives: Sequence[Mapping[str, Any]], study: StudyReader
) -> None:
    """Add the best trial, for several objectives the Pareto set, and how many trials are infeasible."""
    metrics = [each["metric"] for each in objectives]
    best = best_trials(trials, *(each["mode"] for each in objectives))
    described = [describe_trial(study.complete(trial), metrics) for trial in best]
    status.best = next(iter(described), None)
    status.pareto_set = described if len(metrics) > 1 else []
    status.infeasible = len(infeasible_trials(trials))


def _total(store: Store, name: str, kind: str, resolved: Mapping[str, Any]) -> int | None:
    """Return how many trials the job will have; for a comparison, once it has written results."""
    if kind == "sweep":
        return int(resolved["budget"]["trials"])
    results = store.read(f"{name}/results.json")
    try:
        rows = None if results is None else json.loads(results[0])
    except (ValueError, RecursionError):
        return None
    return len(rows) if isinstance(rows, list) else None
