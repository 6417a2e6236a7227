"""The outcome of a sweep, and how it is shown."""

import shlex
from typing import Any

from pydantic import BaseModel, Field

from orchestrator.console.progress import Progress
from orchestrator.console.tables import format_estimate, format_number, objective_texts, pairs, pareto_table
from orchestrator.drivers.base import Outcome
from orchestrator.drivers.comparison import run_label
from orchestrator.drivers.finals import FinalsOutcome
from orchestrator.report.finals import Table, finalists_table, matrix_table
from orchestrator.study.finals import MatrixCell, score_matrix
from orchestrator.study.statistics import Row
from orchestrator.study.trial_report import trial_name
from orchestrator.tracking import preflight
from orchestrator.tracking.model_registry import RegisteredModel
from orchestrator.trainable import ERROR

_MAX_SHOWN = 12
"""Trials of a Pareto set on the terminal."""


class BestTrial(BaseModel):
    """The trial with the best objective, whose model was scored and registered if there are no finals."""

    trial: int
    parameters: dict[str, Any]


class SweepOutcome(Outcome):
    """The outcome of a sweep."""

    sweep: str
    budget: dict[str, Any]
    trials: dict[str, int]
    best: BestTrial
    objective: dict[str, float]
    scores: dict[str, float]
    model: RegisteredModel | None
    errors: dict[str, float] = Field(default={})
    """Standard errors of the objectives of the best trial, by metric, where they were reported."""

    pareto_set: list[dict[str, Any]] = Field(default=[])
    """For several objectives, the best trials: ``trial``, objectives, ``errors`` and ``parameters``."""

    infeasible: int = 0
    """Number of complete trials that violate a constraint."""

    notes: list[str] = Field(default=[])
    """What to keep in mind about the best trial, one line each."""

    finals: dict[str, Any] | None = None
    """The settings of the finals."""

    winner: FinalsOutcome | None = None
    """What the finals found."""

    crossed: tuple[dict[str, Any], ...] = ()
    """One row for each run of the winner on another training set; see `orchestrator.study.statistics.Row`."""

    trouble: list[str] = Field(default=[])
    """What did not work on other training sets, one line each."""

    @property
    def matrix(self) -> list[MatrixCell]:
        """The scores of the winner, from each training set on each target."""
        rows: dict[str, list[Row]] = {}
        for row in map(Row.from_json, self.crossed):
            rows.setdefault(row.variant, []).append(row)
        cells = self.winner.matrix if self.winner else []
        for train, of_set in rows.items():
            cells = cells + score_matrix(train, of_set)
        return cells

    @property
    def tables(self) -> list[Table]:
        """The finalists, and the scores of the winner."""
        if self.winner is None:
            return []
        return [finalists_table(self.winner.finalists, self.winner.metric), matrix_table(self.matrix)]

    @property
    def candidate(self) -> str:
        """What was scored and registered."""
        return self.winner.label if self.winner else trial_name(self.best.trial)

    @property
    def failures(self) -> list[str]:
        """One line for each run of the finals that failed, and what did not work on other training sets."""
        rows = map(Row.from_json, self.winner.rows if self.winner else [])
        failed = [f"{run_label(row)} failed: {row.reason}" for row in rows if row.state == "failed"]
        return [*failed, *self.trouble]

    @property
    def parameters(self) -> dict[str, Any]:
        """Its parameters."""
        return self.winner.parameters if self.winner else self.best.parameters

    @property
    def metrics(self) -> dict[str, float]:
        """Scores of the candidate, means of the finals, and the best objectives with errors."""
        own = self.winner.matrix if self.winner else []
        means = {f"mean/{cell.name}": cell.mean for cell in own if cell.mean is not None}
        errors = {f"{metric}{ERROR}": error for metric, error in self.errors.items()}
        return {**means, **self.scores, **self.objective, **errors}

    @property
    def commands(self) -> dict[str, str]:
        """The commands that show the outcome and use its model."""
        commands = {"MLflow": preflight.ui_command(self.tracking), "report": self.report}
        if self.model:
            commands["use the model"] = (
                f"MLFLOW_TRACKING_URI={shlex.quote(self.tracking)} python -c "
                f"\"import mlflow; model = mlflow.pyfunc.load_model('{self.model.uri}')\""
            )
        return commands

    def as_markdown(self) -> str:
        """Return parameters and scores of the candidate, the Pareto set, and the finals."""
        lines = [f"Best: {self.candidate}", "", *self.notes]
        lines += ["", "| parameter | value |", "|---|---|"]
        lines += [f"| {path} | {format_number(value)} |" for path, value in self.parameters.items()]
        lines += ["", "| score | value |", "|---|---|"]
        lines += [f"| {metric} | {format_number(value)} |" for metric, value in self.scores.items()]
        if self.pareto_set:
            metrics = list(self.objective)
            lines += ["", f"| Pareto set | {' | '.join(metrics)} |", "|---" * (1 + len(metrics)) + "|"]
            rows = [(trial["trial"], *objective_texts(trial).values()) for trial in self.pareto_set]
            lines += [f"| {' | '.join(row)} |" for row in rows]
        lines += [text for table in self.tables for text in ("", table.as_markdown())]
        return "\n".join(lines)

    def show(self, progress: Progress) -> None:
        """Show counts, best trial, model, parameters, scores and commands."""
        counts = self.trials
        rows = {
            "trials": f"{counts['complete']} complete, {counts['pruned']} pruned, {counts['failed']} failed",
            "best trial": trial_name(self.best.trial),
        }
        if self.infeasible:
            rows["trials"] += f"; {self.infeasible} infeasible"
        rows |= {
            metric: format_estimate(value, self.errors.get(metric))
            for metric, value in self.objective.items()
        }
        if self.winner:
            rows["winner of the finals"] = self.winner.finalists[0].name
        if self.model:
            rows["model"] = str(self.model)
        progress.show(pairs(f"Sweep {self.sweep}", rows))
        for line in self.notes:
            progress.print(f"note: {line}")
        if self.pareto_set:
            shown = self.pareto_set[:_MAX_SHOWN]
            progress.show(pareto_table(shown, len(self.pareto_set)))
        groups = {f"Parameters of {self.candidate}": self.parameters}
        if not self.winner:
            groups["Scores"] = self.scores
        for title, values in groups.items():
            progress.show(pairs(title, {key: format_number(value) for key, value in values.items()}))
        for table in self.tables:
            progress.show(table.on_terminal())
        for failure in self.failures:
            progress.print(failure)
        for label, text in self.commands.items():
            progress.print(f"{label}: {text}")
