"""The finals: the choice of the winner, the scores of its runs, and the study."""

import csv
from pathlib import Path

import pytest

from orchestrator.storage.directory import JobDirectory
from orchestrator.study.finals import FinalsStudy, finalists, score_matrix, write_matrix
from orchestrator.study.statistics import Row
from orchestrator.study.trial_report import EpochEnded, Trained
from tests.support.studies import TuneLoop
from tests.support.sweep_files import load_sweep

METRIC = "val/score"


def rows_of(**values: list[float | None]) -> list[Row]:
    """Return a row for each value of each finalist; None is a failed run."""
    pairs = [(name, seed, value) for name, of_name in values.items() for seed, value in enumerate(of_name)]
    return [
        Row(name, {"seed": seed}, "failed", number)
        if value is None
        else Row(name, {"seed": seed}, "complete", number, scores={METRIC: value})
        for number, (name, seed, value) in enumerate(pairs)
    ]


def scored_rows(*scores: dict[str, float]) -> list[Row]:
    """Return a complete run of another seed for each mapping of scores."""
    return [Row("only", {"seed": seed}, "complete", seed, scores=run) for seed, run in enumerate(scores)]


def test_winner_has_the_best_mean_minus_its_error() -> None:
    rows = rows_of(steady=[0.80, 0.80, 0.80], lucky=[0.60, 0.85, 0.98])  # means 0.80 and 0.81
    assert [finalist.name for finalist in finalists(rows, METRIC, "max")] == ["steady", "lucky"]


def test_winner_of_a_minimum_has_the_lowest_mean_plus_error() -> None:
    rows = rows_of(steady=[0.20, 0.21], lucky=[0.05, 0.35])
    assert [finalist.name for finalist in finalists(rows, METRIC, "min")] == ["steady", "lucky"]


def test_winner_is_among_those_with_the_most_complete_runs() -> None:
    rows = rows_of(halved=[0.9, None], whole=[0.7, 0.7])
    assert [finalist.name for finalist in finalists(rows, METRIC, "max")] == ["whole", "halved"]


def test_winner_is_among_those_with_the_most_splits() -> None:
    runs = [("a", 0, 0, 0.8), ("a", 0, 1, 0.8), ("b", 0, 0, 0.85), ("b", 1, 0, 0.75)]  # others have failed
    rows = [
        Row(name, {"data.split": split, "seed": seed}, "complete", number, scores={METRIC: value})
        for number, (name, split, seed, value) in enumerate(runs)
    ]
    assert [finalist.name for finalist in finalists(rows, METRIC, "max")] == ["b", "a"]


@pytest.mark.parametrize(("mode", "best"), [("max", 1), ("min", 2)])
def test_candidate_is_the_best_run_of_the_winner(mode: str, best: int) -> None:
    (winner,) = finalists(rows_of(only=[0.5, 0.9, 0.1]), METRIC, mode)  # type: ignore[arg-type]
    assert winner.best_run == best


def test_candidate_is_of_the_first_split() -> None:
    values = {(0, 0): 0.5, (0, 1): 0.6, (1, 0): 0.9, (1, 1): 0.8}
    rows = [
        Row("only", {"data.split": split, "seed": seed}, "complete", number, scores={METRIC: value})
        for number, ((split, seed), value) in enumerate(values.items())
    ]
    (winner,) = finalists(rows, METRIC, "max")
    assert winner.best_run == 1


def test_matrix_leaves_out_scores_that_are_not_finite() -> None:
    values = (0.2, float("nan"), 0.4, float("inf"))
    (cell,) = score_matrix("walkers", scored_rows(*({"test/mars/mAP": value} for value in values)))
    assert cell.values == (0.2, 0.4) and cell.interval is not None


def test_matrix_has_mean_deviation_and_interval(tmp_path: Path) -> None:
    rows = scored_rows({"test/mars/common/mAP": 0.2}, {"test/mars/common/mAP": 0.4, "test/prid/rank1": 0.5})
    write_matrix(score_matrix("walkers", rows), tmp_path / "matrix.csv")
    with (tmp_path / "matrix.csv").open() as table:
        mars, prid = csv.DictReader(table)
    assert (mars["train"], mars["target"], mars["metric"], mars["runs"]) == (
        "walkers",
        "mars",
        "common/mAP",
        "2",
    )
    assert float(mars["mean"]) == pytest.approx(0.3) and float(mars["deviation"]) == pytest.approx(
        0.1414, abs=1e-4
    )
    assert float(mars["low"]) == pytest.approx(0.3 - 12.706 * 0.1, abs=1e-3)
    assert (prid["runs"], prid["deviation"], prid["low"]) == ("1", "", "")


@pytest.fixture
def study(tmp_path: Path) -> FinalsStudy:
    sweep = load_sweep(tmp_path, finals={"top": 2, "seeds": [0, 1]})
    runs = sweep.final_runs({"trial-0003": {"x": 0.5}, "trial-0001": {"x": 0.1}}, "id")
    directory = JobDirectory(runs)
    directory.path = Path(sweep.storage) / runs.name
    directory.path.mkdir(parents=True)
    return FinalsStudy(runs, directory)


def run(study: FinalsStudy, score: float) -> int:
    """Train one run to its end; return its number."""
    loop = TuneLoop(study)
    suggestion = loop.suggest()
    loop.report(suggestion, EpochEnded(1, {METRIC: score}))
    last = Trained("/sweeps/checkpoint_1")
    loop.report(suggestion, last)
    loop.end(last)
    return int(suggestion["number"])


def test_finals_study_trained_run_is_complete_without_scores(study: FinalsStudy) -> None:
    run(study, 0.5)
    assert study.count()["complete"] == 1
    assert study.rows()[0].scores == {METRIC: 0.5}


def test_finals_study_run_without_a_finite_objective_fails(study: FinalsStudy) -> None:
    run(study, float("nan"))
    assert study.rows()[0].state == "failed"
    assert study.rows()[0].reason == f"{METRIC} is nan in the last epoch"


def test_finals_study_alternates_between_finalists(study: FinalsStudy) -> None:
    for score in (0.1, 0.2, 0.3, 0.4):
        run(study, score)
    values = [study.values(trial) for trial in study.started_trials]
    assert values[:2] == [{"variant": name, "seed": 0} for name in ("trial-0003", "trial-0001")]
    assert study.is_finished()


def test_finals_study_keeps_scores_of_an_ended_run(study: FinalsStudy) -> None:
    number = run(study, 0.5)
    study.record_scores(number, {"test/parabola/score": 0.25})
    assert study.rows()[0].scores == {METRIC: 0.5, "test/parabola/score": 0.25}
    assert study.scores(study.trial(number)) == {"test/parabola/score": 0.25}
