"""The study of a comparison: the order of its trials, their ends, and what a later driver does with them."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from orchestrator.storage.directory import JobDirectory
from orchestrator.study.grid import GridStudy
from orchestrator.study.trial_report import EpochEnded, Failed, Scored, Trained, TrialReport, is_last
from tests.support.studies import TuneLoop
from tests.support.sweep_files import load_comparison

EPOCH = EpochEnded(1, {"val/score": 1.0})
UNSCORED = Failed("it could not be scored: RuntimeError: no")
TWO_TRIALS = {"splits": {}, "seeds": [0], "variants": {"plain": {}, "quick": {"steps": 2}}}
THREE_TRIALS = {"splits": {"y": [1]}, "seeds": [0]}

OpenStudy = Callable[..., GridStudy]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The directory of the comparison."""
    folder = tmp_path / "store" / "parabola"
    folder.mkdir(parents=True)
    return folder


@pytest.fixture
def open_study(tmp_path: Path, folder: Path) -> OpenStudy:
    """Open the study as each new driver does, with changes of the file."""

    def open_changed(**changes: Any) -> GridStudy:
        comparison = load_comparison(tmp_path, **changes)
        directory = JobDirectory(comparison)
        directory.path = folder
        return GridStudy(comparison, directory)

    return open_changed


@pytest.fixture
def trained(folder: Path) -> Trained:
    return Trained(f"{folder}/trials/checkpoint")


def scored(score: float) -> Scored:
    return Scored({"test/parabola/score": score})


def run(study: GridStudy, *reports: TrialReport, ends: bool = True) -> dict[str, Any]:
    """Run one trial that sends these reports; return its suggestion."""
    loop = TuneLoop(study)
    suggestion = loop.suggest()
    assert isinstance(suggestion, dict)
    for report in reports:
        assert loop.report(suggestion, report) is not is_last(report, scored=True)
    if ends:
        loop.end(reports[-1])
    return suggestion


def test_grid_study_first_trial_is_the_first_cell(open_study: OpenStudy, trained: Trained) -> None:
    suggestion = run(open_study(), EPOCH, trained, scored(0.5))
    assert suggestion["values"] == {"variant": "plain", "y": 0, "seed": 0}
    assert suggestion["checkpoint"] is None


def test_grid_study_scored_trial_is_complete(open_study: OpenStudy, trained: Trained) -> None:
    study = open_study()
    run(study, EPOCH, trained, scored(0.5))
    assert study.count() == {"running": 0, "complete": 1, "failed": 0}
    assert (study.remaining(), study.total) == (11, 12)


def test_grid_study_parameters_include_those_of_the_variant(open_study: OpenStudy) -> None:
    parameters = open_study().parameters({"variant": "quick", "seed": 0})
    assert parameters == {"variant": "quick", "seed": 0, "steps": 2}


def test_grid_study_headline_has_means_and_counts(open_study: OpenStudy, trained: Trained) -> None:
    study = open_study()
    run(study, EPOCH, trained, scored(0.5))
    assert study.headline() == "test/parabola/score plain 0.500 (1)"


def test_grid_study_ended_trial_is_in_the_results(
    open_study: OpenStudy, folder: Path, trained: Trained
) -> None:
    run(open_study(), EPOCH, trained, scored(0.5))
    with (folder / "results.csv").open() as table:
        rows = list(csv.DictReader(table))
    assert rows[0] == {
        "trial": "0",
        "variant": "plain",
        "y": "0",
        "seed": "0",
        "state": "complete",
        "reason": "",
        "test/parabola/score": "0.5",
    }
    assert [row["state"] for row in rows[1:]] == ["waiting"] * 11
    assert json.loads((folder / "results.json").read_text())[0]["number"] == 0


def test_grid_study_interrupted_trials_resume_first(open_study: OpenStudy, trained: Trained) -> None:
    study = open_study()
    run(study, EPOCH, trained, scored(0.5))
    run(study, EPOCH, ends=False)
    run(study, EPOCH, trained, ends=False)

    resumed = open_study()
    assert resumed.remaining() == 11
    first, second = run(resumed, EPOCH, trained, scored(0.1)), run(resumed, scored(0.2))
    assert (first["number"], first["checkpoint"]) == (1, None)
    assert (second["number"], second["checkpoint"]) == (2, trained.checkpoint)
    assert run(resumed, scored(0.3))["values"] == {"variant": "plain", "y": 0, "seed": 7}
    assert resumed.count()["complete"] == 4


def test_grid_study_failed_trials_end_it(open_study: OpenStudy, trained: Trained) -> None:
    study = open_study(**TWO_TRIALS)
    run(study, EPOCH, Failed("RuntimeError: no", "..."))
    run(study, EPOCH, trained, UNSCORED)
    assert study.ask() is None and study.is_finished()
    rows = [(row.state, row.reason) for row in study.rows()]
    assert rows == [("failed", "RuntimeError: no"), ("failed", UNSCORED.reason)]


def test_grid_study_next_driver_retries_failed_trials(open_study: OpenStudy, trained: Trained) -> None:
    study = open_study(**TWO_TRIALS)
    run(study, EPOCH, Failed("RuntimeError: no", "..."))
    run(study, EPOCH, trained, UNSCORED)

    resumed = open_study(**TWO_TRIALS)
    assert (resumed.remaining(), resumed.count()["failed"]) == (2, 0)
    retrained, rescored = run(resumed, EPOCH, trained, scored(0.1)), run(resumed, scored(0.2))
    assert (retrained["number"], retrained["checkpoint"]) == (2, None)
    assert (rescored["number"], rescored["checkpoint"]) == (3, trained.checkpoint)
    assert resumed.ask() is None
    assert [(row.state, row.number) for row in resumed.rows()] == [("complete", 2), ("complete", 3)]


def test_grid_study_named_metrics_of_last_epoch_are_results(open_study: OpenStudy, trained: Trained) -> None:
    changes = {**TWO_TRIALS, "metrics": ["val/score", "test/parabola/score"]}
    study = open_study(**changes)
    run(study, EPOCH, EpochEnded(2, {"val/score": 3.0}), trained, scored(0.5))
    run(study, EPOCH, trained, UNSCORED)
    resumed = open_study(**changes)
    run(resumed, Scored({}))  # trained under the earlier driver, and without targets
    assert [row.scores for row in resumed.rows()] == [
        {"val/score": 3.0, "test/parabola/score": 0.5},
        {"val/score": 1.0},
    ]
    complete = [trial for trial in resumed.trials if trial.state == TrialState.COMPLETE]
    # MLflow gets the metrics of epochs separately
    assert [resumed.scores(trial) for trial in complete] == [{"test/parabola/score": 0.5}, {}]


def test_grid_study_unnamed_metrics_of_last_epoch_are_left_out(
    open_study: OpenStudy, trained: Trained
) -> None:
    study = open_study(**TWO_TRIALS)
    run(study, EPOCH, EpochEnded(2, {"val/score": 3.0}), trained, scored(0.5))
    run(study, EPOCH, trained, Scored({}))
    assert [row.scores for row in study.rows()] == [{"test/parabola/score": 0.5}, {}]


def test_grid_study_larger_file_adds_trials(open_study: OpenStudy, trained: Trained) -> None:
    study = open_study(**THREE_TRIALS)
    for score in (0.1, 0.2, 0.3):
        run(study, trained, scored(score))
    larger = open_study()
    assert (larger.total, larger.remaining()) == (12, 9)
    assert run(larger, scored(0.4))["values"] == {"variant": "plain", "y": 0, "seed": 0}
    assert [row.state for row in larger.rows()].count("complete") == 4


def test_grid_study_smaller_file_shows_only_its_trials(open_study: OpenStudy, trained: Trained) -> None:
    study = open_study(**THREE_TRIALS)
    for score in (0.1, 0.2, 0.3):
        run(study, trained, scored(score))
    run(open_study(), scored(0.4))
    smaller = open_study(**THREE_TRIALS)
    assert smaller.is_finished()
    assert [row.scores["test/parabola/score"] for row in smaller.rows()] == [0.1, 0.2, 0.3]


def test_grid_study_trial_without_scores_fails(open_study: OpenStudy) -> None:
    study = open_study()
    run(study, EPOCH)
    assert study.trials[0].user_attrs["reason"] == "it ended without scores"


def test_grid_study_trial_without_a_cell_is_skipped(open_study: OpenStudy, trained: Trained) -> None:
    study = open_study()
    run(study, EPOCH)
    study.study.ask()  # the driver dies before it records the cell
    resumed = open_study()
    assert resumed.trials[1].state == TrialState.RUNNING
    assert run(resumed, trained, scored(0.1))["number"] == 2


def test_grid_study_keeps_standard_errors_of_the_last_epoch(open_study: OpenStudy, trained: Trained) -> None:
    study = open_study()
    metrics = {"val/score": 3.0, "val/score/error": 0.2, "unknown": 1.0, "unknown/error": 1.0}
    run(study, EPOCH, EpochEnded(2, metrics), trained, scored(0.5))
    assert study.trials[0].user_attrs["last"] == {"val/score": 3.0, "val/score/error": 0.2}


def test_grid_study_trial_that_another_program_completes_is_run_again(
    open_study: OpenStudy, folder: Path, trained: Trained
) -> None:
    study = open_study(**TWO_TRIALS)
    loop = TuneLoop(study)
    suggestion = loop.suggest()
    assert loop.report(suggestion, EPOCH)
    optuna.load_study(study_name="parabola", storage=f"sqlite:///{folder}/study.db").tell(0, 0.0)
    assert not loop.report(suggestion, EpochEnded(2, {"val/score": 2.0}))
    loop.end(EPOCH)
    assert study.count() == {"running": 0, "complete": 0, "failed": 1}
    assert [row.scores for row in study.rows()] == [{}, {}]
    resumed = open_study(**TWO_TRIALS)
    assert run(resumed, EPOCH, trained, scored(0.1))["number"] == 1
    assert resumed.count()["complete"] == 1
