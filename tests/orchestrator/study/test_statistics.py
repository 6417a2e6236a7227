"""The statistics of a comparison: paired differences, intervals, numbers, and the files of results."""

import json
from pathlib import Path

import numpy as np
import pytest

from orchestrator.study.statistics import Row, Sample, holm, summarise, write


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
    assert b.difference.values == pytest.approx((0.1, 0.2))
    assert b.difference.mean == pytest.approx(0.15)
    assert (len(a.values), len(b.values), b.best, a.best) == (3, 3, True, False)
    assert a.mean == pytest.approx(0.7 / 3)
    assert a.deviation == pytest.approx(np.std([0.1, 0.2, 0.4], ddof=1))
    assert column.spread(b) == "0.500 ± 0.361"
    # Student's t with one degree of freedom: 12.706 times the standard error, 0.05.
    assert column.gain(b) == "+0.150 [-0.485, +0.785] p = 0.2"
    lower = summarise(rows, ["a", "b"], "a", {"rank1": "min"})[0]
    assert lower.variants["a"].best and not lower.variants["b"].best


@pytest.mark.parametrize("runs", [2, 3, 4, 10])
def test_sample_interval_covers_the_mean_in_95_percent(runs: int) -> None:
    draws = np.random.default_rng(0).normal(0.4, 0.1, (4000, runs))
    intervals = [Sample(tuple(draw)).interval for draw in draws.tolist()]
    covered = np.mean([interval is not None and interval[0] < 0.4 < interval[1] for interval in intervals])
    assert covered == pytest.approx(0.95, abs=0.012)  # 3.5 standard errors of 4,000 draws


@pytest.mark.parametrize(("splits", "seeds"), [(3, 2), (4, 3)])
def test_sample_interval_covers_the_mean_over_splits_with_several_seeds(splits: int, seeds: int) -> None:
    random = np.random.default_rng(0)
    draws = 0.4 + random.normal(0, 0.1, (4000, splits, 1)) + random.normal(0, 0.02, (4000, splits, seeds))
    keys = tuple(str(split) for split in range(splits) for _ in range(seeds))
    samples = [Sample(tuple(draw), splits=keys) for draw in draws.reshape(4000, -1).tolist()]
    intervals = [sample.interval for sample in samples]
    covered = np.mean([interval is not None and interval[0] < 0.4 < interval[1] for interval in intervals])
    assert covered == pytest.approx(0.95, abs=0.012)  # 3.5 standard errors of 4,000 draws


def test_sample_of_one_split_has_the_error_of_its_seeds() -> None:
    values = (0.4, 0.5, 0.6)
    assert Sample(values, splits=("a", "a", "a")).interval == Sample(values).interval


def test_difference_pairs_seeds_and_counts_splits() -> None:
    grid = [{"split": split, "seed": seed} for split in (0, 1) for seed in (0, 1)]
    scores = {"a": (0.1, 0.2, 0.3, 0.4), "b": (0.2, 0.3, 0.5, 0.6)}
    rows = [
        Row(name, point, "complete", scores={"rank1": value})
        for name, values in scores.items()
        for point, value in zip(grid, values, strict=True)
    ]
    (column,) = summarise(rows, ["a", "b"], "a", {"rank1": "max"})
    compared = column.variants["b"]
    assert compared.difference is not None
    assert compared.difference.values == pytest.approx((0.1, 0.1, 0.2, 0.2))
    # Two splits, of 0.1 and 0.2 each: Student's t with one degree of freedom, as of two values.
    assert column.gain(compared) == "+0.150 [-0.485, +0.785] p = 0.2"


@pytest.mark.parametrize(("runs", "tests"), [(2, 1), (3, 1), (10, 1), (10, 4)])
def test_detectable_difference_is_significant_in_80_percent(runs: int, tests: int) -> None:
    unit = Sample(tuple(np.linspace(-1, 1, runs).tolist()))
    detectable = unit.detectable(tests)
    assert unit.deviation is not None and detectable is not None
    true = 0.1 * detectable / unit.deviation
    draws = np.random.default_rng(0).normal(true, 0.1, (3000, runs))
    values = [Sample(tuple(draw)).p for draw in draws.tolist()]
    significant = np.mean([p is not None and p < 0.05 / tests for p in values])
    assert significant == pytest.approx(0.8, abs=0.025)  # 3.4 standard errors of 3,000 draws


def test_holm_corrects_for_the_number_of_tests() -> None:
    # Worked by hand: 0.01 * 4, 0.02 * 3, 0.025 * 2 = 0.05 raised to the one before, 0.5.
    corrected = holm({"a": 0.5, "b": 0.01, "c": None, "d": 0.025, "e": 0.02})
    assert corrected == pytest.approx({"a": 0.5, "b": 0.04, "c": None, "d": 0.06, "e": 0.06})
    draws = np.random.default_rng(0).normal(0, 1, (600, 5, 6))
    smallest = [
        min(filter(None, holm({str(i): Sample(tuple(v)).p for i, v in enumerate(draw)}).values()))
        for draw in draws.tolist()
    ]
    assert np.mean(np.array(smallest) < 0.05) == pytest.approx(0.05, abs=0.025)


@pytest.mark.parametrize("values", [(0.1,), (0.0, 0.0), (0.25, 0.25), (0.25, 0.25 + 1e-16)])
def test_values_without_spread_are_not_tested(values: tuple[float, ...]) -> None:
    assert Sample(values).p is None and Sample(values).detectable() is None


@pytest.mark.parametrize("values", [(), (0.1,), (0.25, 0.25, 0.25), (0, 0)])
def test_sample_without_spread_has_no_interval(values: tuple[float, ...]) -> None:
    sample = Sample(values)
    assert sample.interval is None
    assert (sample.mean is None) == (not values)


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
