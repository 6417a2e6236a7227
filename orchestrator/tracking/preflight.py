"""Checks that MLflow can record at an address, before the job starts."""

import os
import re
import shlex
import sqlite3
import tempfile
from pathlib import Path
from urllib.parse import urlsplit

import mlflow
import requests
from mlflow.exceptions import MlflowException
from requests.utils import get_environ_proxies, select_proxy
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError

from orchestrator.errors import InputError, UnreachableError, quote
from orchestrator.tracking.outbox import cannot_answer, describe_error, is_unreachable

_ANSWER_SECONDS = 5.0


def check(uri: str, experiment: str | None = None, field: str = "tracking.uri") -> None:
    """Check within seconds that runs can be recorded at `uri`, without writing anything.

    Args:
        uri: `sqlite:///file.db`, or the `http(s)://` address of an MLflow server.
        experiment: the experiment of the runs, which must not have been deleted.
        field: where the address was given, for messages.

    Raises:
        InputError: the folder cannot be written, the file is not a database, or the server refuses.
        UnreachableError: the file is locked, or the server does not answer.
    """
    try:
        parts = urlsplit(uri)
    except ValueError as error:
        raise InputError(f"{field}: {quote(uri)} is not a valid address: {error}") from error
    scheme = "" if parts.scheme == "sqlite" and not uri.startswith("sqlite:") else parts.scheme
    if scheme in ("http", "https") and parts.password:
        names = "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
        raise InputError(f"{field}: the address must not hold a password; set {names}")
    if scheme == "sqlite":
        _check_sqlite(uri, experiment, field)
    elif scheme in ("http", "https"):
        _check_server(uri.rstrip("/"), experiment, field)
    else:
        raise InputError(
            f"{field}: {quote(uri)} is neither sqlite:///FILE nor the http(s):// address of an MLflow server"
        )


def ui_command(uri: str) -> str:
    """Return how to see the records at `uri`: the address of a server, or the command that starts one."""
    return uri if uri.startswith("http") else f"mlflow ui --backend-store-uri {shlex.quote(uri)}"


def sqlite_file(uri: str, field: str = "tracking.uri") -> Path:
    """Return the file of an SQLite address; raises InputError when it names none."""
    try:
        database = make_url(uri).database
    except ArgumentError:
        database = None
    if not database or database == ":memory:":
        raise InputError(f"{field}: {uri!r} names no file; write sqlite:///folder/mlflow.db")
    if database.startswith("~/"):
        raise InputError(
            f"{field}: ~ is not replaced in {uri!r}; write sqlite:///{Path(database).expanduser()}"
        )
    return Path(database).absolute()


def present_address(recorded: str, present: str) -> str:
    """Return the address of a store: the one in a record, unless that names a file that is gone.

    Args:
        recorded: the address in the record.
        present: the address in the file of the job.
    """
    is_gone = recorded.startswith("sqlite") and not sqlite_file(recorded).exists()
    return present if is_gone else recorded


def deleted_experiment(uri: str, name: str, number: object) -> InputError:
    """Return the error for an experiment that was deleted; ``number`` is its id."""
    return InputError(
        f"tracking.experiment: {name!r} was deleted at {uri}; restore it "
        f"(`mlflow experiments restore --experiment-id {number}`) or choose another name"
    )


def _check_sqlite(uri: str, experiment: str | None, field: str) -> None:
    file = sqlite_file(uri, field)
    folder = file.parent
    try:
        while not folder.exists() and folder != folder.parent:
            folder = folder.parent
        with tempfile.TemporaryFile(dir=folder):  # it has no name, so nothing remains
            pass
    except OSError as error:
        raise InputError(f"{field}: cannot write in {folder}: {error.strerror}") from None
    if not file.exists():
        if escape := re.search("%[0-9A-Fa-f]{2}", str(file)):
            raise InputError(
                f"{field}: MLflow cannot load models from a path with {escape[0]!r}, as in {file}; choose "
                "another folder"
            )
        return
    if not file.is_file() or not os.access(file, os.W_OK):
        raise InputError(f"{field}: {file} is not a file that can be written")
    with file.open("rb") as content:  # SQLite treats any file below 512 bytes as an empty database
        if content.read(16) not in (b"", b"SQLite format 3\0"):
            raise InputError(f"{field}: {file} is not an SQLite database; name another file")
    try:
        connection = sqlite3.connect(f"{file.as_uri()}?mode=ro", uri=True, timeout=_ANSWER_SECONDS)
        try:
            tables = connection.execute("SELECT name FROM sqlite_master").fetchall()
            if experiment is not None and ("experiments",) in tables:
                which = "name = ? AND lifecycle_stage = 'deleted'"
                query = f"SELECT experiment_id FROM experiments WHERE {which}"
                for (number,) in connection.execute(query, (experiment,)):
                    raise deleted_experiment(uri, experiment, number)
        finally:
            connection.close()
    except sqlite3.Error as error:
        name = getattr(error, "sqlite_errorname", "")
        if name == "SQLITE_READONLY_ROLLBACK":
            return  # a driver died while it wrote; who opens the file next rolls that back
        if name.startswith("SQLITE_BUSY"):
            raise UnreachableError(f"{field}: {file} is locked: another process writes to it") from None
        raise InputError(f"{field}: {file} is not a usable SQLite database: {error}") from None


def _through_proxy(uri: str) -> str:
    """Return the proxy through which a server is asked, without its login; "" for none."""
    proxy = select_proxy(uri, get_environ_proxies(uri, no_proxy=None))
    if not proxy:
        return ""
    where = urlsplit(proxy if "//" in proxy else f"//{proxy}").netloc.rpartition("@")[2]
    return f", asked through the proxy {where} (HTTP_PROXY, NO_PROXY),"


def _check_server(uri: str, experiment: str | None, field: str) -> None:
    start = f"{field}: the MLflow server at {uri}{_through_proxy(uri)}"
    try:
        health = requests.get(f"{uri}/health", timeout=_ANSWER_SECONDS)
    except requests.RequestException as error:
        raise UnreachableError(
            f"{start} does not answer: {describe_error(error)}; is `mlflow server` running?"
        ) from None
    if cannot_answer(health.status_code):
        raise UnreachableError(f"{start} answers {health.status_code} {health.reason}")
    if health.status_code not in (200, 401, 403):
        raise InputError(
            f"{start} answers {health.status_code} {health.reason} to /health; is it an MLflow server?"
        )
    # /health requires neither a login nor an allowed host name; this request requires both.
    try:
        client = mlflow.MlflowClient(uri)
        client.search_experiments(max_results=1)
        found = client.get_experiment_by_name(experiment) if experiment is not None else None
    except MlflowException as error:
        status = error.get_http_status_code()
        why = describe_error(error)
        if status == 401 or "401" in why:
            names = "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"
            why = f"login required or refused (401): set {names}"
        elif status == 403 or "403" in why:
            why = "access refused (403): no permission, or its --allowed-hosts lacks this host name"
        raise (UnreachableError if is_unreachable(error) else InputError)(f"{start}: {why}") from None
    if found is not None and found.lifecycle_stage != "active":
        raise deleted_experiment(uri, found.name, found.experiment_id)
