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

import scipy.optimize
import scipy.stats

from orchestrator.config.comparison import SEED

CONFIDENCE = 0.95
POWER = 0.8
"""Share of comparisons in which a difference of `Sample.detectable` is significant."""

_ROUNDING = 1e-9
"""Spread relative to the mean below which values count as equal."""

MIN_VALUES = 2
"""Smallest number of values for which a deviation and an interval are given."""

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

    @property
    def split(self) -> str:
        """The grid point without its seed, JSON: runs with the same one have the same identities."""
        return json.dumps({path: value for path, value in self.grid_point.items() if path != SEED})

    def score(self, metric: str) -> float | None:
        """Return a score, or None where it is missing or not finite."""
        value = self.scores.get(metric)
        return value if value is not None and math.isfinite(value) else None


@dataclass(frozen=True, slots=True)
class Sample:
    """Values of repeated runs: their mean, and how well the runs determine it."""

    values: tuple[float, ...]
    splits: tuple[str, ...] = field(default=(), kw_only=True)
    """The split of each value. Without it, no two values have a split in common."""

    @property
    def mean(self) -> float | None:
        """The mean over splits of the mean of each split; None without a value."""
        return statistics.fmean(self._independent) if self.values else None

    @property
    def deviation(self) -> float | None:
        """The standard deviation of the values (n - 1); None with fewer than two of them."""
        return statistics.stdev(self.values) if len(self.values) >= MIN_VALUES else None

    @property
    def error(self) -> float | None:
        """The standard error of the mean; None with fewer than two values.

        Values of one split are of the same identities, so their mean counts as one value. If all are of one
        split, the error is that of other seeds on these identities.
        """
        values = self._independent
        return statistics.stdev(values) / math.sqrt(len(values)) if len(values) >= MIN_VALUES else None

    @property
    def interval(self) -> tuple[float, float] | None:
        """The 95 % interval of the mean by Student's t; None with fewer than two values, or if all are equal.

        A percentile bootstrap of three or four values covers the mean in 75 to 80 % of cases instead of 95.
        """
        if (found := self._mean_and_error) is None:
            return None
        mean, error = found
        width = float(scipy.stats.t.ppf((1 + CONFIDENCE) / 2, len(self._independent) - 1)) * error
        return mean - width, mean + width

    @property
    def p(self) -> float | None:
        """Probability of a mean at least as far from 0 if the true one is 0, by Student's t test.

        None with fewer than two values, or if all are equal.
        """
        if (found := self._mean_and_error) is None:
            return None
        mean, error = found
        return 2 * float(scipy.stats.t.sf(abs(mean) / error, len(self._independent) - 1))

    def detectable(self, tests: int = 1) -> float | None:
        """Return the true mean that the t test finds in 80 % of repetitions, from the spread of the values.

        It finds a mean if p is below 0.05, divided by the number of ``tests``. None with fewer than two
        values, or if all are equal.
        """
        if (found := self._mean_and_error) is None:
            return None
        degrees = len(self._independent) - 1
        critical = scipy.stats.t.isf((1 - CONFIDENCE) / 2 / tests, degrees)

        def missing_power(shift: float) -> float:
            return POWER - float(scipy.stats.nct.sf(critical, degrees, shift))

        return float(scipy.optimize.brentq(missing_power, 0, 4 * critical + 4)) * found[1]

    @property
    def _mean_and_error(self) -> tuple[float, float] | None:
        """Mean and standard error; None where at most rounding distinguishes the values."""
        mean, error = self.mean, self.error
        return None if mean is None or error is None or error <= _ROUNDING * abs(mean) else (mean, error)

    @property
    def _independent(self) -> Sequence[float]:
        """The mean of each split; the values themselves if all are of one split."""
        by_split: dict[str, list[float]] = {}
        for split, value in zip(self.splits, self.values, strict=bool(self.splits)):
            by_split.setdefault(split, []).append(value)
        return list(map(statistics.fmean, by_split.values())) if len(by_split) > 1 else self.values


@dataclass(frozen=True, slots=True)
class Summary(Sample):
    """One variant under one metric, with one value for each trial that has the score."""

    difference: Sample | None
    """Variant minus baseline, for each split and seed where both have a score; None for the baseline."""

    best: bool
    """Whether no other variant has a better mean."""

    corrected_p: float | None = None
    """p of the difference, corrected by `holm` for all variants; None where `Sample.p` is."""


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
        if summary.mean is None:
            return NONE
        return f"{self.number(summary.mean)} ± {self.number(summary.deviation)}"

    def gain(self, summary: Summary) -> str:
        """Return the mean difference from the baseline, its interval and its corrected p."""
        difference = summary.difference
        if difference is None or difference.mean is None:
            return NONE
        interval = difference.interval
        ends = [NONE] if interval is None else [self.number(end, sign=True) for end in interval]
        text = f"{self.number(difference.mean, sign=True)} [{', '.join(ends)}]"
        p = summary.corrected_p
        return text if p is None else f"{text} p < 0.001" if p < 0.001 else f"{text} p = {p:.2g}"

    @property
    def detectable(self) -> float | None:
        """A true difference from the baseline that is found in 80 % of such comparisons, of any variant.

        It is found if p is below 0.05, corrected for all variants.
        """
        found = [each.difference.detectable(self.tests) for each in self.variants.values() if each.difference]
        return max((each for each in found if each is not None), default=None)

    @property
    def tests(self) -> int:
        """The number of differences that are tested."""
        return max(1, sum(each.corrected_p is not None for each in self.variants.values()))


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
    splits: dict[str, str] = {}
    for row in rows:
        value = row.score(metric)
        if row.variant in scores and value is not None:
            point = json.dumps(row.grid_point)
            scores[row.variant][point], splits[point] = value, row.split

    def sample(values: Mapping[str, float]) -> Sample:
        return Sample(tuple(values.values()), splits=tuple(splits[point] for point in values))

    samples = {name: sample(values) for name, values in scores.items()}
    means = [each.mean for each in samples.values() if each.mean is not None]
    best = (max if mode == "max" else min)(means, default=None)
    base = scores[baseline]
    differences = {
        name: sample({point: values[point] - base[point] for point in values if point in base})
        for name, values in scores.items()
    }
    corrected = holm({name: each.p for name, each in differences.items() if name != baseline})
    summaries = {
        name: Summary(
            each.values,
            None if name == baseline else differences[name],
            best=each.mean == best is not None,
            corrected_p=corrected.get(name),
            splits=each.splits,
        )
        for name, each in samples.items()
    }
    largest = max((abs(value) for values in scores.values() for value in values.values()), default=0.0)
    return Column(metric, decimals(largest), summaries)


def holm(values: Mapping[str, float | None]) -> dict[str, float | None]:
    """Correct p-values of tests for their number (Holm, 1979); those that are None do not count.

    If no true difference exists, the smallest corrected value is below 0.05 in at most 5 % of cases.
    """
    ordered = sorted((value, name) for name, value in values.items() if value is not None)
    corrected: dict[str, float | None] = dict.fromkeys(values)
    largest = 0.0
    for rank, (value, name) in enumerate(ordered):
        largest = max(largest, min(1.0, (len(ordered) - rank) * value))
        corrected[name] = largest
    return corrected


def decimals(largest: float) -> int:
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
