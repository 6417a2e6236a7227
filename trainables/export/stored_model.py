"""Exported models as users have them: in a registry, or in a folder that was downloaded from one."""

import hashlib
import logging
import os
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import requests
from mlflow.environment_variables import MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR
from mlflow.exceptions import MlflowException
from mlflow.models import Model
from numpy.typing import NDArray
from urllib3.exceptions import NameResolutionError

from trainables.errors import DataError, UnreachableError, did_you_mean, one_line
from trainables.export.export import FAMILY, UNCALIBRATED
from trainables.network.embedder import NetworkConfig

_ANSWER_SECONDS = 10.0
_REFERENCE = re.compile(r"(?:models:/)?(?P<name>[^/@]+)(?:@(?P<alias>[^/@]+)|/(?P<version>\d+))")

EXPECTED = "expected NAME@ALIAS or NAME/VERSION of the registry, or the folder of a downloaded model"

_DEFAULT_STORE = "~/reid-sweeps/mlflow.db"
"""Where sweeps on this machine record, unless they are told otherwise."""


class StoredModel:
    """A model that MLflow has loaded, and what it tells about itself.

    Attributes:
        uri: address to load it again: ``models:/NAME/VERSION``, or a folder.
        name: name in the registry, or of the folder.
        version: version in the registry; None for a folder.
        checksum: hash of what determines a feature.
        dimension: length of a feature.
        height: height of the network's input in pixels.
        width: width of the network's input in pixels.
        calibration: JSON form of `trainables.evaluation.calibration.Calibration`.
    """

    def __init__(self, folder: Path, uri: str, name: str, version: str | None) -> None:
        """Load the model in ``folder``, which holds its ``MLmodel``.

        Raises:
            DataError: it cannot be loaded, or is not a model of this project.
        """
        self.uri, self.name, self.version = uri, name, version
        try:
            facts = Model.load(str(folder)).metadata or {}
            self._first_release = not facts and (folder / "artifacts/network.json").is_file()
            if facts.get("family") != FAMILY and not self._first_release:
                raise DataError(f"{uri}: not a model of this project; expected one that a sweep registered")
            self._model = mlflow.pyfunc.load_model(str(folder))
            if self._first_release:
                facts = _facts_of_first_release(folder / "artifacts")
            self.checksum: str = facts["checksum"]
            self.dimension: int = facts["dimension"]
            self.height: int = facts["height"]
            self.width: int = facts["width"]
            self.calibration: Mapping[str, Any] = facts["calibration"]
        except DataError:
            raise
        except (MlflowException, OSError, ImportError, RuntimeError, ValueError) as error:
            raise DataError(f"{uri}: cannot be loaded ({_describe(error)})") from error
        except Exception as error:  # damaged files make YAML, safetensors and MLflow raise many kinds
            raise DataError(f"{uri}: is damaged: {type(error).__name__}: {_describe(error)}") from error

    def embed(self, sequences: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
        """Map sequences, uint8 RGB ``[time, height, width, 3]`` each, to features ``[batch, dimension]``."""
        if self._first_release:  # which takes sequences of one length only
            parts = [self._model.predict(sequence[None]) for sequence in sequences]
            return np.concatenate(parts)
        features: NDArray[np.float32] = self._model.predict(list(sequences))
        return features


@contextmanager
def open_model(uri: str, tracking: str | None = None) -> Iterator[StoredModel]:
    """Load a model from a registry or a folder.

    Args:
        uri: ``NAME@ALIAS`` or ``NAME/VERSION``, both also after ``models:/``, or a folder.
        tracking: address of MLflow; by default ``MLFLOW_TRACKING_URI``, else ``~/reid-sweeps/mlflow.db``.

    Raises:
        DataError: there is no such model, or it cannot be loaded. The message is one line.
        UnreachableError: the server does not answer.
    """
    MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR.set(False)
    folder = Path(uri).expanduser().absolute()
    reference = _REFERENCE.fullmatch(uri)
    if folder.exists() or reference is None:
        if not (folder / "MLmodel").is_file():
            reason = "no file MLmodel in it" if folder.exists() else "no such model or folder"
            raise DataError(f"{uri}: {reason}; {EXPECTED}")
        yield StoredModel(folder, str(folder), folder.name, None)
        return
    name, version = _find_version(uri, reference, tracking)
    exact = f"models:/{name}/{version}"
    with tempfile.TemporaryDirectory(prefix="model-") as folder_name:
        try:
            # Under the address `exact`, MLflow would write a note into a local store, which may be read-only.
            source = mlflow.MlflowClient().get_model_version_download_uri(name, version)
            local = source.startswith("file:") or Path(source).is_dir()
            destination = None if local else folder_name
            folder = Path(mlflow.artifacts.download_artifacts(source, dst_path=destination))
        except (MlflowException, OSError) as error:
            raise DataError(f"{exact}: cannot be downloaded ({_describe(error)})") from error
        yield StoredModel(folder, exact, name, version)


def _find_version(uri: str, match: re.Match[str], tracking: str | None) -> tuple[str, str]:
    """Return name and version of a model in the registry; ``match`` is that of `_REFERENCE`."""
    _use_tracking(tracking)
    client, name = mlflow.MlflowClient(), match["name"]
    try:
        if match["version"]:
            return name, str(client.get_model_version(name, match["version"]).version)
        return name, str(client.get_model_version_by_alias(name, match["alias"]).version)
    except MlflowException as error:
        raise DataError(f"{uri}: {_explain(client, match, error)}") from error


def _use_tracking(tracking: str | None) -> None:
    """Use an MLflow server or database, which must exist: MLflow would create a database."""
    default = f"sqlite:///{Path(_DEFAULT_STORE).expanduser()}"
    address = tracking or os.environ.get("MLFLOW_TRACKING_URI") or default
    if not re.match(r"([hH][tT][tT][pP][sS]?://|sqlite:///)", address):
        raise DataError(
            f"--tracking: {_without_password(address)!r} is neither sqlite:///FILE nor the http(s):// address"
            " of an MLflow server"
        )
    file = re.fullmatch(r"sqlite:///(.+)", address)
    if file is not None and not Path(file[1]).is_file():
        raise DataError(
            f"no MLflow database {file[1]}; give --tracking or MLFLOW_TRACKING_URI, which the summary of a"
            " sweep prints"
        )
    if file is None:
        _check_answer(address)
    # A user waits, and gets one line.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
    logging.getLogger("urllib3").setLevel(logging.ERROR)
    mlflow.set_tracking_uri(address)
    mlflow.set_registry_uri(address)


def _check_answer(address: str) -> None:
    """Check that a server answers at all; raises UnreachableError."""
    try:
        requests.get(address, timeout=_ANSWER_SECONDS, stream=True).close()
    except requests.RequestException as error:
        raise UnreachableError(
            f"--tracking: the MLflow server at {_without_password(address)} does not answer:"
            f" {_why_no_answer(error)}; is 'mlflow server' running?"
        ) from error


def _why_no_answer(error: requests.RequestException) -> str:
    """Return the reason of a request that failed, which `requests` and urllib3 wrap."""
    if isinstance(error, requests.Timeout):
        return "no answer in time"
    reason: Any = error
    while reason is not None:
        if isinstance(reason, NameResolutionError):
            return "host name not known"
        if isinstance(reason, OSError) and reason.strerror:  # also of TLS
            return str(reason.strerror[:1].lower() + reason.strerror[1:])
        inner = [argument for argument in reason.args if isinstance(argument, BaseException)]
        reason = getattr(reason, "reason", None) or reason.__cause__ or (inner[0] if inner else None)
    return _describe(error)


def _explain(client: mlflow.MlflowClient, match: re.Match[str], error: MlflowException) -> str:
    """Return why a model was not found, with the nearest valid name."""
    try:
        names = [model.name for model in client.search_registered_models(max_results=1000)]
        if match["name"] not in names:
            present = ", ".join(names[:10]) or "none"
            return f"no such model; {did_you_mean(match['name'], names)}registered models: {present}"
        if match["alias"]:
            aliases = client.get_registered_model(match["name"]).aliases
            hint = did_you_mean(match["alias"], aliases)
            return f"no such alias; {hint}aliases: {', '.join(aliases) or 'none'}"
        versions = client.search_model_versions(f"name = '{match['name']}'")
        numbers = sorted((int(version.version) for version in versions), reverse=True)
        return f"no such version; versions: {', '.join(map(str, numbers[:10])) or 'none'}"
    except MlflowException:
        pass
    return _describe(error)


def _describe(error: Exception) -> str:
    """Return the message of an error as one line, without the password of an address."""
    if answer := re.search(r"failed with error code (\d+) != 200\. Response body: '<", str(error)):  # a page
        return f"the server answers with status {answer[1]}; is it an MLflow server?"
    return _without_password(one_line(error))[:300]


def _without_password(text: str) -> str:
    """Return a text without the logins of its addresses."""
    return re.sub(r"//[^/@\s]*@", "//", text)


def _facts_of_first_release(folder: Path) -> dict[str, Any]:
    """Return the facts of a model of release 0.1.0, which has none of its own."""
    network, weights = (folder / name for name in ("network.json", "weights.safetensors"))
    config = NetworkConfig.model_validate_json(network.read_bytes())
    return {
        "checksum": hashlib.sha256(network.read_bytes() + weights.read_bytes()).hexdigest(),
        "dimension": config.rnn.hidden_size,
        "height": config.height,
        "width": config.width,
        "calibration": UNCALIBRATED,
    }
