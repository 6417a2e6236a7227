"""The study of a comparison: hands out every variant on every split and seed, and collects the scores."""

from collections.abc import Mapping
from typing import Any, ClassVar

from optuna.trial import FrozenTrial, TrialState

from orchestrator.config.comparison import Cell, Comparison
from orchestrator.console.tables import format_number
from orchestrator.storage.directory import JobDirectory
from orchestrator.study import attributes, statistics
from orchestrator.study.base import Study, Suggestion
from orchestrator.study.selection import is_foreign
from orchestrator.study.statistics import Row, State
from orchestrator.study.trial_report import EpochEnded, TrialReport
from orchestrator.trainable import ERROR

_MAX_SCORES = 4
"""Scores in one line, at most."""

_STATES: dict[TrialState, State] = {TrialState.RUNNING: "running", TrialState.COMPLETE: "complete"}


class GridStudy(Study):
    """The trials of a comparison, in the order of the file; each one runs until it is scored.

    A trial that failed under an earlier driver is retried under a new number. If it was trained, it is only
    scored; otherwise it starts from the beginning.
    """

    scores_trials: ClassVar[bool] = True

    def __init__(self, comparison: Comparison, directory: JobDirectory) -> None:
        super().__init__(comparison, directory)
        self._comparison = comparison
        self._cells = {_key(cell.values): cell for cell in comparison.cells}
        self._failed_before = {
            trial.number for trial in self.trials if trial.state == TrialState.FAIL or is_foreign(trial)
        }

    @property
    def total(self) -> int:
        """The number of variants times splits times seeds."""
        return len(self._cells)

    def rows(self) -> list[Row]:
        """Return every trial of the file in its present state, in the order of the file."""
        latest = self._latest()
        return [self._row(cell, latest.get(key)) for key, cell in self._cells.items()]

    def count(self) -> dict[str, int]:
        """Return the number of trials by state: running, complete, failed; not those to try again."""
        states = [row.state for row in self.rows()]
        return {state: states.count(state) for state in ("running", "complete", "failed")}

    def remaining(self) -> int:
        """Return how many trials have not been scored."""
        counts = self.count()
        return self.total - counts["complete"] - counts["failed"]

    def ask(self) -> Suggestion | None:
        """Return the next trial: interrupted ones first, then the others in the order of the file."""
        latest = self._latest()
        while self._interrupted:
            number = self._interrupted.pop(0)
            # A driver may have died before it set the cell.
            key = _key(self.trial(number).user_attrs.get(attributes.CELL, {}))
            if key in self._cells and latest[key].number == number:
                return self._suggestion(number, self._cells[key])
        for key, cell in self._cells.items():
            before = latest.get(key)
            if before is None or before.number in self._failed_before:
                return self._suggestion(self._start(cell, before), cell)
        return None

    def should_stop(self, number: int, report: EpochEnded) -> bool:
        """Record the metrics of the last epoch; return False, because every trial trains to its end."""
        metrics = self._comparison.trial_metrics
        last = {
            metric: float(value)
            for metric, value in report.metrics.items()
            if metric.removesuffix(ERROR) in metrics
        }
        self._set(number, attributes.LAST_METRICS, last)
        return False

    def record_completion(self, number: int, last: TrialReport | None) -> str | None:
        """Record a scored trial as complete, or return what it lacks."""
        if attributes.SCORES not in self.trial(number).user_attrs:
            return "it ended without scores"
        self._tell(number, values=0.0)  # Optuna requires a value; a comparison has no objective
        return None

    def on_trial_end(self, number: int, last: TrialReport | None, died: bool = False) -> None:
        """Record how a trial ended, and write the results so far."""
        super().on_trial_end(number, last, died)
        statistics.write(self.rows(), self._directory.path)

    def results(self, trial: FrozenTrial) -> dict[str, float]:
        """Return the scores of a trial, and the metrics of its last epoch that the file names."""
        last = trial.user_attrs.get(attributes.LAST_METRICS, {})
        metrics = {metric: last[metric] for metric in self._comparison.metrics if metric in last}
        return metrics | self.scores(trial)

    @property
    def started_trials(self) -> list[FrozenTrial]:
        """All trials but those of a driver that died before it set their cell."""
        return [trial for trial in self.trials if attributes.CELL in trial.user_attrs]

    def values(self, trial: FrozenTrial) -> dict[str, Any]:
        """Return the cell."""
        return dict(trial.user_attrs[attributes.CELL])

    def parameters(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return the cell, and the settings of its variant."""
        return {**values, **self._comparison.variants[values["variant"]]}

    def headline(self) -> str:
        """Return the mean of each variant so far, with its number of trials."""
        return "; ".join(self._means()) or "no scores yet"

    def describe(self, trial: FrozenTrial) -> str:
        """Return the scores of a trial and the means so far, or why it has none."""
        if trial.state != TrialState.COMPLETE:
            return attributes.reason(trial) or "it resumes when the command is rerun"
        scores = self.results(trial)
        shown = ", ".join(
            f"{metric} {format_number(scores[metric])}" for metric in self._shown() if metric in scores
        )
        return f"{shown} | means so far: {self.headline()}"

    def metrics(self) -> list[str]:
        """Return the metrics of the table: those of the file that any trial has, else all of them."""
        available = statistics.metrics_of(self.rows())
        return [metric for metric in self._comparison.metrics if metric in available] or available

    def _shown(self) -> list[str]:
        return self.metrics()[:_MAX_SCORES]

    def _means(self) -> list[str]:
        comparison = self._comparison
        columns = statistics.summarise(
            self.rows(),
            list(comparison.variants),
            comparison.baseline,
            {metric: comparison.mode(metric) for metric in self._shown()[:1]},
        )
        return [
            f"{column.metric} "
            + ", ".join(
                f"{name} {column.number(summary.mean)} ({len(summary.values)})"
                for name, summary in column.variants.items()
                if summary.values
            )
            for column in columns
        ]

    def _latest(self) -> dict[str, FrozenTrial]:
        """Return the last trial of each cell that was ever run."""
        return {
            _key(trial.user_attrs[attributes.CELL]): trial
            for trial in self.trials
            if attributes.CELL in trial.user_attrs
        }

    def _row(self, cell: Cell, trial: FrozenTrial | None) -> Row:
        point = dict(cell.grid_point)
        if trial is None:
            return Row(cell.variant, point, "waiting")
        state: State = "failed" if is_foreign(trial) else _STATES.get(trial.state, "failed")
        if trial.number in self._failed_before:
            state = "waiting"
        reason = attributes.reason(trial)
        scores = self.results(trial) if state == "complete" else {}
        return Row(cell.variant, point, state, trial.number, reason, scores)

    def _start(self, cell: Cell, before: FrozenTrial | None) -> int:
        """Start a trial of a cell; return its number. It is trained already if the one before it was."""
        with self.transaction():
            trial = self.study.ask()
            self._live[trial.number] = trial
            self._set(trial.number, attributes.CELL, cell.values)
            attrs = before.user_attrs if before is not None else {}
            for key in {attributes.CHECKPOINT, attributes.LAST_METRICS} & attrs.keys():
                self._set(trial.number, key, attrs[key])
        return int(trial.number)

    def _suggestion(self, number: int, cell: Cell) -> Suggestion:
        config = self._comparison.cell_config(cell).model_dump(mode="json", by_alias=True)
        trained = attributes.CHECKPOINT in self.trial(number).user_attrs
        return Suggestion(number, cell.values, config, self.checkpoint(number).path if trained else None)


def _key(values: Mapping[str, Any]) -> str:
    return repr(sorted(values.items()))
