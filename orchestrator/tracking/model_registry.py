"""The model registry: the best trial's model becomes a version, and an alias moves to it last."""

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import mlflow
from mlflow.entities import Metric
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.models import Model

from orchestrator.tracking.outbox import one_line
from orchestrator.tracking.tracker import Tracker, TrackingError

_SCORE = "score."
_DATA = "data."
_DECISION = "decision"  # tag of a version, written after its alias has moved: the registration is complete


@dataclass(frozen=True)
class RegisteredModel:
    """A version in the registry; `mlflow.pyfunc.load_model(uri)` loads it."""

    name: str
    version: int
    alias: str
    uri: str
    created: bool  # False when an earlier run of the same sweep had registered it


def register(
    tracker: Tracker,
    number: int,
    export: Mapping[str, Any],
    *,
    model: str,
    alias: str,
    evaluation: Mapping[str, float],
    record: Mapping[str, Any],
) -> RegisteredModel:
    """Log the model of trial `number` to its run, make it a version of `model`, and point `alias` at it.

    Registering the same trial of the same sweep again finds its version; an alias that has moved on stays.

    Args:
        tracker: the sweep's tracker, with the trial in it.
        number: the trial.
        export: keyword arguments of `mlflow.pyfunc.log_model` from the trainable.
        model: name in the registry.
        alias: what users load it by, such as `champion`.
        evaluation: scores on the targets.
        record: what to keep of how it came about; `record["parameters"]` are the trial's parameters,
            `record["data"]` maps data set names to digests: only versions scored on the same data compare.

    Raises:
        TrackingError: MLflow did not take something; one line. Calling again continues.
    """
    try:
        run_id = tracker.run_id(number)
        # The fluent API, which saves models, takes the store from the process.
        mlflow.set_tracking_uri(tracker.uri)
        mlflow.set_registry_uri(tracker.uri)
        # Else the model lies in the experiment "Default", which a login need not have a right to.
        mlflow.set_experiment(experiment_id=tracker.experiment_id)
        identity = {"sweep.id": tracker.sweep_id, "trial.number": str(number)}
        version = _find_version(tracker.client, model, identity)
        created = version is None
        if version is None:
            version = _create_version(tracker, run_id, export, model, identity, evaluation, record)
        if _DECISION not in version.tags:
            _promote(tracker.client, version, alias, run_id, record)
    except (MlflowException, OSError) as error:
        raise TrackingError(f"registry: {model} at {tracker.uri}: {one_line(error)}") from error
    return RegisteredModel(model, int(version.version), alias, f"models:/{model}@{alias}", created)


def decide(candidate: Mapping[str, Any], champion: Mapping[str, Any] | None) -> dict[str, Any]:
    """Whether the alias moves from `champion` to `candidate`; both hold `scores` and `data` digests.

    The one place for a promotion gate. There is none yet: the best model of the latest sweep is promoted, and
    the difference to the former champion is recorded where both were scored on the same data.
    """
    decision: dict[str, Any] = {"candidate": dict(candidate), "champion": champion and dict(champion)}
    if champion is not None and candidate["data"] and candidate["data"] == champion["data"]:
        new, old = candidate["scores"], champion["scores"]
        decision["difference"] = {name: new[name] - old[name] for name in new if name in old}
    reason = "no gate is set" if champion else "first version under this alias"
    return decision | {"comparable": "difference" in decision, "promoted": True, "reason": reason}


def _find_version(
    client: mlflow.MlflowClient, model: str, identity: Mapping[str, str]
) -> ModelVersion | None:
    which = [f"name = '{model}'", *(f"tags.`{key}` = '{value}'" for key, value in identity.items())]
    found = client.search_model_versions(" AND ".join(which), max_results=1)
    return found[0] if found else None


def _create_version(
    tracker: Tracker,
    run_id: str,
    export: Mapping[str, Any],
    model: str,
    identity: Mapping[str, str],
    evaluation: Mapping[str, float],
    record: Mapping[str, Any],
) -> ModelVersion:
    # What mlflow.pyfunc.log_model calls; given the run, it leaves the run's status and end time alone.
    options = {"name": model, "artifact_path": None, "flavor": mlflow.pyfunc, "run_id": run_id, **export}
    logged = Model.log(**options)
    now = int(time.time() * 1000)
    scores = {name: value for name, value in evaluation.items() if math.isfinite(value)}
    tracker.client.log_batch(
        run_id,
        metrics=[Metric(name, value, now, 0, model_id=logged.model_id) for name, value in scores.items()],
    )
    tags = {**identity, "sweep.name": tracker.sweep_name}
    tags |= {f"{_SCORE}{name}": repr(value) for name, value in scores.items()}
    tags |= {f"{_DATA}{name}": str(digest) for name, digest in record.get("data", {}).items()}
    try:
        tracker.client.create_registered_model(model)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    return tracker.client.create_model_version(
        model,
        source=f"models:/{logged.model_id}",
        run_id=run_id,
        model_id=logged.model_id,
        tags=tags,
        description=_description(tracker.sweep_name, identity, scores, record),
    )


def _promote(
    client: mlflow.MlflowClient, version: ModelVersion, alias: str, run_id: str, record: Mapping[str, Any]
) -> None:
    current = client.get_registered_model(version.name).aliases.get(alias)
    promoted = True
    if str(current) != str(version.version):  # else an earlier attempt got as far as this
        champion = current and _summary(client.get_model_version(version.name, str(current)))
        decision = decide(_summary(version), champion)
        promoted = decision["promoted"]
        decided = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        decision |= {"alias": alias, "decided": decided, "record": dict(record)}
        client.log_dict(run_id, decision, f"registry/{version.name}-v{version.version}.json")
        if promoted:
            client.set_registered_model_alias(version.name, alias, version.version)
    client.set_model_version_tag(
        version.name, version.version, _DECISION, "promoted" if promoted else "declined"
    )


def _summary(version: ModelVersion) -> dict[str, Any]:
    tags = dict(sorted(version.tags.items()))
    scores = {key.removeprefix(_SCORE): float(text) for key, text in tags.items() if key.startswith(_SCORE)}
    return {
        "version": int(version.version),
        "sweep": tags.get("sweep.id"),
        "trial": tags.get("trial.number"),
        "scores": scores,
        "data": {key.removeprefix(_DATA): text for key, text in tags.items() if key.startswith(_DATA)},
    }


def _description(
    sweep: str, identity: Mapping[str, str], scores: Mapping[str, float], record: Mapping[str, Any]
) -> str:
    lines = [f"Best of sweep **{sweep}** (`{identity['sweep.id']}`), trial {identity['trial.number']}.", ""]
    lines += [
        "| score | value |",
        "|---|---|",
        *(f"| {name} | {value:.4g} |" for name, value in scores.items()),
        "",
    ]
    if parameters := record.get("parameters"):
        lines += ["", "| parameter | value |", "|---|---|"]
        lines += [f"| {name} | {value} |" for name, value in parameters.items()]
    return "\n".join(lines)
