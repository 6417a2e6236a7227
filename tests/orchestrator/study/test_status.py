"""The status of a job, read without its driver."""

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

from orchestrator import status, stop
from orchestrator.interrupt import Interrupt
from orchestrator.storage.directory import JobDirectory
from orchestrator.study.search import SearchStudy
from orchestrator.study.trial_report import EpochEnded, Failed, Trained
from tests.support.studies import open_study
from tests.support.sweep_files import load_sweep


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """The store of a sweep whose driver was interrupted: a trial is complete, one failed, one runs."""
    sweep = load_sweep(tmp_path, budget={"trials": 4, "wall": "1h"})
    directory = JobDirectory(sweep)
    with directory.open(False, Interrupt()) as (_, lease):
        study = SearchStudy(sweep, directory)
        study.seed([])
        for number in range(3):
            suggestion = study.ask()
            assert suggestion is not None and suggestion.number == number
        report = EpochEnded(1, {"val/score": -0.25}, checkpoint="/x")
        study.record_epoch(0, report)
        study.should_stop(0, report)
        study.record_checkpoint(0, "/x")
        study.on_trial_end(0, Trained("/x"))
        study.on_trial_end(1, Failed("RuntimeError: no"))
        lease.record.used.seconds = 90.0  # last, because each heartbeat adds to it
    return tmp_path / "store"


def ask(command: Any, capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = command.main(arguments)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.fixture
def document(store: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    file = str(store.parent / "parabola.yaml")
    code, out, _ = ask(status, capsys, file, "--storage", str(store), "--json")
    assert code == 0
    answer: dict[str, Any] = json.loads(out)
    return answer


def test_status_of_an_interrupted_sweep_names_its_driver(document: dict[str, Any]) -> None:
    assert document["state"] == "stopped"
    assert document["driver"]["pid"] == os.getpid()


def test_status_counts_trials_and_budget(document: dict[str, Any]) -> None:
    assert document["trials"] == {"complete": 1, "failed": 1, "running": 1}
    assert document["budget"] == {"trials": [3, 4], "seconds": [90.0, 3600.0], "gpu_hours": [0.0, None]}


def test_status_of_an_interrupted_sweep_counts_unfinished_trials(
    store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, out, _ = ask(status, capsys, str(store / "parabola"))
    assert "1 complete, 1 failed, 1 unfinished" in out


def test_status_shows_the_best_trial(document: dict[str, Any]) -> None:
    assert document["best"]["trial"] == "trial-0000"
    assert document["best"]["val/score"] == -0.25


def test_status_says_that_a_trial_resumes(document: dict[str, Any]) -> None:
    assert document["activity"] == {"trial-0002": "resumes when the command is rerun"}


def test_status_groups_failures_by_reason(document: dict[str, Any]) -> None:
    assert document["failures"] == [{"reason": "RuntimeError: no", "trials": ["trial-0001"]}]


@pytest.mark.parametrize("by_address", [True, False])
def test_status_as_a_table_shows_failures_and_time(
    store: Path, by_address: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = f"{store}/parabola" if by_address else "parabola"
    code, out, _ = ask(status, capsys, sweep, "--storage", str(store))
    assert code == 0
    assert "RuntimeError: no (trial-0001)" in out and "0:01:30 of 1:00:00" in out


def test_status_changes_nothing_in_the_store(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {file: file.read_bytes() for file in store.rglob("*") if file.is_file()}
    ask(status, capsys, "parabola", "--storage", str(store))
    assert {file: file.read_bytes() for file in store.rglob("*") if file.is_file()} == before


@pytest.mark.parametrize("command", [status, stop])
def test_command_on_an_unknown_sweep_names_the_nearest(
    command: Any, store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = ask(command, capsys, "parabolla", "--storage", str(store))
    assert code == 2 and not out
    assert err == f"error: there is no sweep {store}/parabolla; did you mean 'parabola'?\n"


@pytest.mark.parametrize("command", [status, stop])
def test_command_on_a_name_that_is_too_long_is_one_line(
    command: Any, store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = ask(command, capsys, "a" * 300, "--storage", str(store))
    assert code == 2 and err.endswith(": File name too long\n") and err.count("\n") == 1


@pytest.mark.parametrize("command", [status, stop])
def test_command_on_an_unknown_kind_of_storage_is_one_line(
    command: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = ask(command, capsys, "gs://x/parabola")
    assert code == 2 and "kept in a folder or in a bucket" in err and err.count("\n") == 1


def test_stop_of_a_job_without_driver_says_so(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = ask(stop, capsys, f"{store}/parabola")
    assert code == 0 and out == f"{store}/parabola is not running\n"


@pytest.fixture
def pareto(tmp_path: Path) -> Path:
    """The store of a sweep with two objectives and a constraint, which one of three trials violates."""
    sweep = load_sweep(
        tmp_path,
        config={"epochs": 1},
        objective=[{"metric": "val/score"}, {"metric": "rate"}],
        constraints=[{"metric": "train/loss", "at_most": 1}],
        budget={"trials": 3},
    )
    study = open_study(sweep)
    directory = JobDirectory(sweep)
    with directory.open(False, Interrupt()):
        for score, rate, loss in ((0.5, 5.0, 0.1), (0.7, 2.0, 0.1), (0.9, 9.0, 3.0)):
            suggestion = study.ask()
            assert suggestion is not None
            metrics = {"val/score": score, "rate": rate, "train/loss": loss, "val/score/error": 0.25}
            report = EpochEnded(1, metrics, checkpoint="/x")
            study.record_epoch(suggestion.number, report)
            study.on_trial_end(suggestion.number, Trained("/x"))
    return tmp_path / "store"


def test_status_of_several_objectives_shows_the_pareto_set(
    pareto: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, out, _ = ask(status, capsys, "parabola", "--storage", str(pareto), "--json")
    document = json.loads(out)
    assert [trial["trial"] for trial in document["pareto_set"]] == ["trial-0001", "trial-0000"]
    assert document["best"] == document["pareto_set"][0]
    assert document["best"]["errors"] == {"val/score": 0.25}
    assert document["infeasible"] == 1


def test_status_as_a_table_shows_errors_and_infeasible_trials(
    pareto: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, out, _ = ask(status, capsys, "parabola", "--storage", str(pareto))
    assert "val/score 0.7 ± 0.25, rate 2 (trial-0001)" in out
    assert "3 complete; 1 infeasible" in out
    assert re.search(r"Pareto set\s+trial +val/score +rate", out)
    assert re.search(r"trial-0000 +0.5 ± 0.25 +5", out)


def test_list_of_jobs_shows_the_error_of_the_best(pareto: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = ask(status, capsys, "--storage", str(pareto))
    assert "0.7 ± 0.25" in out
