"""The study of the finals of a sweep, the choice of the winner, and the scores of its runs."""

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from optuna.trial import FrozenTrial

from orchestrator.study import attributes
from orchestrator.study.grid import GridStudy
from orchestrator.study.statistics import Row, Sample, metrics_of
from orchestrator.study.trial_report import Trained, TrialReport
from orchestrator.trainable import score_parts

SCORE_PREFIX = "test/"


class FinalsStudy(GridStudy):
    """The runs of the finals: trained to their end and validated, but not scored on the targets."""

    scores_trials: ClassVar[bool] = False

    def record_scores(self, number: int, scores: Mapping[str, float]) -> None:
        """Record the scores of a run, which has ended."""
        self.study.set_user_attr(f"{attributes.FINAL_SCORES}{number}", dict(scores))

    def scores(self, trial: FrozenTrial) -> dict[str, float]:
        """Return the scores of a run of the winner; empty for other runs."""
        return dict(self.study.user_attrs.get(f"{attributes.FINAL_SCORES}{trial.number}", {}))

    def record_completion(self, number: int, last: TrialReport | None) -> str | None:
        """Record a trained run as complete, or return what it lacks."""
        if not isinstance(last, Trained):
            return "it did not train to its end"
        results = self.results(self.trial(number))
        for metric in self._comparison.metrics:
            if metric not in results:
                return f"{metric} is missing in the last epoch"
            if not math.isfinite(results[metric]):
                return f"{metric} is {results[metric]} in the last epoch"
        self._tell(number, values=0.0)  # Optuna requires a value; the study has no objective
        return None


@dataclass(frozen=True, slots=True)
class Finalist(Sample):
    """A trial of the sweep in the finals, with the validation score of each of its runs."""

    name: str
    runs: tuple[int, ...]
    """Numbers of the runs in the study of the finals, in the order of ``values``."""

    mode: Literal["max", "min"]

    @property
    def bound(self) -> float:
        """The mean, worse by its standard error; the mean alone of a single run."""
        assert self.mean is not None
        return self._sign * self.mean - (self.error or 0.0)

    @property
    def best_run(self) -> int:
        """Number of the run with the best validation score on the first split, the first one of equal runs.

        Scores on different splits are of different identities. Candidates of one split can be compared with
        one another at the gate; on another split, they were trained on test identities of the first one.
        """
        signed = [
            (self._sign * value, -run)
            for value, run, split in zip(self.values, self.runs, self.splits, strict=True)
            if split == self.splits[0]
        ]
        return -max(signed)[1]

    @property
    def _sign(self) -> int:
        return 1 if self.mode == "max" else -1


def finalists(rows: Sequence[Row], metric: str, mode: Literal["max", "min"]) -> list[Finalist]:
    """Return the finalists with a complete run, the winner first.

    The winner has the best mean of the validation score minus its standard error, among those with runs on
    the most splits, and of these among those with the most runs: a mean over fewer splits may be over easier
    ones, and fewer runs may have no error.
    """
    runs: dict[str, list[tuple[float, int, str]]] = {}
    for row in rows:
        value = row.score(metric)
        if value is not None and row.number is not None:
            runs.setdefault(row.variant, []).append((value, row.number, row.split))
    found = []
    for name, of_variant in runs.items():
        values, numbers, splits = zip(*of_variant, strict=True)
        found.append(Finalist(values=values, name=name, runs=numbers, splits=splits, mode=mode))

    def order(finalist: Finalist) -> tuple[float, ...]:
        return -len(set(finalist.splits)), -len(finalist.values), -finalist.bound

    return sorted(found, key=order)


@dataclass(frozen=True, slots=True)
class MatrixCell(Sample):
    """The scores of the winner's runs on one target by one metric."""

    train: str
    """The set that they were trained on."""

    target: str
    metric: str

    @property
    def name(self) -> str:
        """The name of the score."""
        return f"{SCORE_PREFIX}{self.target}/{self.metric}"


def score_matrix(train: str, runs: Sequence[Row]) -> list[MatrixCell]:
    """Return a cell for each score of the runs, ``test/<target>/<metric>``, from its finite values."""
    cells = []
    for name in metrics_of(runs):
        target, metric = score_parts(name)
        found = [(value, run.split) for run in runs if (value := run.score(name)) is not None]
        values, splits = zip(*found, strict=True) if found else ((), ())
        cells.append(MatrixCell(values=values, splits=splits, train=train, target=target, metric=metric))
    return cells


def write_matrix(cells: Sequence[MatrixCell], file: Path) -> None:
    """Write one line for each cell: its mean, standard deviation, runs and 95 % interval."""
    temporary = file.with_name(f"{file.name}.tmp")
    with temporary.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["train", "target", "metric", "runs", "mean", "deviation", "low", "high"])
        for cell in cells:
            low, high = cell.interval or ("", "")
            deviation = "" if cell.deviation is None else cell.deviation
            writer.writerow(
                [cell.train, cell.target, cell.metric, len(cell.values), cell.mean, deviation, low, high]
            )
    temporary.replace(file)
