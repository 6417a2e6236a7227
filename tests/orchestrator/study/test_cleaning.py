"""What `orchestrator.clean` deletes, and what it keeps."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import TrialState

from orchestrator import clean
from orchestrator.errors import InputError
from orchestrator.interrupt import Interrupt
from orchestrator.storage.directory import JobDirectory
from orchestrator.study.search import SearchStudy
from tests.support.servers import Seaweed
from tests.support.studies import TuneLoop, run_trial
from tests.support.sweep_files import load_sweep

OUTCOME = {"report": "report.html", "best": {"trial": 1, "parameters": {}}}


def finish(folder: Path, *, outcome: bool = True, running: bool = False, **changes: Any) -> JobDirectory:
    """Run a sweep with three complete trials, the second the best, with a checkpoint each."""
    sweep = load_sweep(folder, config={"epochs": 1}, **changes)
    directory = JobDirectory(sweep)
    with directory.open(False, Interrupt()):
        study = SearchStudy(sweep, directory)
        for score in (-3.0, -1.0, -2.0):
            assert run_trial(study, [score]) is TrialState.COMPLETE
        if running:
            TuneLoop(study).suggest()
        if outcome:
            directory.finish(OUTCOME)
    for number in range(3):
        trial = f"{sweep.name}/trials/trial-{number:04d}"
        directory.store.write(f"{trial}/checkpoint_000001_a/weights", bytes(1000))
        directory.store.write(f"{trial}/checkpoint_000001_a.complete", b"")
        directory.store.write(f"{trial}/hung-worker.txt", b"stacks")
    return directory


def finished(folder: Path, **changes: Any) -> Path:
    """Return the folder of a sweep that `finish` ran."""
    return Path(finish(folder, **changes).root)


def run(*arguments: str | Path) -> None:
    assert clean.main(list(map(str, arguments))) == 0


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_checkpoints_of_other_trials_than_the_best_are_deleted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = finished(tmp_path)
    before = files(sweep)
    run(sweep)
    gone = {
        f"trials/trial-{number:04d}/checkpoint_000001_a{end}"
        for number in (0, 2)
        for end in (".complete", "/weights")
    }
    assert before - files(sweep) == gone
    assert "freed 0.0 MB" in capsys.readouterr().out


def test_checkpoints_in_a_bucket_are_deleted(seaweed: Seaweed, tmp_path: Path) -> None:
    bucket = {"storage": f"s3://{seaweed.bucket}/cleaned", "tracking": {"uri": "http://127.0.0.1:1"}}
    directory = finish(tmp_path, **bucket)
    before = set(directory.store.list_files("parabola/"))
    run(directory.uri, "--dry-run")
    assert set(directory.store.list_files("parabola/")) == before
    run(directory.uri)
    gone = {
        f"parabola/trials/trial-{number:04d}/checkpoint_000001_a{end}"
        for number in (0, 2)
        for end in (".complete", "/weights")
    }
    assert before - set(directory.store.list_files("parabola/")) == gone


def test_dry_run_tells_and_deletes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sweep = finished(tmp_path)
    before = files(sweep)
    run("--storage", sweep.parent, "--dry-run", "--json")
    document = json.loads(capsys.readouterr().out)
    assert files(sweep) == before and document["deleted"] is False
    (removable,) = document["removable"]
    assert removable["job"] == "parabola" and removable["bytes"] == 2000 and len(removable["paths"]) == 4


@pytest.mark.parametrize("changes", [{"outcome": False}, {"running": True}], ids=["unfinished", "resumed"])
def test_job_that_is_not_finished_is_left_alone(
    changes: dict[str, bool], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = finished(tmp_path, **changes)
    before = files(sweep)
    run("--storage", sweep.parent)
    assert files(sweep) == before and "nothing to delete" in capsys.readouterr().out


def test_results_set_aside_are_deleted_only_on_request(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = finished(tmp_path)
    shutil.copytree(sweep, backup := sweep.with_name("parabola.20260101-120000"))
    with JobDirectory(load_sweep(tmp_path)).open(True, Interrupt()):
        (aside,) = set(sweep.parent.glob("parabola.*")) - {backup}
    shutil.copytree(aside, copy := sweep.with_name("parabola.20260101-120001"))
    run("--storage", sweep.parent)
    assert aside.exists()
    run(sweep, "--set-aside")
    assert not aside.exists() and backup.exists() and copy.exists() and sweep.exists()
    out = capsys.readouterr().out
    assert all(f"{kept.name}: left alone: it has no mark of --fresh" in out for kept in (backup, copy))


def test_results_set_aside_in_a_bucket_are_deleted_only_on_request(seaweed: Seaweed, tmp_path: Path) -> None:
    uri = f"s3://{seaweed.bucket}/aside"
    sweep = load_sweep(tmp_path, storage=uri, tracking={"uri": "http://127.0.0.1:1"})
    for _ in range(2):
        with JobDirectory(sweep).open(True, Interrupt()):
            pass
    store = JobDirectory(sweep).store
    assert len({name.partition("/")[0] for name in store.list_files("parabola.")}) == 1
    store.write("parabola.20260101-120000/sweep.json", b"{}")
    run("--storage", uri, "--set-aside")
    kept = {name.partition("/")[0] for name in store.list_files("parabola")}
    assert kept == {"parabola", "parabola.20260101-120000"}


def test_study_without_the_trials_of_the_outcome_deletes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = finished(tmp_path)
    (sweep / "study.db").unlink()
    with pytest.raises(InputError, match="put the study back"):  # a rerun leaves an empty study
        SearchStudy(load_sweep(tmp_path), JobDirectory(load_sweep(tmp_path)))
    before = files(sweep)
    run(sweep)
    assert files(sweep) == before and "nothing to delete" in capsys.readouterr().out


def test_job_that_a_driver_runs_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sweep = finished(tmp_path)
    before = files(sweep)
    with JobDirectory(load_sweep(tmp_path)).open(False, Interrupt()):
        assert clean.main([str(sweep)]) == 2
        run("--storage", sweep.parent)
    captured = capsys.readouterr()
    assert "is driven" in captured.err and "parabola: left alone:" in captured.out
    assert before <= files(sweep)


def test_damaged_job_does_not_stop_the_others(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sweep = finished(tmp_path)
    damaged = load_sweep(tmp_path, "damaged")
    with JobDirectory(damaged).open(False, Interrupt()):
        pass
    (sweep.with_name("damaged") / "outcome.json").write_text("{")
    run("--storage", sweep.parent)
    out = capsys.readouterr().out
    assert "damaged: left alone:" in out and "parabola: checkpoints of all trials but the best" in out


def test_stray_file_among_the_trials_does_no_harm(tmp_path: Path) -> None:
    sweep = finished(tmp_path)
    (sweep / "trials" / "probe").write_bytes(b"0")
    run(sweep)
    assert (sweep / "trials" / "probe").exists() and not (
        sweep / "trials/trial-0000/checkpoint_000001_a"
    ).exists()


def test_job_whose_name_looks_set_aside_is_kept(tmp_path: Path) -> None:
    sweep = load_sweep(tmp_path, "parabola.20260101-120000")
    with JobDirectory(sweep).open(False, Interrupt()):
        pass
    run("--storage", sweep.storage, "--set-aside")
    assert (Path(sweep.storage) / sweep.name / "sweep.json").exists()


def test_finals_set_aside_belong_to_their_sweep(tmp_path: Path) -> None:
    sweep = finished(tmp_path)
    aside = sweep.with_name("parabola.finals.20260101-120000")
    aside.mkdir()
    (aside / "comparison.json").write_text("{")  # damaged: perhaps why it was set aside
    (aside / "set-aside").write_text(aside.name)
    run(sweep, "--set-aside")
    assert not aside.exists()


def test_overrides_without_a_file_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sweep = finished(tmp_path)
    before = files(sweep)
    assert clean.main(["--storage", str(sweep.parent), "--set", "name=other"]) == 2
    assert "--set: name the file of the sweep, too" in capsys.readouterr().err and files(sweep) == before
