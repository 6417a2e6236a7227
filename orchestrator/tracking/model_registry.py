"""The model registry: the best trial's model becomes a version, and an alias may move to it."""

import math
import time
from collections.abc import Mapping
from typing import Any

import mlflow
from mlflow.entities import LoggedModelStatus, Metric
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.models import Model
from pydantic import BaseModel, ConfigDict

from orchestrator.errors import TrackingError
from orchestrator.tracking.outbox import describe_error
from orchestrator.tracking.promotion import DATA_TAG, DECISION_TAG, SCHEMA, SCHEMA_TAG, SCORE_TAG, promote
from orchestrator.tracking.tracker import Tracker

_CHECK_TAG = "sweep.check"
"""Tag of a registered model that is there only for a moment."""


class RegisteredModel(BaseModel):
    """A version in the registry; `mlflow.pyfunc.load_model(uri)` loads it."""

    model_config = ConfigDict(frozen=True)

    name: str
    version: int
    alias: str
    uri: str
    created: bool
    """False when an earlier run of the same sweep registered it."""

    def __str__(self) -> str:
        return f"{self.name} version {self.version}, alias {self.alias}"


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
    """Log the model of trial `number` to its run, make it a version of `model`, and promote it to `alias`.

    Registering the same trial of the same sweep again finds its version; an alias that has moved since stays.

    Args:
        tracker: the sweep's tracker, with the trial in it.
        number: the trial.
        export: keyword arguments of `mlflow.pyfunc.log_model` from the trainable.
        model: name in the registry.
        alias: the name by which users load it, such as `champion`.
        evaluation: scores on the targets.
        record: how the model was made: `record["parameters"]` are the trial's parameters, `record["data"]`
            maps data sets to digests. Only versions that were scored on the same data are compared.

    Raises:
        TrackingError: MLflow did not accept something. Calling again resumes.
        LeaseLostError: another driver has taken the sweep over.
    """
    try:
        run_id = tracker.run_id(number)
        # The fluent API, which saves models, takes the store from the process.
        mlflow.set_tracking_uri(tracker.uri)
        mlflow.set_registry_uri(tracker.uri)
        # Otherwise the model would be logged to the experiment "Default", which a login may not write.
        mlflow.set_experiment(experiment_id=tracker.experiment_id)
        identity = {"sweep.id": tracker.sweep_id, "trial.number": str(number)}
        version = _find_version(tracker.client, model, identity)
        created = version is None
        tracker.check()
        if version is None:
            version = _create_version(tracker, run_id, export, model, identity, evaluation, record)
        if DECISION_TAG not in version.tags:
            promote(tracker.client, version, alias, run_id, record)
    except (MlflowException, OSError) as error:
        raise TrackingError(f"registry: {model} at {tracker.uri}: {describe_error(error)}") from error
    return RegisteredModel(
        name=model,
        version=int(version.version),
        alias=alias,
        uri=f"models:/{model}@{alias}",
        created=created,
    )


def check_registry(tracker: Tracker, model: str) -> None:
    """Check that this login may add versions to a model, by setting and deleting a tag.

    A model that does not exist is created, without a version.

    Raises:
        TrackingError: it may not.
    """
    client = tracker.client
    try:
        try:
            client.create_registered_model(model)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        client.set_registered_model_tag(model, _CHECK_TAG, tracker.sweep_id)
        client.delete_registered_model_tag(model, _CHECK_TAG)
    except MlflowException as error:
        reason = describe_error(error)
        raise TrackingError(
            f"registry: {model!r} cannot be written at {tracker.uri}: {reason}; name another model, or"
            " ask its owner for permission"
        ) from error


def _find_version(
    client: mlflow.MlflowClient, model: str, identity: Mapping[str, str]
) -> ModelVersion | None:
    which = [f"name = '{model}'", *(f"tags.`{key}` = '{value}'" for key, value in identity.items())]
    versions = client.search_model_versions(" AND ".join(which), max_results=1)
    return versions[0] if versions else None


def _create_version(
    tracker: Tracker,
    run_id: str,
    export: Mapping[str, Any],
    model: str,
    identity: Mapping[str, str],
    evaluation: Mapping[str, float],
    record: Mapping[str, Any],
) -> ModelVersion:
    model_id = _find_upload(tracker, run_id, model) or _upload(run_id, export, model)
    now = int(time.time() * 1000)
    scores = {name: value for name, value in evaluation.items() if math.isfinite(value)}
    tracker.client.log_batch(
        run_id,
        metrics=[Metric(name, value, now, 0, model_id=model_id) for name, value in scores.items()],
    )
    tags = {**identity, "sweep.name": tracker.sweep_name, SCHEMA_TAG: str(SCHEMA)}
    tags |= {f"{SCORE_TAG}{name}": repr(value) for name, value in scores.items()}
    tags |= {f"{DATA_TAG}{name}": str(digest) for name, digest in record.get("data", {}).items()}
    try:
        tracker.client.create_registered_model(model)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    return tracker.client.create_model_version(
        model,
        source=f"models:/{model_id}",
        run_id=run_id,
        model_id=model_id,
        tags=tags,
        description=_description(tracker.sweep_name, identity, scores, record),
    )


def _find_upload(tracker: Tracker, run_id: str, model: str) -> str | None:
    """Return the id of the model that an earlier attempt uploaded completely to a run."""
    uploads = tracker.client.search_logged_models(
        [tracker.experiment_id], f"source_run_id = '{run_id}' AND name = '{model}'"
    )
    complete = [upload.model_id for upload in uploads if upload.status == LoggedModelStatus.READY]
    return complete[0] if complete else None


def _upload(run_id: str, export: Mapping[str, Any], model: str) -> str:
    # The method behind mlflow.pyfunc.log_model; with a run id it does not change status and end of the run.
    options = {"name": model, "artifact_path": None, "flavor": mlflow.pyfunc, "run_id": run_id, **export}
    return str(Model.log(**options).model_id)


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
