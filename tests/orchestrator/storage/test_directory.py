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
from orchestrator.storage.directory import JobDirectory
from orchestrator.storage.local import LocalStore
from orchestrator.storage.lookup import recorded_job
from orchestrator.storage.records import SCHEMA, JobRecord, RecordedOutcome, read_record
from orchestrator.study.search import SearchStudy
from tests.support.studies import run_trial
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


def test_folder_that_is_a_link_to_nothing_is_refused(sweep: Sweep, tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    folder = tmp_path / "store" / "parabola"
    folder.symlink_to("/nowhere")
    assert refusal_of(sweep) == f"storage: {folder} is a link to /nowhere, which does not exist"


@pytest.mark.parametrize("name", ["parabola", "parabola/trials"])
def test_folder_that_is_a_file_is_refused(name: str, sweep: Sweep, tmp_path: Path) -> None:
    file = tmp_path / "store" / name
    file.parent.mkdir(parents=True)
    file.touch()
    assert refusal_of(sweep) == f"storage: {file} is a file, not a folder"


def test_outcome_without_record_and_study_is_refused(sweep: Sweep, folder: Path) -> None:
    (folder / "outcome.json").write_text("{}")
    JobDirectory(sweep).check(fresh=False)
    (folder / "sweep.json").unlink()
    line = f"{folder} has files, such as outcome.json, but neither record nor study of a sweep; put these"
    assert refusal_of(sweep).startswith(line)
    JobDirectory(sweep).check(fresh=True)


def test_folder_with_files_of_the_user_is_refused(sweep: Sweep, tmp_path: Path) -> None:
    mine = tmp_path / "store" / "parabola" / "report.html"
    mine.parent.mkdir(parents=True)
    JobDirectory(sweep).check(fresh=False)
    mine.write_text("mine")
    assert "has files, such as report.html" in refusal_of(sweep)


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
        JobDirectory(sweep).outcome(RecordedOutcome)
    assert str(refusal.value) == newer(folder / "outcome.json")


def test_outcome_survives_its_file(sweep: Sweep, folder: Path) -> None:
    JobDirectory(sweep).finish({"report": "report.html"})
    assert JobDirectory(sweep).outcome(RecordedOutcome) == RecordedOutcome(report="report.html")


def test_outcome_of_an_unfinished_job_is_none(sweep: Sweep, folder: Path) -> None:
    assert JobDirectory(sweep).outcome(RecordedOutcome) is None


@pytest.mark.parametrize("kind", ["sweep", "comparison"])
def test_name_of_finals_that_another_job_has_is_refused(tmp_path: Path, kind: str) -> None:
    sweep = load_sweep(tmp_path, finals={"top": 1, "seeds": [0]})
    own = JobDirectory(sweep.final_runs({"trial-0000": {}}, "id"))
    with own.open(False, Interrupt()):
        pass
    own.check_follow_up()

    store = tmp_path / "others"
    other = (load_sweep if kind == "sweep" else load_comparison)(
        tmp_path, name="parabola.finals", storage=str(store)
    )
    with JobDirectory(other).open(False, Interrupt()):
        pass
    sweep = load_sweep(tmp_path, finals={"top": 1, "seeds": [0]}, storage=str(store))
    with pytest.raises(InputError) as refusal:
        JobDirectory(sweep.final_runs({"trial-0000": {}}, "id")).check_follow_up()
    assert str(refusal.value) == (
        f"finals: their name is parabola.finals, and {store}/parabola.finals holds a {kind} of that name;"
        " change 'name' in the file"
    )


DAMAGED = [None, "", "{", "[]", "1", "[" * 5000, '{"resolved": {}}', '{"id": "1"}', '{"schema": "x"}']
"""Contents of a record that is missing or damaged."""


def open_with_a_trial(sweep: Sweep) -> tuple[str, Any]:
    """Open the sweep as a driver does, with one trial in its study; return its id and the recorded file."""
    directory = JobDirectory(sweep)
    with directory.open(False, Interrupt()) as (job_id, _):
        study = SearchStudy(sweep, directory)
        if not study.trials:
            run_trial(study, [0.5])
        return job_id, directory.record["resolved"]


def damage(file: Path, content: str | None) -> None:
    if content is None:
        file.unlink()
    else:
        file.write_text(content)


@pytest.mark.parametrize("content", DAMAGED)
def test_record_that_is_damaged_is_taken_from_the_study(sweep: Sweep, folder: Path, content: str) -> None:
    before = open_with_a_trial(sweep)
    damage(folder / "sweep.json", content)
    assert not JobDirectory(sweep).is_new()
    assert open_with_a_trial(sweep) == before
    assert read_record(LocalStore(folder.parent), "parabola/sweep.json", JobRecord) is not None


def test_record_in_the_study_tells_changed_settings(sweep: Sweep, folder: Path, tmp_path: Path) -> None:
    open_with_a_trial(sweep)
    (folder / "sweep.json").unlink()
    other = load_sweep(tmp_path, search={"x": {"uniform": [-3, 4]}})
    assert "with other settings: search.x: uniform [-3.0, 3.0] → uniform [-3.0, 4.0]" in refusal_of(other)


@pytest.mark.parametrize("content", DAMAGED)
def test_record_of_a_job_without_trials_is_written_anew(sweep: Sweep, folder: Path, content: str) -> None:
    damage(folder / "sweep.json", content)
    assert JobDirectory(sweep).is_new()
    with JobDirectory(sweep).open(False, Interrupt()):
        pass
    assert not JobDirectory(sweep).is_new()


@pytest.mark.parametrize("content", DAMAGED)
def test_record_without_a_copy_is_asked_for(sweep: Sweep, folder: Path, content: str) -> None:
    run_trial(SearchStudy(sweep, JobDirectory(sweep)), [0.5])  # as an earlier version did, without a copy
    damage(folder / "sweep.json", content)
    assert refusal_of(sweep) == (
        f"{folder}/sweep.json is missing or damaged, and the study has trials but no copy of it; "
        "put a copy back, or start over with --fresh (which keeps the old folder)"
    )


@pytest.mark.parametrize("content", [*DAMAGED[1:], '{"sweep": 1}', '{"report": "x", "tracking": "y"}'])
def test_outcome_that_is_damaged_counts_as_missing(sweep: Sweep, folder: Path, content: str) -> None:
    (folder / "outcome.json").write_text(content)
    assert SweepDriver(sweep, Progress(), Interrupt())._finished_outcome() is None


def test_record_that_does_not_exist_is_none(tmp_path: Path) -> None:
    assert read_record(LocalStore(tmp_path), "job/sweep.json", JobRecord) is None


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


def test_study_of_a_bucket_in_a_folder_is_refused(sweep: Sweep, folder: Path) -> None:
    directory = JobDirectory(sweep)
    directory.check_study()  # it has no study yet
    (folder / "study").mkdir()
    (folder / "study/000000.jsonl").touch()
    problem = "its study was written in a bucket and cannot be read in a folder; move the job back"
    with pytest.raises(InputError, match=f"^sweep {folder}: {problem}, or start over with --fresh"):
        directory.check_study()
    (folder / "study.db").touch()
    directory.check_study()


def test_job_of_another_kind_is_refused(sweep: Sweep, tmp_path: Path) -> None:
    LocalStore(tmp_path / "store").write("parabola/comparison.json", b"{}")
    assert refusal_of(sweep).startswith(f"{tmp_path}/store/parabola holds a comparison of the same name; ")


def test_job_that_was_ended_while_it_started_over_starts_over(
    sweep: Sweep, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a bucket, files are renamed one by one."""
    before = open_with_a_trial(sweep)
    rename = LocalStore.rename

    def rename_half(store: LocalStore, name: str, other: str) -> None:
        (folder.parent / other).mkdir()
        (folder / "study.db").rename(folder.parent / other / "study.db")
        raise KeyboardInterrupt

    monkeypatch.setattr(LocalStore, "rename", rename_half)
    with pytest.raises(KeyboardInterrupt), JobDirectory(sweep).open(True, Interrupt()):
        pass
    (old,) = folder.parent.glob("parabola.2*")

    def rename_rest(store: LocalStore, name: str, other: str) -> None:
        assert folder.parent / other == old
        for file in folder.iterdir():
            file.rename(old / file.name)

    monkeypatch.setattr(LocalStore, "rename", rename_rest)
    JobDirectory(sweep).check(fresh=False)
    assert JobDirectory(sweep).is_new()
    after = open_with_a_trial(sweep)
    assert after[0] != before[0]
    assert {"sweep.json", "study.db"} <= {file.name for file in old.iterdir()}
    monkeypatch.setattr(LocalStore, "rename", rename)
    assert open_with_a_trial(sweep) == after, "the rename has ended"


def test_job_started_over_keeps_its_old_folder(sweep: Sweep, folder: Path) -> None:
    (folder / "report.html").touch()
    with JobDirectory(sweep).open(True, Interrupt()):
        pass
    assert not (folder / "report.html").exists()
    (old,) = folder.parent.glob("parabola.2*")
    assert (old / "report.html").exists()
