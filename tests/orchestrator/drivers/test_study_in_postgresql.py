"""A job whose study lies in a real PostgreSQL: damage is told in one line, ``--fresh`` keeps the study."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import optuna
import psycopg2
import pytest

from orchestrator.config.sweep import Sweep
from orchestrator.errors import InputError
from orchestrator.interrupt import Interrupt
from orchestrator.storage.directory import JobDirectory
from orchestrator.storage.lookup import recorded_job
from orchestrator.storage.study_database import open_study
from orchestrator.study.search import SearchStudy
from tests.support.command_line import refused
from tests.support.servers import Postgres
from tests.support.studies import run_trial
from tests.support.sweep_files import load_sweep

pytestmark = pytest.mark.faults


@pytest.fixture
def postgres(tmp_path: Path) -> Iterator[Postgres]:
    with Postgres(tmp_path / "postgres") as server:
        yield server


@pytest.fixture
def sweep(tmp_path: Path, postgres: Postgres) -> Sweep:
    """A sweep with one complete trial in PostgreSQL."""
    sweep = load_sweep(tmp_path, study=postgres.uri)
    directory = JobDirectory(sweep)
    with directory.open(False, Interrupt()):
        run_trial(SearchStudy(sweep, directory), [0.5])
    return sweep


def execute(postgres: Postgres, statement: str) -> str:
    """Execute a statement; return the first value of its answer."""
    connection = psycopg2.connect(postgres.uri.replace("+psycopg2", ""))
    try:
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute(statement)
            return str(cursor.fetchone()[0]) if cursor.description else ""
    finally:
        connection.close()


def overwrite(postgres: Postgres, table: str) -> None:
    """Overwrite the file of a table while the server is down."""
    execute(postgres, "CHECKPOINT")
    file = postgres.folder / "data" / execute(postgres, f"SELECT pg_relation_filepath('{table}')")
    postgres.kill()
    with file.open("r+b") as content:
        content.write(b"\xff" * 4096)
    postgres.start()


def damage(postgres: Postgres, kind: str) -> str:
    """Damage the study; return what PostgreSQL says."""
    if kind == "column":
        execute(postgres, "ALTER TABLE trial_values DROP COLUMN value")
        return "column trial_values.value does not exist"
    overwrite(postgres, "trials")
    return "invalid page in block 0 of relation"


@pytest.mark.parametrize("kind", ["column", "page"])
def test_driver_with_a_damaged_postgresql_answers_one_line(
    sweep: Sweep, postgres: Postgres, tmp_path: Path, kind: str
) -> None:
    expected = damage(postgres, kind)
    line = refused("sweep", tmp_path / "parabola.yaml", "--storage", sweep.storage)
    assert f"parabola.yaml:9: study: {postgres.uri} is damaged ({expected}" in line
    assert line.endswith("; restore a copy of it, or start over with --fresh")


@pytest.mark.parametrize("kind", ["column", "page"])
def test_status_with_a_damaged_postgresql_answers_one_line(
    sweep: Sweep, postgres: Postgres, tmp_path: Path, kind: str
) -> None:
    expected = damage(postgres, kind)
    line = refused("status", Path(sweep.storage) / "parabola")
    assert line.startswith(f"error: study: {postgres.uri} cannot be read: {expected}")


def test_trials_in_a_sound_postgresql_are_read(sweep: Sweep) -> None:
    store = JobDirectory(sweep).store
    job = recorded_job(store, "parabola")
    assert job is not None
    with open_study(store, "parabola", job[1]) as study:
        assert study is not None
        assert [trial.values for trial in study.read_trials(())] == [[0.5]]


def test_job_started_over_keeps_its_study_under_another_name(sweep: Sweep, postgres: Postgres) -> None:
    directory = JobDirectory(sweep)
    with directory.open(True, Interrupt()):
        assert SearchStudy(sweep, directory).trials == []
    new, old = sorted(optuna.get_all_study_names(postgres.uri))
    (folder,) = [file.name for file in Path(sweep.storage).iterdir() if file.name.startswith("parabola.2")]
    assert (new, old) == ("parabola", folder)
    assert len(optuna.load_study(study_name=old, storage=postgres.uri).trials) == 1


def test_copy_of_a_job_does_not_share_its_study(sweep: Sweep, tmp_path: Path) -> None:
    place = tmp_path / "copy"
    shutil.copytree(sweep.storage, place)
    copy = JobDirectory(sweep.model_copy(update={"storage": str(place)}))
    with pytest.raises(InputError, match=f"in {sweep.storage}, and {place}/parabola is a copy of that job"):
        copy.check(fresh=False)
    JobDirectory(sweep).check(fresh=False)
    (tmp_path / "link").symlink_to(sweep.storage)
    JobDirectory(sweep.model_copy(update={"storage": str(tmp_path / "link")})).check(fresh=False)
    shutil.rmtree(sweep.storage)  # so it was moved
    copy.check(fresh=False)


def test_study_of_a_job_in_another_storage_is_refused(
    sweep: Sweep, postgres: Postgres, tmp_path: Path
) -> None:
    """Two teams may give two sweeps one name and one database."""
    other = JobDirectory(sweep.model_copy(update={"storage": str(tmp_path / "other")}))
    line = f"study: {postgres.uri} has a study parabola of the job in {sweep.storage}; change 'name'"
    for fresh in (False, True):
        with pytest.raises(InputError) as refusal:
            other.check(fresh)
        assert str(refusal.value).startswith(line)
    assert not (tmp_path / "other").exists()
    with pytest.raises(InputError) as refusal, other.open(True, Interrupt()):
        pass
    assert str(refusal.value).startswith(line)
    assert not (tmp_path / "other/.parabola.renaming").exists()
    assert len(optuna.load_study(study_name="parabola", storage=postgres.uri).trials) == 1
