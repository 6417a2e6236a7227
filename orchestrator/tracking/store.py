"""Open an MLflow store, and find or create an experiment in it."""

import functools
import logging
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import mlflow
from filelock import FileLock
from mlflow.exceptions import MlflowException

from orchestrator.tracking.preflight import deleted_experiment, sqlite_file

_READS = ("_", "get_", "search_", "list_", "load_", "download_", "tracking_uri")
"""Beginnings of the names of methods and attributes that write nothing."""


class CheckedClient(mlflow.MlflowClient):
    """A client that calls a function before each request that writes; what it raises prevents the request."""

    def __init__(self, uri: str, check: Callable[[], None]) -> None:
        super().__init__(uri, registry_uri=uri)
        self._check = check

    def __getattribute__(self, name: str) -> Any:
        attribute = super().__getattribute__(name)
        if name.startswith(_READS):
            return attribute

        @functools.wraps(attribute)
        def checked(*arguments: Any, **options: Any) -> Any:
            self._check()
            return attribute(*arguments, **options)

        return checked


def open_experiment(uri: str, name: str, check: Callable[[], None]) -> tuple[CheckedClient, str]:
    """Return a client of the store and the id of the experiment.

    Raises:
        LeaseLostError: ``check`` raised it.
        InputError: the experiment was deleted.
        MlflowException, SQLAlchemyError, OSError: the store cannot be opened.
    """
    with _exclusive(uri):
        client = CheckedClient(uri, check)
        experiment = client.get_experiment_by_name(name)
        if experiment is None:
            try:
                return client, client.create_experiment(name, artifact_location=_artifacts(uri, name))
            except MlflowException as error:  # another sweep may have been faster
                experiment = client.get_experiment_by_name(name)
                if error.error_code != "RESOURCE_ALREADY_EXISTS" or experiment is None:
                    raise
    if experiment.lifecycle_stage != "active":
        raise deleted_experiment(uri, name, experiment.experiment_id)
    return client, experiment.experiment_id


def quiet_mlflow() -> None:
    """Silence what MLflow and Alembic log at each start about migrations and monitors; warnings stay."""
    for name in ("alembic", "mlflow"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # The monitor of system metrics, and an error of the database with its traceback: the outbox reports that
    # nothing is recorded. And pages about a missing Git: `provenance` records the commit where there is one.
    for name in ("mlflow.system_metrics", "mlflow.store.db.utils", "mlflow.utils.git_utils"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


@contextmanager
def _exclusive(uri: str) -> Iterator[None]:
    """Lock a database file against other sweeps while MLflow creates its tables without a lock."""
    if not uri.startswith("sqlite"):
        yield
        return
    file = sqlite_file(uri)
    file.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(file.with_name(f".{file.name}.lock")):
        if not file.exists():
            file.touch()  # SQLite would not let a group write, whatever the umask
        yield


def remove_escaped_folder(uri: str) -> None:
    """Remove the empty folder that MLflow creates where the path of a database has escapes in its address."""
    if uri.startswith("sqlite"):
        escaped = Path(uri.removeprefix("sqlite:///")).parent
        if escaped != sqlite_file(uri).parent:
            with suppress(OSError):
                escaped.rmdir()


def _artifacts(uri: str, experiment: str) -> str | None:
    """Return a folder beside the database; MLflow's default is the working directory."""
    if not uri.startswith("sqlite"):
        return None
    folder = re.sub(r"[^\w-]+", "_", experiment)[:100]  # runs have folders of their own in it
    return (sqlite_file(uri).parent / "artifacts" / folder).as_uri()
