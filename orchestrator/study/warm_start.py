"""Warm start: trials of earlier sweeps, from a study or from MLflow, as points of a new search space."""

import math
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mlflow
import optuna
import yaml
from mlflow.entities import Run
from mlflow.exceptions import MlflowException
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.exc import SQLAlchemyError

from orchestrator.config.document import flatten, plain
from orchestrator.config.parameter import Parameter
from orchestrator.config.sweep import Sweep
from orchestrator.errors import InputError, nearest
from orchestrator.study.attributes import epochs
from orchestrator.study.selection import own_trials
from orchestrator.tracking import preflight
from orchestrator.tracking.outbox import describe_error
from orchestrator.tracking.store import quiet_mlflow

MLFLOW = "mlflow:"
"""Prefix of a source that is an MLflow experiment."""

_PAGE_SIZE = 1000
_MAX_REASONS = 4
"""Reasons that one line lists."""

_WHICH = "tags.`run.kind` = 'trial' AND tags.`trial.state` = 'COMPLETE'"


@dataclass(frozen=True, slots=True)
class PriorTrial:
    """A complete trial of an earlier sweep."""

    source: str
    number: int
    params: dict[str, Any]
    """The recorded values of its config, by path."""
    metrics: dict[str, float]
    """The last value of every recorded metric."""


@dataclass(frozen=True, slots=True)
class TransferredTrial:
    """A prior trial as a point of the new search space, ready for ``optuna.create_trial``."""

    params: dict[str, Any]
    distributions: dict[str, optuna.distributions.BaseDistribution]
    values: list[float]
    """Of the objectives, in the order of the sweep."""
    source: str
    number: int
    constraints: dict[str, float] = field(default_factory=dict)
    """How far it is outside of each bound of the sweep, as Optuna keeps it."""


class _UnfitError(Exception):
    """Why a trial is left out."""


def transfer(
    sweep: Sweep, prior: Iterable[PriorTrial], present: Iterable[TransferredTrial] = ()
) -> tuple[list[TransferredTrial], dict[str, int]]:
    """Map prior trials onto the search space of a sweep, by path.

    A trial needs a value for every path that is active beside its other values, and for every objective and
    constraint; its other values are ignored. Equal points with equal objectives are used once, also across
    ``present``.

    Returns the trials that can be used, and the number of trials left out by reason.
    """
    seen = {_key(trial) for trial in present}
    transferred: list[TransferredTrial] = []
    left_out: Counter[str] = Counter()
    for trial in prior:
        try:
            point = _transfer(sweep, trial)
            if _key(point) in seen:
                raise _UnfitError("already present")
        except _UnfitError as unfit:
            left_out[str(unfit)] += 1
        else:
            seen.add(_key(point))
            transferred.append(point)
    return transferred, dict(left_out)


def describe(used: Sequence[TransferredTrial], left_out: Mapping[str, int], source: str) -> list[str]:
    """Return lines that say how many trials of a source are used, and why the others are not."""
    total = len(used) + sum(left_out.values())
    if not total:
        return [f"warm start from {source}: it has no complete trial"]
    line = f"warm start from {source}: {len(used)} of {total} trials used"
    if not left_out:
        return [line]
    ranked = sorted(left_out.items(), key=lambda item: -item[1])
    reasons = [f"{count} {reason}" for reason, count in ranked[:_MAX_REASONS]]
    if more := sum(count for _, count in ranked[_MAX_REASONS:]):
        reasons.append(f"{more} for other reasons")
    return [f"{line}; left out: {', '.join(reasons)}"]


def from_study(name: str, trials: Iterable[FrozenTrial], resolved: Mapping[str, Any]) -> list[PriorTrial]:
    """Return the complete ones of the trials of an earlier sweep, without those transferred to it.

    ``resolved`` is the recorded file of the sweep.
    """
    fixed = flatten(resolved.get("config") or {})
    objectives = [objective["metric"] for objective in resolved["objective"]]
    prior = []
    # Of a transferred trial, the fixed values of its config are not recorded here.
    for trial in own_trials(trials):
        if trial.state != TrialState.COMPLETE:
            continue
        last = next(reversed(epochs(trial).values()), {})
        metrics = {metric: value for metric, value in last.items() if metric != "time"}
        metrics |= zip(objectives, trial.values, strict=True)
        prior.append(PriorTrial(name, trial.number, fixed | trial.params, metrics))
    return prior


def from_mlflow(uri: str, experiment: str) -> list[PriorTrial]:
    """Return the complete trials of all sweeps in an MLflow experiment; raises InputError."""
    source = f"{MLFLOW}{experiment}"
    try:
        client = _client(uri)
        active = None if client is None else client.get_experiment_by_name(experiment)
        if client is None or active is None or active.lifecycle_stage != "active":
            names = [] if client is None else [other.name for other in client.search_experiments()]
            raise InputError(
                f"warm_start: there is no experiment {experiment!r} at {uri}{nearest(experiment, names)}"
            )
        runs: list[Run] = []
        token: str | None = None
        while token is None or token:
            page = client.search_runs(
                [active.experiment_id], _WHICH, max_results=_PAGE_SIZE, page_token=token
            )
            runs += page
            token = page.token or ""
        files = {parent: _file(client, parent) for parent in {_parent(run) for run in runs}}
    except (MlflowException, SQLAlchemyError, OSError) as error:
        raise InputError(f"warm_start: {source} cannot be read at {uri}: {describe_error(error)}") from error
    runs.sort(key=lambda run: (run.info.start_time, _number(run)))
    return [_prior_trial(source, run, files[_parent(run)]) for run in runs]


def _client(uri: str) -> mlflow.MlflowClient | None:
    """Open the store, without creating one."""
    if uri.startswith("sqlite") and not preflight.sqlite_file(uri).exists():
        return None
    quiet_mlflow()
    return mlflow.MlflowClient(uri, registry_uri=uri)


def _parent(run: Run) -> str:
    return str(run.data.tags.get("mlflow.parentRunId", ""))


def _number(run: Run) -> int:
    number = run.data.tags.get("trial.number", "")
    return int(number) if number.isdecimal() else 0


def _file(client: mlflow.MlflowClient, run_id: str) -> dict[str, Any]:
    """Return the resolved file that the run of a job keeps; empty where it keeps none."""
    name = "config.yaml"
    if not run_id or name not in [file.path for file in client.list_artifacts(run_id)]:
        return {}
    with tempfile.TemporaryDirectory() as folder:
        text = Path(client.download_artifacts(run_id, name, folder)).read_text(encoding="utf-8")
    try:
        resolved = yaml.safe_load(text)  # as the tracker wrote it
    except yaml.YAMLError as error:
        raise OSError(f"{name} of run {run_id} is not YAML") from error
    return resolved if isinstance(resolved, dict) else {}


def _prior_trial(source: str, run: Run, file: Mapping[str, Any]) -> PriorTrial:
    """Return a trial from its run and the file of its job."""
    searched = file.get("search") or {}
    params = flatten(file.get("config") or {})
    params |= {path: _read(text, searched.get(path)) for path, text in run.data.params.items()}
    return PriorTrial(source, _number(run), params, dict(run.data.metrics))


def _read(text: str, entry: Any) -> Any:
    """Return a value of which MLflow keeps ``str()``; ``entry`` is its distribution in the sweep file."""
    choices = entry.get("choice") or () if isinstance(entry, Mapping) else ()
    return next((choice for choice in choices if str(choice) == text), plain(text))


def _transfer(sweep: Sweep, trial: PriorTrial) -> TransferredTrial:
    """Map one trial onto the search space; raises _UnfitError."""
    params: dict[str, Any] = {}
    distributions = {}
    for path, parameter in sweep.space.parameters.items():
        if sweep.space.is_active(parameter, params):
            if path not in trial.params:
                raise _UnfitError(f"no value for {path}")
            if not parameter.contains(trial.params[path]):
                raise _UnfitError(f"{path} is {_outside(parameter)}")
            params[path] = parameter.convert(trial.params[path])
            distributions[path] = parameter.distribution()
    for metric in sweep.required_metrics():
        if metric not in trial.metrics:
            raise _UnfitError(f"no {metric}")
        if not math.isfinite(trial.metrics[metric]):
            raise _UnfitError(f"{metric} is not finite")
    values = [float(trial.metrics[objective.metric]) for objective in sweep.objective]
    constraints: dict[str, float] = {}
    for constraint in sweep.constraints:
        constraints |= constraint.violations(trial.metrics[constraint.metric])
    return TransferredTrial(params, distributions, values, trial.source, trial.number, constraints)


def _outside(parameter: Parameter) -> str:
    kind, searched = parameter.describe()
    return f"not one of {searched}" if kind == "choice" else f"outside {searched}"


def _key(trial: TransferredTrial) -> tuple[Any, ...]:
    """Return what makes two points equal."""
    return tuple(sorted(trial.params.items(), key=lambda item: item[0])), tuple(trial.values)
