"""The tables of the finals and of the gate, with the digits of their numbers."""

import pytest

from orchestrator.report.finals import finalists_table, matrix_table
from orchestrator.report.gate import gate_table
from orchestrator.study.finals import Finalist, score_matrix
from orchestrator.study.statistics import Row
from orchestrator.tracking.gate import Decision


@pytest.mark.parametrize(
    ("confidence", "column"),
    [
        (0.95, "95% interval"),
        (0.975, "97.5% interval"),
        (0.995, "99.5% interval"),
        (0.57, "57% interval"),
        (None, "interval"),
    ],
)
def test_gate_shows_its_confidence(confidence: float | None, column: str) -> None:
    decision = Decision(verdict="promoted", reason="", method="no gate", confidence=confidence)
    assert gate_table(decision).columns[-1] == column


@pytest.mark.parametrize(
    ("values", "shown"),
    [
        ((1e-4, 2e-4), "0.000150 ± 0.000050"),
        ((0.5, 0.75), "0.625 ± 0.125"),
        ((200.0, 400.0), "300 ± 100"),
        ((0.5,), "0.500 ± \N{EN DASH}"),
    ],
)
def test_finals_show_three_digits(values: tuple[float, ...], shown: str) -> None:
    runs = tuple(range(len(values)))
    finalist = Finalist(values=values, name="trial-0001", runs=runs, splits=("",) * len(runs), mode="min")
    assert finalists_table([finalist], "val/loss").rows == [("trial-0001", shown, str(len(values)))]


def test_scores_of_the_winner_have_the_decimals_of_their_metric() -> None:
    runs = [
        Row("only", {"seed": 0}, "complete", scores={"test/mars/mAP": score, "test/mars/loss": score / 1e4})
        for score in (0.2, 0.4)
    ]
    rows = matrix_table(score_matrix("walkers", runs)).rows
    assert [row[2:4] for row in rows] == [("mAP", "0.300 ± 0.141"), ("loss", "0.0000300 ± 0.0000141")]
    assert [row[4] for row in rows] == ["-0.971 to 1.571", "-0.0000971 to 0.0001571"]


@pytest.mark.parametrize(("number", "noted"), [(1, False), (2, True), (3, True), (4, False)])
def test_scores_of_few_runs_say_why_their_intervals_are_wide(number: int, noted: bool) -> None:
    runs = [
        Row("only", {"seed": seed}, "complete", scores={"test/mars/mAP": seed / 9}) for seed in range(number)
    ]
    table = matrix_table(score_matrix("walkers", runs))
    assert ("more seeds or splits" in table.as_markdown()) is noted
