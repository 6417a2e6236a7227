"""The outcome of a sweep, from its study: without Ray, scoring and MLflow."""

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from orchestrator.console.progress import Progress
from orchestrator.drivers.candidates import Candidate
from orchestrator.drivers.sweep import SweepDriver
from orchestrator.drivers.sweep_outcome import SweepOutcome
from orchestrator.errors import StorageError
from orchestrator.interrupt import Interrupt
from orchestrator.study.cleaning import Cleaner
from orchestrator.study.search import SearchStudy
from orchestrator.study.trial_report import EpochEnded
from tests.support.studies import TuneLoop, finish, open_study
from tests.support.sweep_files import load_sweep


class Concluding(SweepDriver):
    """A driver that scores without Ray, and draws no pictures."""

    def _score(self, candidate: Candidate) -> dict[str, float]:
        return {"test/parabola/score": -1.0}

    def _illustrate(self, outcome: SweepOutcome, study: Any, folder: Path) -> str:
        return ""


def conclude(
    folder: Path, *trials: dict[str, float], **changes: Any
) -> tuple[SweepDriver, SweepOutcome, SearchStudy]:
    """Return the driver, the outcome and the study of a sweep whose trials report these metrics.

    The report is kept in ``folder``, where MLflow would get it.
    """
    tracker: Any = SimpleNamespace(
        sweep_id="1",
        delivery_problem=lambda: "",
        run_ids=lambda numbers: {},
        log_file=lambda file: shutil.copy(file, folder),
    )
    sweep = load_sweep(folder, config={"epochs": 1}, **changes)
    study = open_study(sweep)
    for metrics in trials:
        loop = TuneLoop(study)
        point = loop.suggest()
        loop.report(point, EpochEnded(1, metrics, checkpoint="/x"))
        loop.end(finish(loop, point, 1))
    driver = Concluding(sweep, Progress(), Interrupt())
    driver._directory.path = folder / "scratch"
    return driver, driver.conclude(study, [], tracker), study


def test_outcome_of_several_objectives_has_the_pareto_set(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    driver, outcome, _ = conclude(
        tmp_path,
        {"val/score": 0.5, "rate": 2.0, "val/score/error": 0.25},
        {"val/score": 0.25, "rate": 4.0},
        {"val/score": 0.9, "rate": 9.0},
        objective=[{"metric": "val/score"}, {"metric": "rate"}],
        constraints={"metric": "rate", "at_most": 5},
    )
    assert [trial["trial"] for trial in outcome.pareto_set] == ["trial-0000", "trial-0001"]
    assert (outcome.best.trial, outcome.infeasible, outcome.notes) == (0, 1, [])
    assert driver.metrics(outcome)["val/score/error"] == 0.25
    assert "| trial-0000 | 0.5 ± 0.25 | 2 |" in driver.note(outcome)
    driver.summarise(outcome)
    shown = capsys.readouterr().out
    assert "3 complete, 0 pruned, 0 failed; 1 infeasible" in shown
    assert "Pareto set" in shown and "trial-0001" in shown
    assert "Pareto set" in (tmp_path / "report.html").read_text()


def test_outcome_warns_of_an_error_above_the_lead(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scores = ({"val/score": score, "val/score/error": 0.25} for score in (0.5, 0.75, 0.625))
    driver, outcome, _ = conclude(tmp_path, *scores)
    (note,) = outcome.notes
    assert "standard error of 0.25, more than its lead of 0.12 over trial-0002" in note
    driver.summarise(outcome)
    assert capsys.readouterr().out.count("standard error of 0.25") == 1
    assert note in (tmp_path / "report.html").read_text()
    assert note in driver.note(outcome)


def test_outcome_of_an_earlier_version_is_read(tmp_path: Path) -> None:
    _, outcome, _ = conclude(tmp_path, {"val/score": 0.5})
    earlier = outcome.model_dump(exclude={"errors", "pareto_set", "infeasible", "notes"})
    assert SweepOutcome.model_validate(earlier) == outcome


def checkpoints_after(folder: Path, **changes: Any) -> set[str]:
    """Return the names of the trials whose checkpoints a sweep keeps; the second of three is the best."""
    metrics = [
        {"val/score": 0.5, "rate": 1.0},
        {"val/score": 0.75, "rate": 2.0},
        {"val/score": 0.6, "rate": 3.0},
    ]
    driver, _, study = conclude(folder, *metrics, **changes)
    trials = folder / driver._sweep.storage / driver._sweep.name / "trials"
    for number in range(3):
        trial = trials / f"trial-{number:04d}"
        (trial / "checkpoint_000001_a_b").mkdir(parents=True)
        (trial / "checkpoint_000001_a_b.complete").touch()
    driver.clean_up(study)
    assert len(list(trials.iterdir())) == 3
    return {path.parent.name for path in trials.glob("*/checkpoint_*")}


def test_finished_sweep_keeps_the_checkpoint_of_its_best_trial(tmp_path: Path) -> None:
    assert checkpoints_after(tmp_path) == {"trial-0001"}


def test_finished_sweep_of_several_objectives_keeps_those_of_its_pareto_set(tmp_path: Path) -> None:
    objective = [{"metric": "val/score"}, {"metric": "rate"}]
    assert checkpoints_after(tmp_path, objective=objective) == {"trial-0001", "trial-0002"}


def test_finished_sweep_keeps_all_checkpoints_on_request(tmp_path: Path) -> None:
    assert len(checkpoints_after(tmp_path, checkpoints="all")) == 3


def test_checkpoints_that_cannot_be_deleted_cost_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def remove(self: Cleaner, removable: object) -> None:
        raise StorageError("storage: parabola: permission denied")

    monkeypatch.setattr(Cleaner, "remove", remove)
    assert len(checkpoints_after(tmp_path)) == 3
    assert "permission denied; python -m orchestrator.clean deletes what is left" in caplog.text
