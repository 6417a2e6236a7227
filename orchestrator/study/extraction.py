"""The best trials of a sweep as the file of a comparison."""

from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import ValidationError

from orchestrator import trainable
from orchestrator.config.comparison import SEED
from orchestrator.config.sections import MAX_NAME, Resources, duration_text, sqlite_address
from orchestrator.config.validation import first_fault
from orchestrator.errors import InputError
from orchestrator.storage import lookup
from orchestrator.storage.base import Store
from orchestrator.storage.study_database import open_study
from orchestrator.study.selection import ATTRIBUTES, own_trials, top_trials
from orchestrator.study.trial_report import trial_name

SEEDS = [0, 1, 2]
"""Seeds of the comparison; one seed would again measure luck."""

_ENDING = "-best"


def best_as_comparison(store: Store, name: str, top: int) -> dict[str, Any]:
    """Return the values of a comparison file whose variants are the best trials of a sweep.

    Of trials with equal parameters, only the first one is a variant.

    Args:
        store: the storage of the sweep.
        name: name of the sweep.
        top: number of trials; of several objectives, the most of the Pareto set.

    Raises:
        InputError: it is not a sweep, it has no complete trial, or its config is not valid any more.
        StorageError: the storage does not answer, or the study cannot be read.
    """
    job = lookup.recorded_job(store, name)
    if job is None:
        raise lookup.no_such_job(store, name)
    kind, resolved = job
    if kind != "sweep":
        raise InputError(f"--from: {store.locate(name)} is a {kind}; name a sweep")
    objectives = resolved["objective"]
    with open_study(store, name, resolved) as study:
        trials = [] if study is None else study.read_trials(ATTRIBUTES)
        best = top_trials(own_trials(trials), top, *(objective["mode"] for objective in objectives))
        complete = [] if study is None else list(map(study.complete, best))
    variants = _distinct((trial_name(trial.number), trial.params) for trial in complete)
    if not variants:
        raise InputError(f"--from: {store.locate(name)} has no complete trial that could be the best")
    return {
        "name": name[: MAX_NAME - len(_ENDING)] + _ENDING,
        "trainable": resolved["trainable"],
        "config": _config(resolved),
        "variants": variants,
        "seeds": SEEDS,
        "metrics": [objective["metric"] for objective in objectives],
        **_where(store, resolved),
    }


def _distinct(trials: Iterable[tuple[str, Mapping[str, Any]]]) -> dict[str, dict[str, Any]]:
    """Return the parameters of each trial but its seed, which the comparison varies, without repetitions."""
    variants: dict[str, dict[str, Any]] = {}
    for name, parameters in trials:
        settings = {path: value for path, value in parameters.items() if path != SEED}
        if settings not in variants.values():
            variants[name] = settings
    return variants


def _config(resolved: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config of a sweep without what is the default, and without its seed."""
    model = trainable.load(resolved["trainable"]).Config
    try:
        config = model.model_validate(resolved["config"])
    except ValidationError as error:
        fault = first_fault(error, model, resolved["config"], "config")
        raise InputError(f"--from: the recorded config is not valid in this version: {fault}") from error
    values: dict[str, Any] = config.model_dump(mode="json", by_alias=True, exclude_defaults=True)
    return {name: value for name, value in values.items() if name != SEED}


def _where(store: Store, resolved: Mapping[str, Any]) -> dict[str, Any]:
    """Return the sections that say where a job runs and is kept, without what is the default."""
    defaults = Resources().model_dump(mode="json")
    resources = {
        Resources.renamed_keys.get(f"resources.{key}", f"resources.{key}").removeprefix("resources."): value
        for key, value in resolved.get("resources", {}).items()
    }
    changed = {key: value for key, value in resources.items() if value != defaults.get(key, value)}
    if "report_timeout" in changed:
        changed["report_timeout"] = duration_text(changed["report_timeout"])
    tracking = resolved.get("tracking", {}).get("uri", "")
    sections = {
        "resources": changed,
        "storage": store.uri,
        "study": resolved.get("study", ""),
        "tracking": {"uri": tracking}
        if tracking not in ("", sqlite_address(f"{store.uri}/mlflow.db"))
        else {},
    }
    return {key: value for key, value in sections.items() if value}
