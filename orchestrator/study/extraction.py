"""The best trials of a sweep as the file of a comparison."""

from collections.abc import Mapping
from typing import Any

from orchestrator import trainable
from orchestrator.config.sections import MAX_NAME, Resources, sqlite_address
from orchestrator.errors import InputError
from orchestrator.storage import lookup
from orchestrator.storage.base import Store
from orchestrator.storage.study_database import open_study
from orchestrator.study import attributes
from orchestrator.study.selection import own_trials, top_trials
from orchestrator.study.trial_report import trial_name

SEEDS = [0, 1, 2]
"""Seeds of the comparison; one seed would again measure luck."""

_ENDING = "-best"


def best_as_comparison(store: Store, name: str, top: int) -> dict[str, Any]:
    """Return the values of a comparison file whose variants are the best trials of a sweep.

    Args:
        store: the storage of the sweep.
        name: name of the sweep.
        top: number of trials; of several objectives, the most of the Pareto set.

    Raises:
        InputError: it is not a sweep, or it has no complete trial.
        StorageError: the storage does not answer, or the study cannot be read.
    """
    job = lookup.recorded_job(store, name)
    if job is None:
        raise lookup.no_such_job(store, name)
    kind, resolved = job
    if kind != "sweep":
        raise InputError(f"--from: {store.locate(name)} is a {kind}; name a sweep")
    modes = [objective["mode"] for objective in resolved["objective"]]
    with open_study(store, name, resolved) as study:
        trials = [] if study is None else study.read_trials((attributes.SOURCE, attributes.VIOLATED))
        best = top_trials(own_trials(trials), top, *modes)
        variants = (
            {} if study is None else {trial_name(each.number): study.complete(each).params for each in best}
        )
    if not variants:
        raise InputError(f"--from: {store.locate(name)} has no complete trial that could be the best")
    config = trainable.load(resolved["trainable"]).Config.model_validate(resolved["config"])
    return {
        "name": name[: MAX_NAME - len(_ENDING)] + _ENDING,
        "trainable": resolved["trainable"],
        "config": config.model_dump(mode="json", by_alias=True, exclude_defaults=True),
        "variants": variants,
        "seeds": SEEDS,
        **_where(store, resolved),
    }


def _where(store: Store, resolved: Mapping[str, Any]) -> dict[str, Any]:
    """Return the sections that say where a job runs and is kept, without what is the default."""
    resources = Resources.model_validate(_as_written(resolved["resources"]))
    tracking = resolved["tracking"]["uri"]
    sections = {
        "resources": _as_written(resources.model_dump(mode="json", exclude_defaults=True)),
        "storage": store.uri,
        "study": resolved.get("study", ""),
        "tracking": {} if tracking == sqlite_address(f"{store.uri}/mlflow.db") else {"uri": tracking},
    }
    return {key: value for key, value in sections.items() if value}


def _as_written(resources: Mapping[str, Any]) -> dict[str, Any]:
    """Return resources with their duration as a file has it."""
    return {key: f"{value:.0f}s" if key == "report_timeout" else value for key, value in resources.items()}
