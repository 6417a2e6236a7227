"""The files of registered versions: their checksum, and downloads that are compared with it."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import mlflow
from mlflow.artifacts import download_artifacts
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from orchestrator.errors import InputError

DIGEST_TAG = "digest"
"""Tag of a version with the checksum of its files."""

_ADDED = frozenset({"registered_model_meta"})
"""Files that MLflow adds to a download; they are no part of the model."""

_CHUNK_BYTES = 1 << 20


def digest(folder: Path) -> str:
    """Return ``sha256:...`` of the lines ``<sha256>  <path>`` of all files in a folder, sorted by path."""
    lines = "".join(f"{_sha256(folder / name)}  {name}\n" for name in sorted(_names(folder)))
    return f"sha256:{hashlib.sha256(lines.encode()).hexdigest()}"


def download(uri: str, version: ModelVersion, folder: Path) -> Path:
    """Download the files of a version below a folder, and compare them with its checksum, if it has one.

    Returns:
        The folder of the model.

    Raises:
        InputError: they are not the files that were registered.
        MlflowException: the store does not answer, or the version was deleted.
    """
    source = client_of(uri).get_model_version_download_uri(version.name, version.version)
    try:
        model = fetch(uri, source, folder)
    except (MlflowException, OSError) as error:
        if "No such artifact" not in str(error):
            raise
        raise InputError(
            f"{version.name}: the files of version {version.version} are no longer at {source}; restore them"
        ) from error
    expected = version.tags.get(DIGEST_TAG)
    if expected is not None and (found := digest(model)) != expected:
        raise InputError(
            f"{version.name}: the files of version {version.version} are not those that were registered:"
            f" {found} instead of {expected}; do not use them"
        )
    return model


def fetch(uri: str, source: str, folder: Path) -> Path:
    """Download the files at an address of an artifact store, as the MLflow at ``uri`` gives it.

    MLflow resolves ``models:/NAME/VERSION`` in the store of the process, whatever store it is told.
    """
    return Path(
        download_artifacts(artifact_uri=source, dst_path=str(folder), tracking_uri=uri, registry_uri=uri)
    )


def client_of(uri: str) -> mlflow.MlflowClient:
    """Return a client of the store at an address, for runs and models alike."""
    return mlflow.MlflowClient(uri, registry_uri=uri)


def _names(folder: Path) -> Iterator[str]:
    for file in folder.rglob("*"):
        if file.is_file() and file.name not in _ADDED:
            yield file.relative_to(folder).as_posix()


def _sha256(file: Path) -> str:
    found = hashlib.sha256()
    with file.open("rb") as content:
        while chunk := content.read(_CHUNK_BYTES):
            found.update(chunk)
    return found.hexdigest()
