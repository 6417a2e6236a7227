"""The records of a job: their schema, their damage, and the settings that they were written with."""

import json
from pathlib import Path
from typing import Any

import pytest

from orchestrator.config.sweep import Sweep
from orchestrator.console.progress import Progress
from orchestrator.drivers.sweep import SweepDriver
from orchestrator.errors import InputError
from orchestrator.interrupt import Interrupt
from orchestrator.storage.directory import SCHEMA, JobDirectory, read_record
from orchestrator.storage.local import LocalStore
from orchestrator.storage.lookup import recorded_job
from tests.support.sweep_files import load_comparison, load_sweep


@pytest.fixture
def sweep(tmp_path: Path) -> Sweep:
    return load_sweep(tmp_path)


@pytest.fixture
def folder(sweep: Sweep, tmp_path: Path) -> Path:
    """The folder of a sweep that was opened once."""
    with JobDirectory(sweep).open(False, Interrupt()):
        pass
    return tmp_path / "store" / "parabola"


def change(file: Path, **changes: Any) -> None:
    """Change keys of a record; None leaves one out."""
    record = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({key: value for key, value in record.items() if value is not None}))


def refusal_of(sweep: Sweep) -> str:
    with pytest.raises(InputError) as refusal:
        JobDirectory(sweep).check(fresh=False)
    return str(refusal.value)


def newer(file: Path) -> str:
    return (
        f"{file} has schema 3, and this version reads up to 2; "
        "upgrade multi-shot-reid to the version that wrote it"
    )


def test_record_has_the_present_schema(folder: Path) -> None:
    assert json.loads((folder / "sweep.json").read_text())["schema"] == SCHEMA == 2


def test_record_of_schema_1_is_read(sweep: Sweep, folder: Path) -> None:
    change(folder / "sweep.json", schema=None)
    JobDirectory(sweep).check(fresh=False)
    assert not JobDirectory(sweep).is_new()


def test_record_of_schema_1_keeps_the_id_of_its_job(sweep: Sweep, folder: Path) -> None:
    change(folder / "sweep.json", schema=None, id="0f1e")
    with JobDirectory(sweep).open(False, Interrupt()) as (job_id, _):
        assert job_id == "0f1e"
    assert json.loads((folder / "sweep.json").read_text())["schema"] == 2


def test_record_of_a_newer_schema_is_refused_by_the_driver(sweep: Sweep, folder: Path) -> None:
    change(folder / "sweep.json", schema=3)
    assert refusal_of(sweep) == newer(folder / "sweep.json")


def test_record_of_a_newer_schema_is_refused_by_commands(folder: Path) -> None:
    change(folder / "sweep.json", schema=3)
    with pytest.raises(InputError) as refusal:
        recorded_job(LocalStore(folder.parent), "parabola")
    assert str(refusal.value) == newer(folder / "sweep.json")


def test_outcome_of_a_newer_schema_is_refused(sweep: Sweep, folder: Path) -> None:
    (folder / "outcome.json").write_text('{"schema": 3}')
    with pytest.raises(InputError) as refusal:
        JobDirectory(sweep).outcome()
    assert str(refusal.value) == newer(folder / "outcome.json")


def test_outcome_survives_its_file(sweep: Sweep, folder: Path) -> None:
    JobDirectory(sweep).finish({"report": "report.html"})
    assert JobDirectory(sweep).outcome("report") == {"schema": 2, "report": "report.html"}


def test_outcome_of_an_unfinished_job_is_none(sweep: Sweep, folder: Path) -> None:
    assert JobDirectory(sweep).outcome() is None


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "1", '{"resolved": {}}', '{"id": "1"}', '{"schema": "x"}']
)
def test_record_that_is_damaged_is_refused_in_one_line(sweep: Sweep, folder: Path, content: str) -> None:
    (folder / "sweep.json").write_text(content)
    line = f"{folder}/sweep.json is damaged; move it away, or start over with --fresh"
    assert refusal_of(sweep) == line


@pytest.mark.parametrize("content", ["{}", '{"sweep": 1}', '{"report": "x", "tracking": "y"}'])
def test_outcome_that_is_damaged_is_refused_by_its_driver(sweep: Sweep, folder: Path, content: str) -> None:
    (folder / "outcome.json").write_text(content)
    with pytest.raises(InputError) as refusal:
        SweepDriver(sweep, Progress(), Interrupt()).run(address=None, dry_run=True, fresh=False)
    line = f"{folder}/outcome.json is damaged; move it away, or start over with --fresh"
    assert str(refusal.value) == line


def test_record_that_does_not_exist_is_none(tmp_path: Path) -> None:
    assert read_record(LocalStore(tmp_path), "job/sweep.json", "id") is None


def test_job_with_other_settings_is_refused(sweep: Sweep, folder: Path, tmp_path: Path) -> None:
    other = load_sweep(tmp_path, search={"x": {"uniform": [-3, 4]}})
    assert refusal_of(other) == (
        f"{folder} holds a sweep of the same name with other settings: search.x: "
        "uniform [-3.0, 3.0] → uniform [-3.0, 4.0]; "
        "change 'name' in the file, or start over with --fresh (which keeps the old folder)"
    )


def test_job_with_other_settings_starts_over_with_fresh(folder: Path, tmp_path: Path) -> None:
    other = load_sweep(tmp_path, search={"x": {"uniform": [-3, 4]}})
    JobDirectory(other).check(fresh=True)


def test_enlarged_comparison_keeps_its_id(tmp_path: Path) -> None:
    with JobDirectory(load_comparison(tmp_path)).open(False, Interrupt()) as (first, _):
        pass
    with JobDirectory(load_comparison(tmp_path, seeds=[0, 7, 8])).open(False, Interrupt()) as (second, _):
        assert second == first


def test_comparison_in_the_folder_of_a_sweep_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds a sweep of the same name; change 'name'"):
        JobDirectory(load_comparison(tmp_path)).check(fresh=False)


def test_job_of_another_kind_is_refused(sweep: Sweep, tmp_path: Path) -> None:
    LocalStore(tmp_path / "store").write("parabola/comparison.json", b"{}")
    assert refusal_of(sweep).startswith(f"{tmp_path}/store/parabola holds a comparison of the same name; ")


def test_job_started_over_keeps_its_old_folder(sweep: Sweep, folder: Path) -> None:
    (folder / "report.html").touch()
    with JobDirectory(sweep).open(True, Interrupt()):
        pass
    assert not (folder / "report.html").exists()
    (old,) = folder.parent.glob("parabola.2*")
    assert (old / "report.html").exists()
