"""The statistics of a comparison: paired differences, intervals, numbers, and the files of results."""

import json
from pathlib import Path

import numpy as np
import pytest

from orchestrator.study.statistics import Difference, Row, summarise, write


def rows_of(**scores: list[float | None]) -> list[Row]:
    return [
        Row(name, {"split": split}, "complete", scores={} if value is None else {"rank1": value})
        for name, values in scores.items()
        for split, value in enumerate(values)
    ]


def test_statistics_differences_are_paired() -> None:
    rows = rows_of(a=[0.1, 0.2, None, 0.4], b=[0.2, 0.4, 0.9, float("nan")])
    (column,) = summarise(rows, ["a", "b"], "a", {"rank1": "max"})
    a, b = column.variants["a"], column.variants["b"]
    assert a.difference is None and b.difference is not None
    assert b.difference.pairs == pytest.approx((0.1, 0.2))
    assert b.difference.mean == pytest.approx(0.15) and b.difference.interval is None
    assert (len(a.values), len(b.values), b.best, a.best) == (3, 3, True, False)
    assert a.mean == pytest.approx(0.7 / 3)
    assert a.deviation == pytest.approx(np.std([0.1, 0.2, 0.4], ddof=1))
    assert column.spread(b) == "0.500 ± 0.361"
    assert column.gain(b.difference) == "+0.150 [\N{EN DASH}]"
    lower = summarise(rows, ["a", "b"], "a", {"rank1": "min"})[0]
    assert lower.variants["a"].best and not lower.variants["b"].best


def test_statistics_interval_is_percentile_bootstrap() -> None:
    pairs = (0.0, 0.0, 0.0, 1.0)  # the mean of a resample is Binomial(4, 1/4) / 4
    low, high = Difference(pairs).interval or (None, None)
    assert (low, high) == (0.0, 0.75)  # P(4) = 0.4 %, P(3 or more) = 5.1 %: 97.5 % lies at 3 of 4
    many = tuple(np.random.default_rng(1).normal(0.05, 0.02, 200))
    interval = Difference(many).interval
    assert interval is not None
    wide = 1.96 * np.std(many) / np.sqrt(200)
    assert interval == pytest.approx((np.mean(many) - wide, np.mean(many) + wide), abs=0.1 * wide)
    assert Difference(many).interval == interval, "seeded"


@pytest.mark.parametrize(
    ("pairs", "interval"),
    [((), None), ((0.1,), None), ((0.1, 0.2), None), ((0.25, 0.25, 0.25), (0.25, 0.25)), ((0, 0, 0), (0, 0))],
)
def test_statistics_degenerate_differences(
    pairs: tuple[float, ...], interval: tuple[float, float] | None
) -> None:
    difference = Difference(pairs)
    assert difference.interval == interval
    assert (difference.mean is None) == (not pairs)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.4712, "0.471"), (47.12, "47.1"), (1234.5, "1234"), (0.00012, "0.000120"), (0.0, "0.000")],
)
def test_statistics_numbers_have_three_digits(value: float, text: str) -> None:
    (column,) = summarise(rows_of(a=[value]), ["a"], "a", {"rank1": "max"})
    assert column.number(column.variants["a"].mean) == text


def test_statistics_results_have_one_row_per_trial(tmp_path: Path) -> None:
    rows = [*rows_of(a=[0.5]), Row("b", {"split": 0}, "failed", 4, "a, b")]
    write(rows, tmp_path)
    lines = (tmp_path / "results.csv").read_text().splitlines()
    assert lines == ["trial,variant,split,state,reason,rank1", ",a,0,complete,,0.5", '4,b,0,failed,"a, b",']
    assert [Row(**row) for row in json.loads((tmp_path / "results.json").read_text())] == rows
    assert sorted(path.name for path in tmp_path.iterdir()) == ["results.csv", "results.json"]
