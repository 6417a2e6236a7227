"""What a version is judged by, kept as a file of its run so that later versions can be compared with it."""

import json
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import mlflow
from mlflow.entities.model_registry import ModelVersion
from pydantic import BaseModel, ConfigDict, ValidationError

from orchestrator.errors import TrackingError, newer_schema
from orchestrator.tracking.gate import Entrant, Rule, TargetResults
from orchestrator.trainable import Comparable, Trainable

FILE = "registry/results.json"
"""Artifact of the run of a version."""

SCHEMA = 1

SCORE_TAG = "score."
"""Prefix of the tags with scores, of versions of 0.1.0 and early 0.2.0, which have no file."""

DATA_TAG = "data."
"""Prefix of the tags of a version with the digest of each data set."""

TRAINABLE_TAG = "trainable"
"""Tag of a version with the dotted path of its trainable: only versions of one family are compared."""


class Evidence(BaseModel):
    """How a version can be compared: its results, and what scores others in the same way."""

    model_config = ConfigDict(frozen=True)

    trainable: str
    config: dict[str, Any]
    rule: Rule | None = None
    scores: dict[str, float] = {}
    data: dict[str, str] = {}
    results: dict[str, TargetResults] | None = None
    trained_on: dict[str, list[str]] | None = None
    tested_on: dict[str, dict[str, list[str]]] = {}

    @property
    def metrics(self) -> set[str]:
        """The metrics of the targets, by which versions can be compared."""
        of_scores = {name.split("/", 2)[2] for name in self.scores if name.count("/") >= 2}
        return of_scores.union(*(each.metrics for each in (self.results or {}).values()))

    def entrant(self, name: str) -> Entrant:
        """Return what the gate compares, under the name that sentences use."""
        return Entrant(
            name=name,
            scores=self.scores,
            data=self.data,
            results=self.results,
            trained_on=self.trained_on,
            tested_on=self.tested_on,
        )


def gather(
    trainable: str,
    implementation: Trainable,
    config: BaseModel,
    checkpoint: Path,
    *,
    rule: Rule | None,
    scores: Mapping[str, float],
    data: Mapping[str, str],
) -> Evidence:
    """Return the evidence of a checkpoint that was scored; see `orchestrator.trainable.Comparable`."""
    found = Evidence(
        trainable=trainable,
        config=config.model_dump(mode="json", by_alias=True),
        rule=rule,
        scores=dict(scores),
        data=dict(data),
    )
    if not isinstance(implementation, Comparable):
        return found
    return found.model_copy(
        update={
            "results": copied(implementation.query_results(config, checkpoint)),
            "trained_on": _lists(implementation.trained_on(config)),
            "tested_on": {name: _lists(each) for name, each in implementation.tested_on(config).items()},
        }
    )


def copied(results: Mapping[str, Any]) -> dict[str, TargetResults]:
    """Return the results that a trainable gives for each target, in the form that is kept."""
    return {target: TargetResults.of(each) for target, each in results.items()}


def write(client: mlflow.MlflowClient, run_id: str, evidence: Evidence) -> None:
    """Keep the evidence of a version in its run; raises MlflowException."""
    content = {"schema": SCHEMA, **evidence.model_dump(mode="json")}
    client.log_text(run_id, json.dumps(content, separators=(",", ":")), FILE)


def read(client: mlflow.MlflowClient, version: ModelVersion) -> Evidence:
    """Return the evidence of a version; of one without the file, what its tags say.

    Raises:
        MlflowException: the store does not answer.
        TrackingError: a later version of this project wrote the file, or it is damaged.
    """
    if version.run_id and FILE in {file.path for file in client.list_artifacts(version.run_id, "registry")}:
        with TemporaryDirectory() as folder:
            text = Path(client.download_artifacts(version.run_id, FILE, folder)).read_text(encoding="utf-8")
        try:
            content = json.loads(text)
            if (schema := int(content.pop("schema"))) > SCHEMA:
                where = f"registry: {FILE} of version {version.version} of {version.name}"
                raise TrackingError(newer_schema(where, schema, SCHEMA))
            return Evidence.model_validate(content)
        except (ValueError, KeyError, TypeError, ValidationError) as error:
            raise TrackingError(
                f"registry: {FILE} of version {version.version} of {version.name} is damaged"
            ) from error
    tags = dict(version.tags)
    return Evidence(
        trainable=tags.get(TRAINABLE_TAG, ""),
        config={},
        scores={name: float(text) for name, text in with_prefix(tags, SCORE_TAG).items()},
        data=with_prefix(tags, DATA_TAG),
    )


def with_prefix(tags: Mapping[str, str], prefix: str) -> dict[str, str]:
    """Return the tags that begin with a prefix, without it."""
    return {key.removeprefix(prefix): text for key, text in sorted(tags.items()) if key.startswith(prefix)}


def _lists(names: Mapping[str, Any]) -> dict[str, list[str]]:
    return {numbering: [str(name) for name in each] for numbering, each in names.items()}
