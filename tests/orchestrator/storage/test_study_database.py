"""The study of a job: read without its driver, and what an error says about its database."""

import errno
import socket
import sqlite3
from pathlib import Path
from typing import Any

import optuna
import pytest
import sqlalchemy
from optuna.exceptions import StorageInternalError
from sqlalchemy import exc

from orchestrator.errors import StorageError
from orchestrator.storage import study_database
from orchestrator.storage.local import LocalStore
from orchestrator.storage.study_database import (
    DatabaseProblem,
    Problem,
    database_problem,
    explained_damage,
    open_study,
)


def postgresql(kind: type[exc.DBAPIError], code: str | None, text: str) -> exc.DBAPIError:
    """Return an error of SQLAlchemy around one of psycopg2, which sets ``pgcode`` in C."""

    class Error(Exception):
        pgcode = code

    return kind("SELECT 1", {}, Error(text))


def sqlite(kind: type[exc.DBAPIError], text: str) -> exc.DBAPIError:
    return kind("SELECT 1", {}, sqlite3.DatabaseError(text))


def caused_by(cause: BaseException) -> StorageInternalError:
    try:
        raise StorageInternalError("An exception is raised during the commit.") from cause
    except StorageInternalError as error:
        return error


@pytest.mark.parametrize(
    ("kind", "code", "text"),
    [
        (exc.InternalError, "XX001", "invalid page in block 0 of relation base/16384/16400"),
        (exc.InternalError, "XX002", 'index "ix_trials_study_id" contains unexpected zero page'),
        (exc.ProgrammingError, "42P01", 'relation "trials" does not exist'),
        (exc.ProgrammingError, "42703", 'column "state" does not exist'),
        (exc.OperationalError, "58P01", 'could not open file "base/16384/16400": No such file'),
    ],
)
def test_problem_of_a_damaged_postgresql_is_damage(kind: type[exc.DBAPIError], code: str, text: str) -> None:
    assert database_problem(postgresql(kind, code, text)) == DatabaseProblem(Problem.DAMAGED, text)


@pytest.mark.parametrize(
    ("kind", "code", "text"),
    [
        (exc.OperationalError, None, "connection to server at 127.0.0.1 failed: Connection refused"),
        (exc.OperationalError, "57P01", "terminating connection due to administrator command"),
        (exc.OperationalError, "57P03", "the database system is starting up"),
        (exc.DatabaseError, None, "error with status PGRES_TUPLES_OK and no message from the libpq"),
    ],
)
def test_problem_of_a_silent_postgresql_is_unreachable(
    kind: type[exc.DBAPIError], code: str | None, text: str
) -> None:
    assert database_problem(postgresql(kind, code, text)) == DatabaseProblem(Problem.UNREACHABLE, text)


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        (exc.DatabaseError, "file is not a database"),
        (exc.DatabaseError, "database disk image is malformed"),
        (exc.OperationalError, "no such table: studies"),
        (exc.OperationalError, "no such column: trials.state"),
        (exc.OperationalError, "disk I/O error"),
        (exc.OperationalError, "malformed database schema (trials)"),
    ],
)
def test_problem_of_a_damaged_sqlite_file_is_damage(kind: type[exc.DBAPIError], text: str) -> None:
    assert database_problem(sqlite(kind, text)) == DatabaseProblem(Problem.DAMAGED, text)


def test_problem_of_a_locked_sqlite_file_is_unreachable() -> None:
    error = sqlite(exc.OperationalError, "database is locked")
    assert database_problem(error) == DatabaseProblem(Problem.UNREACHABLE, "database is locked")


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        sqlite(exc.OperationalError, "database or disk is full"),
        postgresql(exc.OperationalError, "53100", "could not extend file: No space left on device"),
    ],
)
def test_problem_of_a_full_disk_is_full(error: BaseException) -> None:
    problem = database_problem(error)
    assert problem is not None and problem.kind is Problem.FULL


def test_problem_behind_an_error_of_optuna_is_seen() -> None:
    error = caused_by(postgresql(exc.InternalError, "XX001", "invalid page"))
    assert database_problem(error) == DatabaseProblem(Problem.DAMAGED, "invalid page")


def test_problem_of_a_replaced_database_is_told() -> None:
    storage = optuna.storages.RDBStorage("sqlite://")
    with pytest.raises(KeyError) as raised:
        storage.set_trial_user_attr(7, "key", 1)
    problem = database_problem(raised.value)
    assert problem is not None and problem.message == "a recorded trial is gone; was its file replaced?"
    assert database_problem(KeyError("key")) is None


@pytest.mark.parametrize(
    ("kind", "code", "text"),
    [
        (exc.InternalError, "25006", "cannot execute INSERT in a read-only transaction"),
        (exc.ProgrammingError, "42501", "permission denied for table trials"),
    ],
)
def test_change_that_postgresql_refuses_is_told(kind: type[exc.DBAPIError], code: str, text: str) -> None:
    error = caused_by(postgresql(kind, code, text))
    assert database_problem(error) == DatabaseProblem(Problem.REFUSED, text)


def test_path_that_the_locale_cannot_express_is_no_damage() -> None:
    with pytest.raises(StorageError) as caught, explained_damage("/caf\udcc3\udca9/study.db"):
        "\udcc3".encode()
    assert str(caught.value).endswith(": set a locale of UTF-8, such as C.UTF-8")


def test_problem_message_is_one_line() -> None:
    problem = database_problem(sqlite(exc.OperationalError, "no such table: a\n  more\n" + "x" * 400))
    assert problem is not None
    assert "\n" not in problem.message and len(problem.message) == 200


@pytest.mark.parametrize(
    "error",
    [
        None,
        ValueError("malformed"),
        OSError(errno.ENOENT, "no such file"),
        postgresql(exc.IntegrityError, "23505", "duplicate key"),
        caused_by(ValueError("of a trainable")),
    ],
)
def test_error_of_another_kind_is_no_database_problem(error: Any) -> None:
    assert database_problem(error) is None


@pytest.fixture
def database(tmp_path: Path) -> Path:
    """The SQLite file of a study with one trial."""
    (tmp_path / "job").mkdir()
    study = optuna.create_study(study_name="job", storage=LocalStore(tmp_path).study_storage("job"))
    study.add_trial(optuna.trial.create_trial(value=0.5))
    return tmp_path / "job" / "study.db"


def read_trials(store: LocalStore, name: str, resolved: dict[str, Any]) -> list[optuna.trial.FrozenTrial]:
    with open_study(store, name, resolved) as study:
        return [] if study is None else study.read_trials(())


def trials(database: Path) -> list[optuna.trial.FrozenTrial]:
    return read_trials(LocalStore(database.parent.parent), "job", {"name": "job"})


def test_trials_of_a_study_are_read(database: Path) -> None:
    assert [trial.values for trial in trials(database)] == [[0.5]]


def test_trials_without_a_study_are_none(tmp_path: Path) -> None:
    assert read_trials(LocalStore(tmp_path), "job", {"name": "job"}) == []


def test_trials_of_a_study_that_is_being_created_are_none(tmp_path: Path) -> None:
    (tmp_path / "job").mkdir()
    sqlite3.connect(tmp_path / "job/study.db").execute("CREATE TABLE studies (study_id INTEGER)").close()
    assert read_trials(LocalStore(tmp_path), "job", {"name": "job"}) == []


def test_trials_of_another_study_in_the_database_are_none(database: Path) -> None:
    assert read_trials(LocalStore(database.parent.parent), "job", {"name": "other"}) == []


def test_trials_of_a_damaged_file_are_refused_in_one_line(database: Path) -> None:
    database.write_bytes(b"not a database" * 500)
    with pytest.raises(StorageError) as refusal:
        trials(database)
    assert str(refusal.value) == f"study: {database} cannot be read: file is not a database"


def test_trials_of_a_study_without_a_table_are_refused(database: Path) -> None:
    engine = sqlalchemy.create_engine(f"sqlite:///{database}")
    with engine.begin() as connection:
        connection.execute(sqlalchemy.text("DROP TABLE trial_values"))
    engine.dispose()
    with pytest.raises(StorageError, match=r"cannot be read: no such table: trial_values$"):
        trials(database)


def test_trials_in_an_unreachable_database_are_refused(tmp_path: Path) -> None:
    resolved = {"name": "job", "study": "postgresql+psycopg2://sweep@127.0.0.1:1/sweep"}
    with pytest.raises(StorageError, match=r"^study: postgresql.* cannot be read: .*Connection refused"):
        read_trials(LocalStore(tmp_path), "job", resolved)


def test_trials_in_a_frozen_database_are_refused_soon(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(study_database, "_ANSWER_SECONDS", 2)
    with socket.create_server(("127.0.0.1", 0)) as server:  # the kernel accepts, and nobody answers
        address = f"postgresql+psycopg2://optuna@127.0.0.1:{server.getsockname()[1]}/optuna"
        with (
            pytest.raises(StorageError, match=r"cannot be read: .*timeout expired") as raised,
            open_study(LocalStore(tmp_path), "alignment", {"study": address}),
        ):
            pass
    assert raised.value.unreachable


def test_write_that_the_file_system_refuses_is_not_damage() -> None:
    error = sqlite(exc.OperationalError, "disk I/O error")
    assert error.orig is not None
    error.orig.sqlite_errorname = "SQLITE_IOERR_WRITE"  # type: ignore[attr-defined]
    problem = database_problem(error)
    assert problem is not None and problem.kind is Problem.FULL and "quota" in problem.message
