"""The results of a comparison: one row per trial, and their statistics by variant."""

import csv
import dataclasses
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import scipy.stats

RESAMPLES = 10_000
CONFIDENCE = 0.95
MIN_PAIRS = 3
"""Smallest number of pairs for which an interval is given."""

NONE = "\N{EN DASH}"
"""Shown for a missing value."""

State = Literal["complete", "failed", "running", "waiting"]


@dataclass(frozen=True, slots=True)
class Row:
    """One trial; ``number`` is None before it is started."""

    variant: str
    grid_point: dict[str, Any]
    """Path and value of the split and of the seed."""

    state: State
    number: int | None = None
    reason: str = ""
    scores: dict[str, float] = field(default_factory=dict)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "Row":
        """Return the row of a record; version 0.1.0 called ``grid_point`` ``place``."""
        renamed = {"grid_point" if key == "place" else key: value for key, value in content.items()}
        return cls(**renamed)

    def as_json(self) -> dict[str, Any]:
        """Return the row as plain JSON values."""
        return dataclasses.asdict(self)

    def score(self, metric: str) -> float | None:
        """Return a score, or None where it is missing or not finite."""
        value = self.scores.get(metric)
        return value if value is not None and math.isfinite(value) else None


@dataclass(frozen=True, slots=True)
class Difference:
    """The difference of a variant from the baseline, over the splits and seeds where both have a score."""

    pairs: tuple[float, ...]
    """Variant minus baseline, one for each split and seed."""

    @property
    def mean(self) -> float | None:
        """The mean difference; None without a pair."""
        return statistics.fmean(self.pairs) if self.pairs else None

    @property
    def interval(self) -> tuple[float, float] | None:
        """The 95 % percentile bootstrap interval of the mean, with a fixed seed; None with too few pairs."""
        if len(self.pairs) < MIN_PAIRS:
            return None
        interval = scipy.stats.bootstrap(
            (np.asarray(self.pairs),),
            np.mean,
            n_resamples=RESAMPLES,
            confidence_level=CONFIDENCE,
            method="percentile",
            random_state=np.random.default_rng(0),
        ).confidence_interval
        return float(interval.low), float(interval.high)


@dataclass(frozen=True, slots=True)
class Summary:
    """One variant under one metric."""

    values: tuple[float, ...]
    """One for each trial that has the score."""

    difference: Difference | None
    """None for the baseline."""

    best: bool
    """Whether no other variant has a better mean."""

    @property
    def mean(self) -> float | None:
        """The mean over the trials; None without a trial."""
        return statistics.fmean(self.values) if self.values else None

    @property
    def deviation(self) -> float | None:
        """The standard deviation over the trials (n - 1); None with fewer than two."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None


@dataclass(frozen=True, slots=True)
class Column:
    """One metric: its summary for each variant, and the decimals that distinguish its values."""

    metric: str
    decimals: int
    variants: dict[str, Summary]

    def number(self, value: float | None, *, sign: bool = False) -> str:
        """Return a value with the decimals of this column; a dash for None."""
        return NONE if value is None else f"{value:{'+' if sign else ''}.{self.decimals}f}"

    def spread(self, summary: Summary) -> str:
        """Return mean ± standard deviation."""
        return f"{self.number(summary.mean)} ± {self.number(summary.deviation)}"

    def gain(self, difference: Difference) -> str:
        """Return the mean difference and its interval."""
        if difference.mean is None:
            return NONE
        interval = difference.interval
        ends = [NONE] if interval is None else [self.number(end, sign=True) for end in interval]
        return f"{self.number(difference.mean, sign=True)} [{', '.join(ends)}]"


def metrics_of(rows: Sequence[Row]) -> list[str]:
    """Return every score that any trial has, in the order of first appearance."""
    return list(dict.fromkeys(metric for row in rows for metric in row.scores))


def summarise(
    rows: Sequence[Row],
    variants: Sequence[str],
    baseline: str,
    metrics: Mapping[str, Literal["max", "min"]],
) -> list[Column]:
    """Return one column per metric; ``metrics`` says which way each one is better."""
    return [_column(rows, variants, baseline, metric, mode) for metric, mode in metrics.items()]


def _column(
    rows: Sequence[Row], variants: Sequence[str], baseline: str, metric: str, mode: Literal["max", "min"]
) -> Column:
    scores: dict[str, dict[str, float]] = {name: {} for name in variants}
    for row in rows:
        value = row.score(metric)
        if row.variant in scores and value is not None:
            scores[row.variant][json.dumps(row.grid_point)] = value
    means = {name: statistics.fmean(values.values()) for name, values in scores.items() if values}
    best = (max if mode == "max" else min)(means.values(), default=None)
    base = scores[baseline]
    summaries = {
        name: Summary(
            tuple(values.values()),
            Difference(tuple(values[point] - base[point] for point in values if point in base))
            if name != baseline
            else None,
            best=means.get(name) == best is not None,
        )
        for name, values in scores.items()
    }
    largest = max((abs(value) for values in scores.values() for value in values.values()), default=0.0)
    return Column(metric, _decimals(largest), summaries)


def _decimals(largest: float) -> int:
    """Return the decimals that show three digits of the largest value."""
    return min(9, max(0, 2 - math.floor(math.log10(largest)))) if largest else 3


def write(rows: Sequence[Row], folder: Path) -> None:
    """Write ``results.csv`` and ``results.json``, one row per trial."""
    content = json.dumps([row.as_json() for row in rows], indent=2)
    _replace(folder / "results.json", content + "\n")
    metrics = metrics_of(rows)
    paths = list(rows[0].grid_point) if rows else []
    temporary = folder / "results.csv.tmp"
    with temporary.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["trial", "variant", *paths, "state", "reason", *metrics])
        for row in rows:
            point = [row.grid_point[path] for path in paths]
            scores = [row.scores.get(metric, "") for metric in metrics]
            number = "" if row.number is None else row.number
            writer.writerow([number, row.variant, *point, row.state, row.reason, *scores])
    temporary.replace(folder / "results.csv")


def _replace(file: Path, content: str) -> None:
    temporary = file.with_name(f"{file.name}.tmp")
    temporary.write_text(content)
    temporary.replace(file)
