"""The status of a job, read without its driver."""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from optuna.trial import FrozenTrial

from orchestrator.storage import lease, lookup
from orchestrator.storage.base import Store
from orchestrator.storage.directory import read_record
from orchestrator.storage.study_database import open_study
from orchestrator.study import attributes
from orchestrator.study.selection import best_trial, own_trials
from orchestrator.study.trial_report import trial_name

_ATTRIBUTES = (attributes.SOURCE, attributes.CELL, attributes.POINT, attributes.REASON)
"""Attributes of trials that a status depends on."""

DRIVEN = ("running", "silent")
"""States of a job that has a driver, or may have one."""


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
    activity: dict[str, str] = field(default_factory=dict)
    failures: list[dict[str, Any]] = field(default_factory=list)
    undelivered: str = ""
    model: str = ""
    report: str = ""


def read_status(store: Store, name: str) -> Status:
    """Return the status of a job.

    Raises:
        InputError: there is no such job, or its records are damaged.
        StorageError: the storage does not answer, or the study cannot be read.
    """
    job = lookup.recorded_job(store, name)
    if job is None:
        raise lookup.no_such_job(store, name)
    kind, resolved = job
    status = Status(name, kind, store.locate(name), "stopped")
    used, activity = _add_driver(status, store)
    outcome = read_record(store, f"{name}/outcome.json", "report")
    with open_study(store, name, resolved) as study:
        trials = _own_trials(kind, study.read_trials(_ATTRIBUTES)) if study is not None else []
        best = best_trial(trials, resolved["objective"][0]["mode"]) if kind == "sweep" else None
        if best is not None and study is not None:
            status.best = _describe_best(study.complete(best), resolved["objective"])
    _add_trials(status, trials, activity)
    budget = resolved.get("budget", {})
    status.budget = {
        "trials": [len(trials) - status.trials.get("waiting", 0), _total(store, name, kind, resolved)],
        "seconds": [round(used.seconds, 1), budget.get("wall")],
        "gpu_hours": [round(used.gpu_seconds / 3600, 4), budget.get("gpu_hours")],
    }
    # An outcome may be that of a smaller budget, or of a comparison before it was extended.
    final = outcome is not None and outcome.get("budget") == resolved.get("budget")
    if outcome is not None and final and status.state not in DRIVEN and "running" not in status.trials:
        status.state, status.report = "finished", outcome["report"]
        if model := outcome.get("model"):
            status.model = "{name} version {version}, alias {alias}".format(**model)
        if not outcome.get("delivered", True):
            status.undelivered = "the last records; rerun the command to deliver them"
    return status


def _add_driver(status: Status, store: Store) -> tuple[lease.BudgetUsage, Mapping[str, str]]:
    """Add the driver to the status; return what of the budget was used, and what each trial is doing."""
    current = lease.read_driver_record(store, status.name)
    if current is None:
        return lease.BudgetUsage(), {}
    driver, activity = current[0], {}
    status.driver = {
        "host": driver.host,
        "pid": driver.pid,
        "started": driver.started,
        "seconds_since_heartbeat": round(max(0.0, time.time() - driver.renewed), 1),
    }
    status.state = lookup.driver_state(store, status.name, driver)
    if status.state in DRIVEN:
        request = store.read(lease.stop_request_name(status.name))
        status.stop_requested = request is not None and request[0].decode() == driver.identity
        status.undelivered = driver.activity.get("undelivered", "")
        activity = driver.activity.get("trials", {})
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
    default = "starting" if status.state in DRIVEN else f"resumes when the {status.kind} is rerun"
    states = [{"FAIL": "failed"}.get(trial.state.name, trial.state.name.lower()) for trial in trials]
    status.trials = {state: states.count(state) for state in sorted(set(states))}
    reasons: dict[str, list[str]] = {}
    for trial, state in zip(trials, states, strict=True):
        name = trial_name(trial.number)
        if state == "running":
            status.activity[name] = activity.get(name, default)
        elif state == "waiting":
            status.activity[name] = f"enqueued: {trial.user_attrs.get(attributes.POINT, '')}"
        elif state == "failed":
            reasons.setdefault(str(trial.user_attrs.get(attributes.REASON, "unknown")), []).append(name)
    status.failures = [
        {"reason": reason, "trials": names}
        for reason, names in sorted(reasons.items(), key=lambda item: -len(item[1]))
    ]


def _describe_best(best: FrozenTrial, objectives: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    values = {each["metric"]: value for each, value in zip(objectives, best.values, strict=True)}
    return {"trial": trial_name(best.number), **values, "parameters": dict(best.params)}


def _total(store: Store, name: str, kind: str, resolved: Mapping[str, Any]) -> int | None:
    """Return how many trials the job will have; for a comparison, once it has written results."""
    if kind == "sweep":
        return int(resolved["budget"]["trials"])
    results = store.read(f"{name}/results.json")
    try:
        return None if results is None else len(json.loads(results[0]))
    except (ValueError, TypeError):
        return None
