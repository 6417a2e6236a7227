"""The model registry: the best trial's model becomes a version, and takes an alias if it passes the gate."""

import json
import math
import posixpath
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import mlflow
from mlflow.entities import LoggedModelStatus, Metric
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.models import Model
from mlflow.models.model import MLMODEL_FILE_NAME
from mlflow.utils.mlflow_tags import MLFLOW_MODEL_VERSIONS
from pydantic import BaseModel, ConfigDict, ValidationError

from orchestrator.errors import InputError, SweepError, TrackingError, one_line
from orchestrator.tracking import evidence as evidences
from orchestrator.tracking import model_card, preflight
from orchestrator.tracking.alias import Alias
from orchestrator.tracking.evidence import DATA_TAG, TRAINABLE_TAG, Evidence
from orchestrator.tracking.gate import Decision, Rule
from orchestrator.tracking.model_files import DIGEST_TAG, client_of, digest, fetch
from orchestrator.tracking.outbox import describe_error, is_away
from orchestrator.tracking.promotion import (
    DECISION_TAG,
    SCHEMA,
    SCHEMA_TAG,
    Judge,
    ScoreModel,
    check_family,
    check_writable,
    decision_of_gate,
    is_of_first_release,
    now,
    promote,
    records_of,
    who,
)
from orchestrator.tracking.records import SWEEP_TAG, dataset_digest, dataset_inputs
from orchestrator.tracking.runs import is_lost_run
from orchestrator.tracking.tracker import Tracker
from orchestrator.trainable import DataSetRecord

_REASON_CHARACTERS = 300


class RegisteredModel(BaseModel):
    """A version in the registry; `mlflow.pyfunc.load_model(uri)` loads it."""

    model_config = ConfigDict(frozen=True)

    name: str
    version: int
    alias: str
    """The alias that it was registered for."""
    uri: str
    created: bool
    """False when an earlier run of the same sweep registered it."""
    promoted: bool = True
    """Whether it took the alias; another version may have it by now."""
    reason: str = ""
    decision: Decision | None = None
    """None where an earlier version of this project decided, or where the run has lost it."""

    def __str__(self) -> str:
        taken = f"alias {self.alias}" if self.promoted else f"without the alias {self.alias}"
        return f"{self.name} version {self.version}, {taken}" + (f": {self.reason}" if self.reason else "")


def register(
    tracker: Tracker,
    number: int,
    export: Mapping[str, Any],
    *,
    model: str,
    alias: str,
    evaluation: Mapping[str, float],
    record: Mapping[str, Any],
    evidence: Evidence | None = None,
    score_model: ScoreModel | None = None,
    data_sets: Sequence[DataSetRecord] = (),
) -> RegisteredModel:
    """Log the model of trial `number` to its run, make it a version of `model`, and promote it to `alias`.

    The version takes the alias if it passes the gate; otherwise it becomes the `challenger`. Registering the
    same trial of the same sweep again finds its version, and its decision if it was for the same alias.

    Args:
        tracker: the tracker of a job, with the trial in it.
        number: the trial.
        export: keyword arguments of `mlflow.pyfunc.log_model` from the trainable.
        model: name in the registry.
        alias: the name by which users load it, such as `champion`.
        evaluation: scores on the targets.
        record: how the model was made: `record["parameters"]` are the trial's parameters, `record["data"]`
            maps data sets to digests. Other keys are kept with the decision.
        evidence: what the gate compares, with its rule; without it, the alias moves without a gate.
        score_model: scores the champion anew where its results are of other data.
        data_sets: the data that trained and scored the model.

    Raises:
        TrackingError: MLflow did not accept something. Calling again resumes.
        InputError: the version that has the alias is of another family.
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
        scores = {name: value for name, value in evaluation.items() if math.isfinite(value)}
        known, decision = evidence or _bare_evidence(scores, record), None
        version = _find_version(tracker.client, model, identity)
        created = version is None
        tracker.check()
        if version is None:
            version = _create_version(tracker, run_id, export, model, identity, known, record, data_sets)
        if not is_of_first_release(version.tags) and decision_of_gate(version.tags, alias) is None:
            decision = _decide(tracker, run_id, version, alias, known, record, score_model)
            version = tracker.client.get_model_version(model, version.version)
        else:
            decision = _kept_decision(tracker, run_id, version, alias)
        if not version.description:
            text = _page(tracker, run_id, version, alias, known, record, data_sets, _own_card(export))
            tracker.client.update_model_version(model, version.version, description=text)
    except (MlflowException, OSError) as error:
        raise TrackingError(
            f"registry: {model} at {tracker.uri}: {describe_error(error)}", unreachable=is_away(error)
        ) from error
    decided = decision_of_gate(version.tags, alias)
    return RegisteredModel(
        name=model,
        version=int(version.version),
        alias=alias,
        uri=f"models:/{model}/{version.version}",
        created=created,
        promoted=(version.tags[DECISION_TAG] if decided is None else decided.verdict) == "promoted",
        reason="" if decided is None else one_line(decided.reason, _REASON_CHARACTERS),
        decision=decision,
    )


def is_gone(uri: str, model: RegisteredModel, job: str) -> bool:
    """Return whether a version that a job registered was deleted; False where the store does not tell."""
    try:
        preflight.check(uri)
        if uri.startswith("sqlite") and not preflight.sqlite_file(uri).exists():
            return True  # MLflow would create an empty one
        version = client_of(uri).get_model_version(model.name, str(model.version))
    except InputError:
        return False
    except MlflowException as error:
        return bool(error.error_code == "RESOURCE_DOES_NOT_EXIST")
    return version.tags.get(SWEEP_TAG, job) != job  # a later job may have registered one of this number


def alias_holder(uri: str, model: RegisteredModel) -> int | None:
    """Return the version that has the alias of a registered model; None where the store does not tell."""
    try:
        return int(client_of(uri).get_registered_model(model.name).aliases[model.alias])
    except (MlflowException, KeyError):
        return None


def check_registry(tracker: Tracker, model: str, alias: str = "", trainable: str = "") -> None:
    """Check that this login may add versions to a model, by setting and deleting a tag.

    A model that does not exist is created, without a version.

    Args:
        tracker: gives the store.
        model: name in the registry.
        alias: whose version has to be of the same family.
        trainable: dotted path of the trainable of new versions.

    Raises:
        TrackingError: it may not.
        InputError: the version that has the alias is of another trainable.
    """
    client = tracker.client
    try:
        try:
            client.create_registered_model(model, description=model_card.of_model(model))
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        check_writable(client, model)
        if (holder := client.get_registered_model(model).aliases.get(alias)) is not None:
            check_family(client.get_model_version(model, str(holder)), trainable)
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
    for version in client.search_model_versions(" AND ".join(which)):
        if not is_lost_run(client, version.run_id):
            return version
    return None


def _bare_evidence(scores: Mapping[str, float], record: Mapping[str, Any]) -> Evidence:
    data = {name: str(value) for name, value in record.get("data", {}).items()}
    return Evidence(trainable="", config={}, scores=dict(scores), data=data)


def _create_version(
    tracker: Tracker,
    run_id: str,
    export: Mapping[str, Any],
    model: str,
    identity: Mapping[str, str],
    evidence: Evidence,
    record: Mapping[str, Any],
    data_sets: Sequence[DataSetRecord],
) -> ModelVersion:
    client = tracker.client
    model_id, checksum = _uploaded(tracker, run_id, export, model)
    _log_scores(client, run_id, model_id, evidence.scores, data_sets)
    evidences.write(client, run_id, evidence)
    tags = {**identity, SWEEP_TAG: tracker.sweep_name, SCHEMA_TAG: str(SCHEMA)}
    tags |= {TRAINABLE_TAG: evidence.trainable} if evidence.trainable else {}
    tags |= {f"{DATA_TAG}{name}": str(value) for name, value in record.get("data", {}).items()}
    tags[DIGEST_TAG] = checksum
    try:
        client.create_registered_model(model, description=model_card.of_model(model))
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    version = client.create_model_version(
        model, source=f"models:/{model_id}", run_id=run_id, model_id=model_id, tags=tags
    )
    _link(client, model_id, version)
    return version


def _decide(
    tracker: Tracker,
    run_id: str,
    version: ModelVersion,
    alias: str,
    evidence: Evidence,
    record: Mapping[str, Any],
    score_model: ScoreModel | None,
) -> Decision | None:
    """Let a version pass the gate; return the last decision, which may have been made more than once."""
    client, number = tracker.client, int(version.version)
    rule = evidence.rule or Rule(gate="none", metric="")
    judge = Judge(client, version.name, number, evidence, rule, score_model)
    decisions: list[Decision] = []

    def keep(decision: Decision, champion: int | None) -> None:
        content = {
            "schema": SCHEMA,
            "alias": alias,
            "version": number,
            "champion": champion,
            "decided": now(),
            **decision.model_dump(mode="json"),
            "record": dict(record),
        }
        client.log_dict(run_id, content, _decision_file(version, alias))
        decisions.append(decision)

    by = who(sweep=tracker.sweep_name)
    owned = Alias(client, version.name, alias, owner=f"{tracker.sweep_id} {number}")
    promote(client, version, owned, judge.decide, by=by, keep=keep)
    return decisions[-1] if decisions else None


def _kept_decision(tracker: Tracker, run_id: str, version: ModelVersion, alias: str) -> Decision | None:
    """Return the decision that an earlier run of the command kept in the run of the version."""
    file = _decision_file(version, alias)
    if file not in {entry.path for entry in tracker.client.list_artifacts(run_id, posixpath.dirname(file))}:
        return None
    with TemporaryDirectory() as folder:
        text = Path(tracker.client.download_artifacts(run_id, file, folder)).read_bytes()
    try:
        return Decision.model_validate_json(text)
    except ValidationError:  # damaged, or of a later release
        return None


def _decision_file(version: ModelVersion, alias: str) -> str:
    """Return the name of the file in which the run of a version keeps the whole decision."""
    return f"registry/{version.name}-v{version.version}-{alias}.json"


def _page(
    tracker: Tracker,
    run_id: str,
    version: ModelVersion,
    alias: str,
    evidence: Evidence,
    record: Mapping[str, Any],
    data_sets: Sequence[DataSetRecord],
    text: str,
) -> str:
    """Return the page of a version."""
    runs = f"#/experiments/{tracker.experiment_id}/runs"
    return model_card.of_version(
        job=f"{tracker.kind} **{tracker.sweep_name}** (`{tracker.sweep_id}`)",
        trial=version.tags.get("trial.number", ""),
        run=f"{runs}/{run_id}",
        job_run=f"{runs}/{tracker.parent_run_id}",
        scores=evidence.scores,
        parameters=record.get("parameters", {}),
        data_sets=data_sets,
        records=records_of(version, alias),
        text=text,
    )


def _own_card(export: Mapping[str, Any]) -> str:
    """Return the model card that a trainable has exported, if there is one."""
    files = [Path(path) for path in export.get("artifacts", {}).values()]
    if "data_path" in export:
        files += sorted(Path(export["data_path"]).glob("*"))
    for file in files:
        if file.name.casefold() in ("model_card.md", "readme.md") and file.is_file():
            return file.read_text(encoding="utf-8", errors="replace")
    return ""


def _log_scores(
    client: mlflow.MlflowClient,
    run_id: str,
    model_id: str,
    scores: Mapping[str, float],
    data_sets: Sequence[DataSetRecord],
) -> None:
    """Record the scores on the page of the model, each with its data set, and the data sets as inputs."""
    if data_sets:
        client.log_inputs(run_id, datasets=dataset_inputs(data_sets))
    targets = {record.name: record for record in data_sets if record.role == "target"}
    timestamp = int(time.time() * 1000)
    points = []
    for name, value in scores.items():
        target = targets.get(name.split("/")[1]) if name.count("/") >= 2 else None
        points.append(
            Metric(
                name,
                value,
                timestamp,
                0,
                model_id=model_id,
                dataset_name=None if target is None else target.name,
                dataset_digest=None if target is None else dataset_digest(target),
            )
        )
    client.log_batch(run_id, metrics=points)


def _link(client: mlflow.MlflowClient, model_id: str, version: ModelVersion) -> None:
    """Show the version on the page of the model, as `mlflow.register_model` does; a server has done so."""
    mine = {"name": version.name, "version": str(version.version)}
    links = json.loads(client.get_logged_model(model_id).tags.get(MLFLOW_MODEL_VERSIONS, "[]"))
    if mine not in [{key: str(link.get(key)) for key in mine} for link in links]:
        client.set_logged_model_tags(model_id, {MLFLOW_MODEL_VERSIONS: json.dumps([*links, mine])})


def _uploaded(tracker: Tracker, run_id: str, export: Mapping[str, Any], model: str) -> tuple[str, str]:
    """Return id and checksum of a model with all its files: of an earlier attempt, or uploaded now."""
    uploads = tracker.client.search_logged_models(
        [tracker.experiment_id], f"source_run_id = '{run_id}' AND name = '{model}'"
    )
    for upload in uploads:
        if upload.status == LoggedModelStatus.READY and (checksum := _checksum(tracker, upload.model_id)):
            return upload.model_id, checksum
    model_id = _upload(run_id, export, model)
    if not (checksum := _checksum(tracker, model_id)):
        raise TrackingError("registry: the store does not return the files of the model that it accepted")
    return model_id, checksum


def _checksum(tracker: Tracker, model_id: str) -> str:
    """Return the checksum of the files of a model as the store gives them; "" if they are gone."""
    location = tracker.client.get_logged_model(model_id).artifact_location
    listed = mlflow.artifacts.list_artifacts(location, tracking_uri=tracker.uri)
    if MLMODEL_FILE_NAME not in [Path(file.path).name for file in listed]:
        return ""
    with TemporaryDirectory() as folder:
        return digest(fetch(tracker.uri, location, Path(folder)))


class _PyfuncFlavor:
    """`mlflow.pyfunc` without the address of the store in `MLmodel`, which is often a path of one machine."""

    __name__ = mlflow.pyfunc.__name__

    @staticmethod
    def save_model(path: str, mlflow_model: Model, **options: Any) -> None:
        """Save the model in a local folder."""
        mlflow_model.artifact_path = None
        mlflow.pyfunc.save_model(path=path, mlflow_model=mlflow_model, **options)


def _upload(run_id: str, export: Mapping[str, Any], model: str) -> str:
    # The method behind mlflow.pyfunc.log_model; with a run id it does not change status and end of the run.
    options = {"name": model, "artifact_path": None, "flavor": _PyfuncFlavor(), "run_id": run_id, **export}
    try:
        return str(Model.log(**options).model_id)
    except (OSError, SweepError):
        raise
    except Exception as error:  # the clients of artifact stores have no common type
        reason = describe_error(error).rstrip(".")
        if any(frame.name == "save_model" for frame in traceback.extract_tb(error.__traceback__)):
            raise TrackingError(
                "registry: MLflow refuses the model that the trainable exports"
                f" ({reason}); correct its export"
            ) from error
        if isinstance(error, MlflowException):
            raise
        raise TrackingError(
            f"registry: the files of the model cannot be written: {reason}", unreachable=is_away(error)
        ) from error
