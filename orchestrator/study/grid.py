"""The study of a comparison: which of its trials are left, and what each one scored."""

from collections.abc import Mapping
from typing import Any, ClassVar

from optuna.trial import FrozenTrial, TrialState

from orchestrator.config.comparison import Cell, Comparison
from orchestrator.execution.trial import SCORES
from orchestrator.storage.directory import JobDirectory
from orchestrator.study import statistics as results
from orchestrator.study.base import Study, Suggestion
from orchestrator.study.statistics import Row, State

_CELL = "cell"
"""User attribute of a trial with the values that make it, in order."""

_LAST = "last"
"""User attribute of a trial with the trainable's metrics in its last epoch."""

_FIGURES = 4
"""Scores told in one line, at most."""

_STATES: dict[TrialState, State] = {TrialState.RUNNING: "running", TrialState.COMPLETE: "complete"}


class ComparisonStudy(Study):
    """Hands out the trials of the file in its order, each until it is scored.

    A trial that failed under an earlier driver is tried again under a new number: scored again where it was
    trained, else from the beginning.
    """

    scored: ClassVar[bool] = True

    def __init__(self, comparison: Comparison, directory: JobDirectory) -> None:
        super().__init__(comparison, directory)
        self._comparison = comparison
        self._cells = {_key(cell.values): cell for cell in comparison.cells}
        self._failed_before = {trial.number for trial in self.trials if trial.state == TrialState.FAIL}

    @property
    def total(self) -> int:
        """Variants times splits times seeds."""
        return len(self._cells)

    def rows(self) -> list[Row]:
        """Every trial of the file as it stands, in its order."""
        latest = self._latest()
        return [self._row(cell, latest.get(key)) for key, cell in self._cells.items()]

    def count(self) -> dict[str, int]:
        """Trials of the file by state: running, complete, failed; not those that are to be tried again."""
        states = [row.state for row in self.rows()]
        return {state: states.count(state) for state in ("running", "complete", "failed")}

    def left(self) -> int:
        """How many trials are still to be trained or scored."""
        counts = self.count()
        return self.total - counts["complete"] - counts["failed"]

    def ask(self) -> Suggestion | None:
        """The next trial: interrupted ones first, then those that are left, in the order of the file."""
        latest = self._latest()
        while self._interrupted:
            number = self._interrupted.pop(0)
            key = _key(self.trials[number].user_attrs.get(_CELL, {}))  # a driver may die before it is set
            if key in self._cells and latest[key].number == number:
                return self._suggestion(number, self._cells[key])
        for key, cell in self._cells.items():
            before = latest.get(key)
            if before is None or before.number in self._failed_before:
                trial = self.study.ask()
                self._live[trial.number] = trial
                self._known = None
                self._note(trial.number, _CELL, cell.values)
                done = before.user_attrs if before is not None else {}
                for kept in {"checkpoint", _LAST} & done.keys():
                    self._note(trial.number, kept, done[kept])
                return self._suggestion(trial.number, cell)
        return None

    def report(self, number: int, result: Mapping[str, Any]) -> bool:
        """Keep the metrics of the last epoch: every trial of a comparison trains to its end."""
        known = self._comparison.implementation.metrics
        last = {metric: float(result[metric]) for metric in known if metric in result}
        self._note(number, _LAST, last)
        return False

    def complete(self, number: int, result: Mapping[str, Any]) -> str | None:
        """Tell that a trial was scored."""
        if SCORES not in self.trials[number].user_attrs:
            return "it ended without scores"
        self._finish(number, values=0.0)  # Optuna wants a value; a comparison has no objective
        return None

    def end(self, number: int, result: Mapping[str, Any] | None, died: bool = False) -> None:
        """Tell how a trial ended, and write the results of all so far."""
        super().end(number, result, died)
        results.write(self.rows(), self._directory.path)

    def figures(self, ended: FrozenTrial) -> dict[str, float]:
        """What a trial is compared by: scores, and the metrics of its last epoch that the file names."""
        last = ended.user_attrs.get(_LAST, {})
        asked = {metric: last[metric] for metric in self._comparison.metrics if metric in last}
        return asked | self.scores(ended)

    @property
    def suggested(self) -> list[FrozenTrial]:
        """All but those of a driver that died before it said what they were."""
        return [trial for trial in self.trials if _CELL in trial.user_attrs]

    def values(self, trial: FrozenTrial) -> dict[str, Any]:
        """The cell."""
        return dict(trial.user_attrs[_CELL])

    def parameters(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """The cell, and the settings of its variant."""
        return {**values, **self._comparison.variants[values["variant"]]}

    def standing(self) -> str:
        """The mean of each variant so far, with its number of trials."""
        return "; ".join(self._means()) or "no scores yet"

    def describe(self, ended: FrozenTrial) -> str:
        """Its scores and the means so far, or why it has none."""
        if ended.state != TrialState.COMPLETE:
            return str(ended.user_attrs.get("reason", "it will go on when the comparison is continued"))
        scores = self.figures(ended)
        shown = ", ".join(f"{metric} {scores[metric]:.4g}" for metric in self._shown() if metric in scores)
        return f"{shown} | means so far: {self.standing()}"

    def metrics(self) -> list[str]:
        """Metrics of the table: those of the file that any trial has, else all that there are."""
        known = results.metrics_of(self.rows())
        return [metric for metric in self._comparison.metrics if metric in known] or known

    def _shown(self) -> list[str]:
        return self.metrics()[:_FIGURES]

    def _means(self) -> list[str]:
        comparison = self._comparison
        columns = results.summarise(
            self.rows(),
            list(comparison.variants),
            comparison.baseline,
            {metric: comparison.mode(metric) for metric in self._shown()[:1]},
        )
        return [
            f"{column.metric} "
            + ", ".join(
                f"{name} {column.number(each.mean)} ({len(each.values)})"
                for name, each in column.variants.items()
                if each.values
            )
            for column in columns
        ]

    def _latest(self) -> dict[str, FrozenTrial]:
        """The last trial of each cell that was ever run."""
        return {_key(trial.user_attrs[_CELL]): trial for trial in self.trials if _CELL in trial.user_attrs}

    def _row(self, cell: Cell, trial: FrozenTrial | None) -> Row:
        place = dict(cell.place)
        if trial is None:
            return Row(cell.variant, place, "waiting")
        state: State = _STATES.get(trial.state, "failed")
        if trial.number in self._failed_before:
            state = "waiting"
        reason = trial.user_attrs.get("reason", "")
        scores = self.figures(trial) if state == "complete" else {}
        return Row(cell.variant, place, state, trial.number, reason, scores)

    def _suggestion(self, number: int, cell: Cell) -> Suggestion:
        config = self._comparison.cell_config(cell).model_dump(mode="json")
        trained = "checkpoint" in self.trials[number].user_attrs
        return Suggestion(number, cell.values, config, self.checkpoint(number).path if trained else None)


def _key(values: Mapping[str, Any]) -> str:
    return repr(sorted(values.items()))
