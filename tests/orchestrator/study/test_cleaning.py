"""What `orchestrator.clean` deletes, and what it keeps."""

import json
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import TrialState

from orchestrator import clean
from orchestrator.interrupt import Interrupt
from orchestrator.storage.directory import JobDirectory
from orchestrator.study.search import SearchStudy
from tests.support.studies import TuneLoop, run_trial
from tests.support.sweep_files import load_sweep

OUTCOME = {"report": "report.html"}


def finished(folder: Path, *, outcome: bool = True, running: bool = False, **changes: Any) -> Path:
    """Write a sweep with three complete trials, the second the best, with a checkpoint each."""
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
    path = Path(sweep.storage) / sweep.name
    for number in range(3):
        trial = path / "trials" / f"trial-{number:04d}"
        (trial / "checkpoint_000001_a").mkdir(parents=True)
        (trial / "checkpoint_000001_a" / "weights").write_bytes(bytes(1000))
        (trial / "checkpoint_000001_a.complete").touch()
        (trial / "hung-worker.txt").write_text("stacks")
    return path


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


def test_results_set_aside_are_deleted_only_on_request(tmp_path: Path) -> None:
    sweep = finished(tmp_path)
    aside = sweep.rename(sweep.with_name("parabola.20260101-120000"))
    finished(tmp_path)
    mine = sweep.with_name("mine.20260101-120000")
    mine.mkdir()
    run("--storage", sweep.parent)
    assert aside.exists()
    run(sweep, "--set-aside")
    assert not aside.exists() and mine.exists() and sweep.exists()
