"""The outcome of a sweep, from its study: without Ray, scoring and MLflow."""

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from orchestrator.console.progress import Progress
from orchestrator.drivers.candidates import Candidate
from orchestrator.drivers.sweep import SweepDriver, SweepOutcome
from orchestrator.interrupt import Interrupt
from orchestrator.study.trial_report import EpochEnded
from tests.support.studies import TuneLoop, finish, open_study
from tests.support.sweep_files import load_sweep


class Concluding(SweepDriver):
    """A driver that scores without Ray, and draws no pictures."""

    def _score(self, candidate: Candidate) -> dict[str, float]:
        return {"test/parabola/score": -1.0}

    def _illustrate(self, outcome: SweepOutcome, study: Any, folder: Path) -> str:
        return ""


def conclude(folder: Path, *trials: dict[str, float], **changes: Any) -> tuple[SweepDriver, SweepOutcome]:
    """Return the driver and the outcome of a sweep whose trials report these metrics.

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
    return driver, driver.conclude(study, [], tracker)


def test_outcome_of_several_objectives_has_the_pareto_set(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    driver, outcome = conclude(
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
    driver, outcome = conclude(tmp_path, *scores)
    (note,) = outcome.notes
    assert "standard error of 0.25, more than its lead of 0.12 over trial-0002" in note
    driver.summarise(outcome)
    assert capsys.readouterr().out.count("standard error of 0.25") == 1
    assert note in (tmp_path / "report.html").read_text()
    assert note in driver.note(outcome)


def test_outcome_of_an_earlier_version_is_read(tmp_path: Path) -> None:
    _, outcome = conclude(tmp_path, {"val/score": 0.5})
    earlier = outcome.model_dump(exclude={"errors", "pareto_set", "infeasible", "notes"})
    assert SweepOutcome.model_validate(earlier) == outcome
