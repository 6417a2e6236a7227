"""Promotion: which version of a registered model an alias points to, and the record of the decision."""

import time
from collections.abc import Mapping
from typing import Any

import mlflow
from mlflow.entities.model_registry import ModelVersion

SCHEMA_TAG = "schema"
"""Tag of a version with the version of its tags. A version without it has schema 1, with the same tags."""

SCHEMA = 2

SCORE_TAG = "score."
"""Prefix of the tags of a version with its scores on the targets."""

DATA_TAG = "data."
"""Prefix of the tags of a version with the digest of each data set."""

DECISION_TAG = "decision"
"""Tag of a version, written after its alias has moved: the registration is complete."""


def decide(candidate: Mapping[str, Any], champion: Mapping[str, Any] | None) -> dict[str, Any]:
    """Decide whether the alias moves from `champion` to `candidate`, and return the decision with its reason.

    A promotion gate belongs here. There is no gate yet: the best model of the latest sweep is
    promoted, and the difference from the former champion is recorded if both were scored on the same data.

    Args:
        candidate: ``scores`` by metric, and ``data``: digests by data set.
        champion: the same for the version that has the alias; None when there is none.
    """
    decision: dict[str, Any] = {"candidate": dict(candidate), "champion": champion and dict(champion)}
    if champion is not None and candidate["data"] and candidate["data"] == champion["data"]:
        new, old = candidate["scores"], champion["scores"]
        decision["difference"] = {metric: new[metric] - old[metric] for metric in new if metric in old}
    reason = "no gate is set" if champion else "first version under this alias"
    return decision | {"comparable": "difference" in decision, "promoted": True, "reason": reason}


def promote(
    client: mlflow.MlflowClient, version: ModelVersion, alias: str, run_id: str, record: Mapping[str, Any]
) -> None:
    """Decide whether `alias` moves to `version`, log the decision to the run, and move the alias last."""
    current = client.get_registered_model(version.name).aliases.get(alias)
    promoted = True
    if str(current) != str(version.version):  # else an earlier attempt moved the alias already
        champion = current and summarise(client.get_model_version(version.name, str(current)))
        decision = decide(summarise(version), champion)
        promoted = decision["promoted"]
        decided = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        decision |= {"schema": SCHEMA, "alias": alias, "decided": decided, "record": dict(record)}
        client.log_dict(run_id, decision, f"registry/{version.name}-v{version.version}.json")
        if promoted:
            client.set_registered_model_alias(version.name, alias, version.version)
    client.set_model_version_tag(
        version.name, version.version, DECISION_TAG, "promoted" if promoted else "declined"
    )


def summarise(version: ModelVersion) -> dict[str, Any]:
    """Return sweep, trial, scores and data of a version from its tags."""
    tags = dict(sorted(version.tags.items()))
    return {
        "version": int(version.version),
        "sweep": tags.get("sweep.id"),
        "trial": tags.get("trial.number"),
        "scores": {metric: float(text) for metric, text in _with_prefix(tags, SCORE_TAG).items()},
        "data": _with_prefix(tags, DATA_TAG),
    }


def _with_prefix(tags: Mapping[str, str], prefix: str) -> dict[str, str]:
    return {key.removeprefix(prefix): text for key, text in tags.items() if key.startswith(prefix)}
