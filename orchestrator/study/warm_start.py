"""Trials of earlier sweeps, from their studies or from MLflow, as points of a new sweep's space."""

import math
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
import optuna
import yaml
from mlflow.entities import Run
from mlflow.exceptions import MlflowException
from optuna.trial import TrialState
from sqlalchemy.exc import SQLAlchemyError

from orchestrator.config.document import plain
from orchestrator.config.parameter import Parameter
from orchestrator.config.sweep import Sweep
from orchestrator.errors import InputError, nearest
from orchestrator.tracking import preflight as tracking_store
from orchestrator.tracking import tracker as tracking
from orchestrator.tracking.outbox import one_line

MLFLOW = "mlflow:"
"""What a source begins with that is an MLflow experiment."""

_PAGE = 1000  # runs that MLflow gives in one answer
_REASONS = 4  # that a line lists
_WHICH = "tags.`run.kind` = 'trial' AND tags.`trial.state` = 'COMPLETE'"


@dataclass(frozen=True, slots=True)
class Earlier:
    """A trial that an earlier sweep completed."""

    source: str
    number: int
    params: dict[str, Any]
    """Every value of its config that is known, by path."""
    metrics: dict[str, float]
    """The last value of every metric that is known."""


@dataclass(frozen=True, slots=True)
class Fitted:
    """An earlier trial as a point of the new sweep's space, ready for ``optuna.create_trial``."""

    params: dict[str, Any]
    distributions: dict[str, optuna.distributions.BaseDistribution]
    values: list[float]
    """Of the objectives, in the order of the sweep."""
    source: str
    number: int


class _UnfitError(Exception):
    """Why a trial is left out."""


def fit(
    sweep: Sweep, earlier: Iterable[Earlier], known: Iterable[Fitted] = ()
) -> tuple[list[Fitted], dict[str, int]]:
    """Map earlier trials onto the space of a sweep, by path.

    A trial needs a value for every path that is searched beside its other values, and for every objective;
    what else it has is ignored. The same point with the same values is used once, also when it is among the
    ``known`` ones. Returns what can be used, and how many trials are left out for which reason.
    """
    seen = {_key(each) for each in known}
    fitted: list[Fitted] = []
    left_out: Counter[str] = Counter()
    for trial in earlier:
        try:
            made = _fit(sweep, trial)
            if _key(made) in seen:
                raise _UnfitError("known already")
        except _UnfitError as unfit:
            left_out[str(unfit)] += 1
        else:
            seen.add(_key(made))
            fitted.append(made)
    return fitted, dict(left_out)


def describe(used: Sequence[Fitted], left_out: Mapping[str, int], source: str) -> list[str]:
    """Say how many trials of a source are used, and why the others are not."""
    total = len(used) + sum(left_out.values())
    if not total:
        return [f"warm start from {source}: there is no complete trial"]
    line = f"warm start from {source}: {len(used)} of {total} trials used"
    if not left_out:
        return [line]
    ranked = sorted(left_out.items(), key=lambda each: -each[1])
    reasons = [f"{count} {reason}" for reason, count in ranked[:_REASONS]]
    if more := sum(count for _, count in ranked[_REASONS:]):
        reasons.append(f"{more} for other reasons")
    return [f"{line}; left out: {', '.join(reasons)}"]


def from_study(study: optuna.Study, resolved: Mapping[str, Any]) -> list[Earlier]:
    """The trials that an earlier sweep completed, but not those that it took over from others itself.

    ``resolved`` is what the folder of the sweep recorded of its file.
    """
    # Not at the top: the study is what warm starts are for, and may import this.
    from orchestrator.study.base import SOURCE, epochs

    fixed = _flat(resolved.get("config") or {})
    objective = [each["metric"] for each in resolved["objective"]]
    found = []
    for trial in study.get_trials(deepcopy=False, states=[TrialState.COMPLETE]):
        if SOURCE in trial.user_attrs:  # what its config fixed is not known here
            continue
        last = next(reversed(epochs(trial).values()), {})
        metrics = {metric: value for metric, value in last.items() if metric != "time"}
        metrics |= zip(objective, trial.values, strict=True)
        found.append(Earlier(study.study_name, trial.number, fixed | trial.params, metrics))
    return found


def from_mlflow(uri: str, experiment: str) -> list[Earlier]:
    """The complete trials of an MLflow experiment, of whatever sweeps; raises InputError."""
    source = f"{MLFLOW}{experiment}"
    try:
        client = _client(uri)
        found = None if client is None else client.get_experiment_by_name(experiment)
        if client is None or found is None or found.lifecycle_stage != "active":
            names = [] if client is None else [each.name for each in client.search_experiments()]
            raise InputError(
                f"warm_start: there is no experiment {experiment!r} at {uri}{nearest(experiment, names)}"
            )
        runs: list[Run] = []
        token: str | None = None
        while token is None or token:
            page = client.search_runs([found.experiment_id], _WHICH, max_results=_PAGE, page_token=token)
            runs += page
            token = page.token or ""
        files = {parent: _file(client, parent) for parent in {_parent(run) for run in runs}}
    except (MlflowException, SQLAlchemyError, OSError) as error:
        raise InputError(f"warm_start: {source} cannot be read at {uri}: {one_line(error)}") from error
    runs.sort(key=lambda run: (run.info.start_time, _number(run)))
    return [_earlier(source, run, files[_parent(run)]) for run in runs]


def _client(uri: str) -> mlflow.MlflowClient | None:
    """Open the store, but make none where there is none."""
    if uri.startswith("sqlite") and not tracking_store.sqlite_file(uri).exists():
        return None
    tracking._quiet()
    return mlflow.MlflowClient(uri, registry_uri=uri)


def _parent(run: Run) -> str:
    return str(run.data.tags.get("mlflow.parentRunId", ""))


def _number(run: Run) -> int:
    number = run.data.tags.get("trial.number", "")
    return int(number) if number.isdecimal() else 0


def _file(client: mlflow.MlflowClient, run_id: str) -> dict[str, Any]:
    """The resolved file that the run of a job keeps, or nothing where there is none."""
    name = "config.yaml"
    if not run_id or name not in [file.path for file in client.list_artifacts(run_id)]:
        return {}
    with tempfile.TemporaryDirectory() as folder:
        text = Path(client.download_artifacts(run_id, name, folder)).read_text(encoding="utf-8")
    try:
        resolved = yaml.safe_load(text)  # as the tracker wrote it
    except yaml.YAMLError as error:
        raise OSError(f"{name} of run {run_id} is no YAML") from error
    return resolved if isinstance(resolved, dict) else {}


def _earlier(source: str, run: Run, file: Mapping[str, Any]) -> Earlier:
    """A trial of its run and of the file of its job."""
    searched = file.get("search") or {}
    params = _flat(file.get("config") or {})
    params |= {path: _read(text, searched.get(path)) for path, text in run.data.params.items()}
    return Earlier(source, _number(run), params, dict(run.data.metrics))


def _read(text: str, entry: Any) -> Any:
    """The value that a parameter had of which MLflow keeps ``str()``; ``entry`` is how it was searched."""
    choices = entry.get("choice") or () if isinstance(entry, Mapping) else ()
    return next((each for each in choices if str(each) == text), plain(text))


def _fit(sweep: Sweep, trial: Earlier) -> Fitted:
    """Map one trial onto the space; raises _UnfitError."""
    params: dict[str, Any] = {}
    distributions = {}
    for path, parameter in sweep.space.parameters.items():
        if sweep.space.active(parameter, params):
            if path not in trial.params:
                raise _UnfitError(f"no value for {path}")
            if not parameter.takes(trial.params[path]):
                raise _UnfitError(f"{path} is {_outside(parameter)}")
            params[path] = parameter.convert(trial.params[path])
            distributions[path] = parameter.distribution()
    values = [trial.metrics.get(objective.metric) for objective in sweep.objective]
    for objective, value in zip(sweep.objective, values, strict=True):
        if value is None:
            raise _UnfitError(f"no {objective.metric}")
        if not math.isfinite(value):
            raise _UnfitError(f"{objective.metric} is not finite")
    finite = [float(value) for value in values if value is not None]
    return Fitted(params, distributions, finite, trial.source, trial.number)


def _outside(parameter: Parameter) -> str:
    kind, searched = parameter.describe()
    return f"none of {searched}" if kind == "choice" else f"outside {searched}"


def _key(fitted: Fitted) -> tuple[Any, ...]:
    """What makes two points the same."""
    return tuple(sorted(fitted.params.items(), key=lambda each: each[0])), tuple(fitted.values)


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Lay a nested config out as path → value."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat
