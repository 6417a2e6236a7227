"""Data sets, parameters and tags in the form in which MLflow records them."""

import json
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from mlflow.entities import Dataset, DatasetInput, InputTag, RunTag

from orchestrator.config.document import flatten
from orchestrator.errors import plain_text
from orchestrator.tracking import provenance
from orchestrator.trainable import DataSetRecord

SWEEP_TAG = "sweep.name"
"""Tag of a run and of a version with the name of its job."""

_DIGEST_CHARACTERS = 36
"""Length of a data set's digest that MLflow keeps."""

_TAG_CHARACTERS = 5000
"""Length of a tag that every MLflow store keeps."""


def dataset_inputs(records: Iterable[DataSetRecord]) -> list[DatasetInput]:
    """Return one input per data set. MLflow keeps one context for each, so the roles of a set are joined."""
    roles: dict[tuple[str, str], list[str]] = {}
    sets: dict[tuple[str, str], DataSetRecord] = {}
    for record in records:
        key = record.name, record.digest
        sets[key] = record
        roles.setdefault(key, []).append(record.role)
    return [
        DatasetInput(
            _dataset(record), [InputTag("mlflow.data.context", ", ".join(dict.fromkeys(roles[key])))]
        )
        for key, record in sets.items()
    ]


def dataset_digest(record: DataSetRecord) -> str:
    """Return the digest of a data set as MLflow keeps it."""
    return record.digest[:_DIGEST_CHARACTERS]


def _dataset(record: DataSetRecord) -> Dataset:
    folder = Path(record.source)
    kind, source = "code", json.dumps({"tags": {"source": record.source}})
    if folder.is_dir():
        kind, source = "local", json.dumps({"uri": str(folder)})
    return Dataset(
        name=record.name,
        digest=dataset_digest(record),
        source_type=kind,
        source=source,
        profile=json.dumps({**record.counts, "digest": record.digest}),
    )


def run_source() -> dict[str, str]:
    """Return the tags that name the command and the commit of this process."""
    source = {"name": " ".join(Path(part).name for part in sys.argv[:1]), "type": "LOCAL"}
    commit = provenance.git_state(Path(__file__).parent).get("commit")
    source |= {"git.commit": commit} if commit else {}
    return {f"mlflow.source.{key}": text for key, text in source.items()}


def param_texts(params: Mapping[str, Any]) -> dict[str, str]:
    """Return nested parameters as MLflow keeps them: text by dotted path."""
    return {path: plain_text(value) for path, value in flatten(params).items() if value != {}}


def run_tags(tags: Mapping[str, str]) -> list[RunTag]:
    """Return tags as plain text, cut to the length that every store keeps."""
    return [RunTag(key, plain_text(value)[:_TAG_CHARACTERS]) for key, value in tags.items()]
