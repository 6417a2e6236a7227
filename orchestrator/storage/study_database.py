"""The study of a job: opened by its driver, or read by a command without disturbing the driver."""

import logging
import re
import shutil
import sqlite3
import tempfile
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from enum import Enum, auto
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import optuna
import sqlalchemy
from optuna.exceptions import StorageInternalError
from optuna.trial import FrozenTrial
from sqlalchemy.exc import DatabaseError, DBAPIError, InternalError, OperationalError, ProgrammingError

from orchestrator.config.sections import sqlite_address
from orchestrator.errors import (
    InputError,
    StorageError,
    SweepError,
    UnreachableError,
    is_full,
    one_line,
)
from orchestrator.storage import study_tables
from orchestrator.storage.base import Store

# Optuna logs an error of a database, with its SQL, before it raises it.
logging.getLogger("optuna.storages").setLevel(logging.ERROR)


_ANSWER_SECONDS = 5

_REFUSED_TEXTS = ("authentication failed", "no password supplied", "does not exist", "no pg_hba.conf entry")
"""Texts of PostgreSQL 18 and its client for a login that it does not accept. They have no error code."""


def study_storage(store: Store, job: str, database: str = "") -> optuna.storages.BaseStorage:
    """Open the storage of a job's study: a ``database`` address, or beside the job's other files."""
    if database:
        options = {"pool_pre_ping": True, "connect_args": _connect_args(database)}
        return optuna.storages.RDBStorage(database, engine_kwargs=options)
    return store.study_storage(job)


def check_database(database: str) -> None:
    """Check that a database answers and accepts the login.

    Raises:
        UnreachableError: it does not answer.
        InputError: it refuses.
    """
    engine = sqlalchemy.create_engine(database, connect_args=_connect_args(database))
    try:
        engine.connect().close()
    except DBAPIError as error:
        reason = one_line(error.orig, 200)
        if any(text in reason for text in _REFUSED_TEXTS):
            raise InputError(f"study: {database} refuses the login: {reason}") from error
        raise UnreachableError(f"study: {database} does not answer: {reason}") from error
    finally:
        engine.dispose()


def _connect_args(database: str) -> dict[str, int]:
    """Return the limit of the time that a server may take to accept a connection; SQLite has none."""
    return {} if database.startswith("sqlite") else {"connect_timeout": _ANSWER_SECONDS}


def rename_study(database: str, name: str, other: str) -> None:
    """Rename a study of a database, if it exists; raises SQLAlchemyError."""
    engine = sqlalchemy.create_engine(database)
    try:
        with engine.begin() as connection:
            if sqlalchemy.inspect(connection).has_table("studies"):
                statement = sqlalchemy.text("UPDATE studies SET study_name = :other WHERE study_name = :name")
                connection.execute(statement, {"name": name, "other": other})
    finally:
        engine.dispose()


class StudyReader:
    """The trials of a study for a command that shows them."""

    def __init__(self, storage: optuna.storages.BaseStorage, study_id: int) -> None:
        self._storage, self._study_id = storage, study_id

    def read_trials(self, attributes: Collection[str] | None) -> list[FrozenTrial]:
        """Return the trials by number, complete or at least with state, values and these attributes."""
        if isinstance(self._storage, optuna.storages.RDBStorage):
            with self._storage.engine.connect() as connection:
                return study_tables.read_trials(connection, self._study_id, attributes)
        trials: list[FrozenTrial] = self._storage.get_all_trials(self._study_id, deepcopy=False)
        return trials

    def user_attributes(self) -> dict[str, Any]:
        """Return the user attributes of the study."""
        return dict(self._storage.get_study_user_attrs(self._study_id))

    def complete(self, trial: FrozenTrial) -> FrozenTrial:
        """Return one of the trials with everything that the study has about it."""
        whole: FrozenTrial = self._storage.get_trial(trial._trial_id)
        return whole


@contextmanager
def open_study(store: Store, name: str, resolved: Mapping[str, Any]) -> Iterator[StudyReader | None]:
    """Open the study of a job for reading; None where its driver has not created it yet.

    ``resolved`` is the recorded file of the job. Nothing is written, not even to a database whose driver died
    while it wrote.

    Raises:
        StorageError: the study cannot be read.
    """
    database = resolved.get("study", "")
    # The study beside a folder that was renamed keeps its name; one in a database is renamed with it.
    study = name if database else resolved.get("name", name)
    file = store.study_file(name)
    with ExitStack() as stack, explained_damage(database or store.locate(f"{name}/study")):
        if not database and file is None:
            yield _reader(store.study_storage(name), study)
            return
        try:
            if database or file is None:
                yield _open_database(database, study, stack)
            else:
                yield _open_sqlite(file, study, stack) if file.exists() else None
        except (DBAPIError, StorageInternalError, ImportError, OSError, RuntimeError) as error:
            cause = error.__cause__ if isinstance(error, StorageInternalError) else error
            reason = one_line(getattr(cause, "orig", cause), 200)
            problem = database_problem(error)
            raise StorageError(
                f"study: {database or file} cannot be read: {reason}",
                unreachable=bool(database) and problem is not None and problem.kind is Problem.UNREACHABLE,
            ) from error


_BY_DAMAGE = (
    *(ValueError, TypeError, LookupError, AttributeError, ArithmeticError, AssertionError),
    RuntimeError,  # Optuna's, for the table of its version
)
"""What Optuna and SQLAlchemy raise for values that no driver writes."""


@contextmanager
def explained_damage(location: str) -> Iterator[None]:
    """Raise StorageError for what a block raises when it finds values that no driver writes."""
    try:
        yield
    except (InputError, SweepError):
        raise
    except _BY_DAMAGE as error:
        if re.search("[\ud800-\udfff]", location):  # bytes of a path that the locale of this process lacks
            raise StorageError(f"study: {location}: set a locale of UTF-8, such as C.UTF-8") from error
        reason = one_line(f"{type(error).__name__}: {error}", 200)
        raise StorageError(f"study: {location} is damaged ({reason}); restore a copy of it") from error


def _open_sqlite(file: Path, study: str, stack: ExitStack) -> StudyReader | None:
    query = {"mode": "ro", "uri": "true"}
    url = sqlalchemy.URL.create("sqlite", database=f"file:{quote(str(file))}", query=query)
    try:
        return _open_database(url.render_as_string(hide_password=False), study, stack)
    except OperationalError as error:
        if getattr(error.orig, "sqlite_errorname", "") != "SQLITE_READONLY_ROLLBACK":
            raise
    # A driver died while it wrote. A copy is rolled back here; the next driver rolls back the file itself.
    folder = stack.enter_context(tempfile.TemporaryDirectory())
    for part in file.parent.glob(f"{file.name}*"):
        shutil.copy(part, folder)
    return _open_database(sqlite_address(f"{folder}/{file.name}"), study, stack)


def _open_database(url: str, study: str, stack: ExitStack) -> StudyReader | None:
    options = _connect_args(url)
    engine = sqlalchemy.create_engine(url, connect_args=options)
    stack.callback(engine.dispose)
    with engine.connect() as connection:  # Optuna creates its tables one by one, and fills this one last
        last_table = "alembic_version"
        if not sqlalchemy.inspect(connection).has_table(last_table):
            return None
        if not connection.scalar(sqlalchemy.text(f"SELECT count(*) FROM {last_table}")):
            return None
    storage = optuna.storages.RDBStorage(
        url, engine_kwargs={"connect_args": options}, skip_table_creation=True
    )
    stack.callback(storage.engine.dispose)
    return _reader(storage, study)


def _reader(storage: optuna.storages.BaseStorage, study: str) -> StudyReader | None:
    try:
        return StudyReader(storage, storage.get_study_id_from_name(study))
    except KeyError:
        return None


class Problem(Enum):
    """The kinds of problem with the database of a study."""

    DAMAGED = auto()
    FULL = auto()
    REFUSED = auto()
    UNREACHABLE = auto()


class DatabaseProblem(NamedTuple):
    """A problem and the message of the database, in one line."""

    kind: Problem
    message: str


_FULL_TEXTS = ("disk is full", "No space left")
"""Texts of SQLite 3 and PostgreSQL 18 for a full disk; SQLAlchemy passes on no error code for it."""

_REFUSED_WRITES = ("SQLITE_IOERR_WRITE", "SQLITE_IOERR_FSYNC", "SQLITE_IOERR_TRUNCATE")
"""Codes of SQLite 3 for a write that the file system refuses, for example beyond a quota."""

_MISSING_TEXT = "Record does not exist"
"""Text of Optuna 5 for a trial that its database had before."""

_DAMAGED_TEXTS = ("malformed", "not a database", "no such table", "no such column", "disk I/O error")
"""Texts of SQLite 3 for damage that has no separate class of error."""

_DAMAGED_CODES = ("XX", "58P01", "42P01", "42703")
"""SQLSTATE codes of PostgreSQL 18: internal error, corruption, and missing files, tables or columns."""


def database_problem(error: BaseException | None) -> DatabaseProblem | None:
    """Return the problem of a database that an error or one of its causes reports; None if there is none."""
    while error is not None:
        message = one_line(getattr(error, "orig", error), 200)
        if isinstance(error, KeyError) and _MISSING_TEXT in str(error):
            return DatabaseProblem(Problem.UNREACHABLE, "a recorded trial is gone; was its file replaced?")
        if is_full(error) or any(text in str(error) for text in _FULL_TEXTS):
            return DatabaseProblem(Problem.FULL, message)
        if getattr(getattr(error, "orig", None), "sqlite_errorname", "") in _REFUSED_WRITES:
            return DatabaseProblem(
                Problem.FULL, f"{message}: full disk, quota, or limit of the size of a file"
            )
        if isinstance(error, DatabaseError):
            code = str(getattr(error.orig, "pgcode", None) or "")
            # SQLite has no subclass for a damaged file. With psycopg2 the plain class is a broken connection.
            damaged = isinstance(error.orig, sqlite3.Error) and (
                type(error) is DatabaseError or any(text in message for text in _DAMAGED_TEXTS)
            )
            if damaged or code.startswith(_DAMAGED_CODES):
                return DatabaseProblem(Problem.DAMAGED, message)
            if "readonly database" in message:  # what SQLite says of a file that was replaced, too
                message += "; was its file moved, replaced or made read-only?"
            if isinstance(error, OperationalError) or type(error) is DatabaseError:
                return DatabaseProblem(Problem.UNREACHABLE, message)
            if code and isinstance(error, InternalError | ProgrammingError):  # read-only, or not permitted
                return DatabaseProblem(Problem.REFUSED, message)
        error = error.__cause__
    return None
