"""What a comparison found: one row a trial, and what the rows say of each variant."""

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
FEWEST_PAIRS = 3
"""Pairs below which no interval is given."""

NONE = "\N{EN DASH}"
"""What stands for a value that there is not."""

State = Literal["complete", "failed", "running", "waiting"]


@dataclass(frozen=True, slots=True)
class Row:
    """One trial as it stands; ``number`` is None while it has not been started."""

    variant: str
    place: dict[str, Any]
    state: State
    number: int | None = None
    reason: str = ""
    scores: dict[str, float] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """The row as plain JSON values."""
        return dataclasses.asdict(self)

    def score(self, metric: str) -> float | None:
        """A score, or None where there is none that is finite."""
        value = self.scores.get(metric)
        return value if value is not None and math.isfinite(value) else None


@dataclass(frozen=True, slots=True)
class Difference:
    """How a variant differs from the baseline, over the splits and seeds where both have a score."""

    pairs: tuple[float, ...]
    """Variant minus baseline, one a split and seed."""

    @property
    def mean(self) -> float | None:
        """The mean difference, or None without a pair."""
        return statistics.fmean(self.pairs) if self.pairs else None

    @property
    def interval(self) -> tuple[float, float] | None:
        """The 95 % percentile bootstrap interval of the mean, seeded; None with fewer than three pairs."""
        if len(self.pairs) < FEWEST_PAIRS:
            return None
        found = scipy.stats.bootstrap(
            (np.asarray(self.pairs),),
            np.mean,
            n_resamples=RESAMPLES,
            confidence_level=CONFIDENCE,
            method="percentile",
            random_state=np.random.default_rng(0),
        ).confidence_interval
        return float(found.low), float(found.high)


@dataclass(frozen=True, slots=True)
class Summary:
    """One variant under one metric."""

    values: tuple[float, ...]
    """One a trial that has the score."""

    difference: Difference | None
    """None for the baseline."""

    best: bool
    """Whether no other variant has a better mean."""

    @property
    def mean(self) -> float | None:
        """The mean over the trials, or None without one."""
        return statistics.fmean(self.values) if self.values else None

    @property
    def deviation(self) -> float | None:
        """The standard deviation over the trials (n - 1), or None with fewer than two."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None


@dataclass(frozen=True, slots=True)
class Column:
    """One metric: its summary for each variant, and how many decimals tell its values apart."""

    metric: str
    decimals: int
    variants: dict[str, Summary]

    def number(self, value: float | None, *, sign: bool = False) -> str:
        """Write a value with the decimals of this column; a dash where there is none."""
        return NONE if value is None else f"{value:{'+' if sign else ''}.{self.decimals}f}"

    def spread(self, summary: Summary) -> str:
        """Mean ± standard deviation."""
        return f"{self.number(summary.mean)} ± {self.number(summary.deviation)}"

    def gain(self, difference: Difference) -> str:
        """Mean difference and its interval."""
        if difference.mean is None:
            return NONE
        found = difference.interval
        edges = f"[{NONE}]" if found is None else f"[{', '.join(self.number(e, sign=True) for e in found)}]"
        return f"{self.number(difference.mean, sign=True)} {edges}"


def metrics_of(rows: Sequence[Row]) -> list[str]:
    """Every score that any trial has, in the order of their first appearance."""
    return list(dict.fromkeys(metric for row in rows for metric in row.scores))


def summarise(
    rows: Sequence[Row],
    variants: Sequence[str],
    baseline: str,
    metrics: Mapping[str, Literal["max", "min"]],
) -> list[Column]:
    """Summarise each metric (which says which way it is better) for each variant."""
    return [_column(rows, variants, baseline, metric, mode) for metric, mode in metrics.items()]


def _column(
    rows: Sequence[Row], variants: Sequence[str], baseline: str, metric: str, mode: Literal["max", "min"]
) -> Column:
    scores: dict[str, dict[str, float]] = {name: {} for name in variants}
    for row in rows:
        value = row.score(metric)
        if row.variant in scores and value is not None:
            scores[row.variant][json.dumps(row.place)] = value
    means = {name: statistics.fmean(found.values()) for name, found in scores.items() if found}
    best = (max if mode == "max" else min)(means.values(), default=None)
    base = scores[baseline]
    summaries = {
        name: Summary(
            tuple(found.values()),
            Difference(tuple(found[place] - base[place] for place in found if place in base))
            if name != baseline
            else None,
            best=means.get(name) == best is not None,
        )
        for name, found in scores.items()
    }
    largest = max((abs(value) for found in scores.values() for value in found.values()), default=0.0)
    return Column(metric, _decimals(largest), summaries)


def _decimals(largest: float) -> int:
    """As many decimals as show three digits of the largest value."""
    return min(9, max(0, 2 - math.floor(math.log10(largest)))) if largest else 3


def write(rows: Sequence[Row], folder: Path) -> None:
    """Write ``results.csv`` and ``results.json``: one row a trial."""
    content = json.dumps([row.as_json() for row in rows], indent=2)
    _replace(folder / "results.json", content + "\n")
    metrics = metrics_of(rows)
    paths = list(rows[0].place) if rows else []
    temporary = folder / "results.csv.tmp"
    with temporary.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["trial", "variant", *paths, "state", "reason", *metrics])
        for row in rows:
            places = [row.place[path] for path in paths]
            scores = [row.scores.get(metric, "") for metric in metrics]
            number = "" if row.number is None else row.number
            writer.writerow([number, row.variant, *places, row.state, row.reason, *scores])
    temporary.replace(folder / "results.csv")


def _replace(file: Path, content: str) -> None:
    temporary = file.with_name(f"{file.name}.tmp")
    temporary.write_text(content)
    temporary.replace(file)
