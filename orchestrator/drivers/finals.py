"""The driver of the finals: trains the best trials again, then scores and registers the winner."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import Field
from rich.console import RenderableType

from orchestrator.config.finals import FinalRuns
from orchestrator.console.progress import Progress
from orchestrator.drivers.base import Driver, Outcome
from orchestrator.drivers.candidates import Candidate, Registration, register_candidate, score
from orchestrator.drivers.comparison import run_label
from orchestrator.execution.cluster import Cluster
from orchestrator.interrupt import Interrupt
from orchestrator.report.finals import finalists_table, matrix_table
from orchestrator.study import attributes, statistics
from orchestrator.study.base import Study
from orchestrator.study.finals import Finalist, FinalsStudy, MatrixCell, finalists, score_matrix
from orchestrator.study.statistics import Row
from orchestrator.tracking.model_registry import RegisteredModel
from orchestrator.tracking.preflight import present_address
from orchestrator.tracking.tracker import Tracker
from orchestrator.trainable import DataSetRecord


class FinalsOutcome(Outcome):
    """The outcome of the finals."""

    file: dict[str, Any]
    """The settings that determine the outcome."""

    metric: str
    """The validation score by which the winner is chosen."""

    mode: Literal["max", "min"]
    rows: list[dict[str, Any]]
    """One row per run; see `orchestrator.study.statistics.Row`."""

    train: str
    """Name of the training set."""

    label: str
    """Trial, split and seed of the winner's best run."""

    parameters: dict[str, Any]
    checkpoints: dict[int, str]
    """Checkpoint of each of the winner's runs, relative to the folder of the finals."""

    notes: list[str] = Field(default=[])
    """What to keep in mind about the finals, one line each."""

    model: RegisteredModel | None
    """The model of that run."""

    @property
    def finalists(self) -> list[Finalist]:
        """The finalists, the winner first."""
        return finalists([Row.from_json(row) for row in self.rows], self.metric, self.mode)

    @property
    def scores(self) -> dict[str, float]:
        """The scores of the winner's best run on the targets."""
        return self._scored(self.finalists[0].best_run).scores

    @property
    def matrix(self) -> list[MatrixCell]:
        """The scores of the winner's runs."""
        return score_matrix(self.train, list(map(self._scored, self.finalists[0].runs)))

    def _scored(self, run: int) -> Row:
        """Return a run of the winner, with its scores on the targets alone."""
        (row,) = (Row.from_json(row) for row in self.rows if row["number"] == run)
        scores = {name: value for name, value in row.scores.items() if name != self.metric}
        return dataclasses.replace(row, scores=scores)


class FinalsDriver(Driver[FinalsOutcome]):
    """Trains the finalists over seeds and splits; only the winner's runs are scored on the targets."""

    outcome_type = FinalsOutcome
    after_failure = "rerun the command, which repeats failed runs"

    def __init__(
        self,
        runs: FinalRuns,
        registration: Registration | None,
        progress: Progress,
        interrupt: Interrupt,
    ) -> None:
        super().__init__(runs, progress, interrupt)
        self._runs, self._registration = runs, registration
        self._mode = runs.mode(runs.objective)

    def is_final(self, outcome: FinalsOutcome) -> bool:
        """Return whether it is that of the present finalists, seeds and splits, and in the present store."""
        uri = self._runs.tracking.uri
        return outcome.file == self._settings() and present_address(outcome.tracking, uri) == uri

    def plan(self, joined: Cluster) -> RenderableType:
        """Return nothing: the plan of the sweep has it."""
        return ""

    def columns(self) -> dict[str, Any]:
        """Return the finalists."""
        return {"finalists": ", ".join(self._runs.variants)}

    def open_study(self) -> FinalsStudy:
        """Open the study of the finals."""
        return self.checked(lambda: FinalsStudy(self._runs, self._directory))

    def conclude(self, study: Study, data_sets: Sequence[DataSetRecord], tracker: Tracker) -> FinalsOutcome:
        """Choose the winner, score its runs, and register the model of the best one."""
        assert isinstance(study, FinalsStudy)
        runs, directory = self._runs, self._directory
        winner = finalists(study.rows(), runs.objective, self._mode)[0]
        checkpoints = {
            number: str(study.trial(number).user_attrs[attributes.CHECKPOINT]) for number in winner.runs
        }
        candidates = self._candidates(study.rows(), checkpoints)
        self._score(study, candidates)
        (best,) = (candidate for candidate in candidates if candidate.number == winner.best_run)
        outcome = FinalsOutcome(
            file=self._settings(),
            metric=runs.objective,
            mode=self._mode,
            rows=[row.as_json() for row in study.rows()],
            train=", ".join(record.name for record in data_sets if record.role == "train"),
            label=best.name,
            parameters=best.parameters,
            checkpoints=checkpoints,
            notes=study.changed_code(),
            model=None,
            tracking=runs.tracking.uri,
            report=directory.locate("results.csv"),
        )
        statistics.write(study.rows(), directory.path)
        files = [directory.path / name for name in ("results.csv", "results.json")]
        self.publish(*files)
        for file in files:
            tracker.log_file(file)
        return outcome.model_copy(update={"model": self._register(best, outcome.scores, tracker)})

    def metrics(self, outcome: FinalsOutcome) -> dict[str, float]:
        """Return the mean of each finalist, and of each score of the winner."""
        means = {f"{finalist.name}/{outcome.metric}": finalist.mean for finalist in outcome.finalists}
        means |= {cell.name: cell.mean for cell in outcome.matrix}
        return {name: mean for name, mean in means.items() if mean is not None}

    def note(self, outcome: FinalsOutcome) -> str:
        """Return finalists and scores."""
        tables = finalists_table(outcome.finalists, outcome.metric), matrix_table(outcome.matrix)
        return "\n\n".join(table.as_markdown() for table in tables)

    def summarise(self, outcome: FinalsOutcome) -> None:
        """Show nothing: the sweep shows it."""

    def scored_runs(self, outcome: FinalsOutcome) -> list[Candidate]:
        """Return the winner's runs."""
        return self._candidates(list(map(Row.from_json, outcome.rows)), outcome.checkpoints)

    def _candidates(self, rows: Sequence[Row], checkpoints: Mapping[int, str]) -> list[Candidate]:
        """Return the runs that have one of the checkpoints; ``rows`` are those of all cells."""
        runs = self._runs
        return [
            Candidate(
                row.number,
                run_label(row),
                runs.variants[row.variant],
                runs.cell_config(cell),
                self._directory.checkpoint(checkpoints[row.number]),
            )
            for cell, row in zip(runs.cells, rows, strict=True)
            if row.number is not None and row.number in checkpoints
        ]

    def _score(self, study: FinalsStudy, candidates: Sequence[Candidate]) -> None:
        """Score the runs that an earlier driver has not scored; raises SweepError."""
        left = [run for run in candidates if not study.scores(study.trial(run.number))]
        with self._progress.activity(f"scoring {len(left)} runs of the winner on the targets"):
            for candidate, scores in zip(left, score(self._runs, left), strict=True):
                study.record_scores(candidate.number, scores)

    def _register(
        self, best: Candidate, scores: dict[str, float], tracker: Tracker
    ) -> RegisteredModel | None:
        """Register the model of the winner's best run, if the sweep has a registry."""
        if self._registration is None:
            return None
        with self.explained_data():
            return register_candidate(self._runs, best, scores, self._registration, tracker, self._progress)

    def _settings(self) -> dict[str, Any]:
        excluded = {"storage", "tracking", "resources"}
        return {
            **self._runs.model_dump(mode="json", exclude=excluded),
            "registry": self._registration and self._registration.registry.model_dump(mode="json"),
        }
