"""The driver of a comparison: train and score every variant, then draw pictures, results and report."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table

from orchestrator.config.comparison import Comparison
from orchestrator.console.progress import Progress
from orchestrator.console.tables import pairs
from orchestrator.drivers.base import Driver, Outcome, run_ids
from orchestrator.drivers.pictures import ScoredRun, illustrate
from orchestrator.drivers.plan import resource_rows
from orchestrator.errors import ExitCode, InputError, nearest
from orchestrator.execution.cluster import Cluster
from orchestrator.interrupt import Interrupt
from orchestrator.report import comparison as report
from orchestrator.study import statistics
from orchestrator.study.base import Study
from orchestrator.study.grid import GridStudy
from orchestrator.study.statistics import Column, Row
from orchestrator.tracking import preflight
from orchestrator.tracking.tracker import Tracker
from orchestrator.trainable import ERROR, Comparable, DataSetRecord


class ComparisonOutcome(Outcome):
    """The outcome of a comparison."""

    file: dict[str, Any]
    """The settings of the file that determine the outcome."""

    rows: list[dict[str, Any]]
    """One row per trial; see `orchestrator.study.statistics.Row`."""

    trouble: list[str]
    """The failures, one line each."""


class ComparisonDriver(Driver[ComparisonOutcome]):
    """Trains and scores every variant on every split and seed, and reports the differences."""

    outcome_type = ComparisonOutcome
    trials_report_all = False
    after_failure = "rerun the command, which repeats failed trials"

    def __init__(self, comparison: Comparison, progress: Progress, interrupt: Interrupt) -> None:
        super().__init__(comparison, progress, interrupt)
        self._comparison = comparison

    def check(self, new: bool) -> None:
        """Check data and metrics; raises InputError."""
        super().check(new)
        comparison = self._comparison
        for metric in comparison.required_metrics():
            self._check_reported(metric)
        known = list(comparison.trial_metrics)
        if isinstance(comparison.implementation, Comparable):
            for cell in comparison.first_cells:
                with self.explained_data():
                    targets = comparison.implementation.target_metrics(comparison.cell_config(cell))
                known += [
                    f"test/{target}/{metric}" for target, metrics in targets.items() for metric in metrics
                ]
        for index, metric in enumerate(comparison.metrics):
            listed = metric.startswith("test/") and not isinstance(comparison.implementation, Comparable)
            if not listed and metric.removesuffix(ERROR) not in known:
                raise InputError(
                    f"metrics.{index}: no variant has the score {metric!r}{nearest(metric, known)}"
                )

    def _check_reported(self, metric: str) -> None:
        """Raise InputError if no variant reports a metric after each epoch."""
        refusal = None
        for cell in self._comparison.first_cells:
            try:
                return self.check_config(self._comparison.cell_config(cell), [metric])
            except InputError as error:
                refusal = refusal or error
        assert refusal is not None
        raise refusal

    def is_final(self, outcome: ComparisonOutcome) -> bool:
        """Return whether it answers this file, and nothing failed."""
        return outcome.file == self._settings() and self.exit_code(outcome) == ExitCode.DONE

    def exit_code(self, outcome: ComparisonOutcome) -> int:
        """Return DONE when every trial was scored and every picture drawn."""
        return ExitCode.FAILED if outcome.trouble else ExitCode.DONE

    def plan(self, joined: Cluster) -> RenderableType:
        """Return variants, splits, seeds and resources."""
        comparison = self._comparison
        variants = Table(title="Variants", title_justify="left", title_style="bold")
        for column in ("variant", "path", "value"):
            variants.add_column(column, overflow="fold")
        for name, settings in comparison.variants.items():
            shown = f"{name} (baseline)" if name == comparison.baseline else name
            variants.add_row(shown, "\n".join(settings), "\n".join(map(str, settings.values())))
        trials = len(comparison.cells)
        splits = {path: ", ".join(map(str, values)) for path, values in comparison.splits.items()}
        rows = {
            **splits,
            "seed": ", ".join(map(str, comparison.seeds)),
            "trials": f"{trials}, all variants on the first split and seed, then on the next",
            "metrics": ", ".join(comparison.metrics) or "all",
            **resource_rows(comparison, trials, joined),
        }
        return Group(variants, "", pairs(f"Comparison {comparison.name}", rows), "")

    def columns(self) -> dict[str, Any]:
        """Return variants and baseline."""
        comparison = self._comparison
        return {"variants": ", ".join(comparison.variants), "baseline": comparison.baseline}

    def open_study(self) -> GridStudy:
        """Open the study of the comparison."""
        return self.checked(lambda: GridStudy(self._comparison, self._directory))

    def conclude(
        self, study: Study, data_sets: Sequence[DataSetRecord], tracker: Tracker
    ) -> ComparisonOutcome:
        """Draw the pictures, and write results and report."""
        assert isinstance(study, GridStudy)
        comparison, folder = self._comparison, self._directory.path
        rows = study.rows()
        statistics.write(rows, folder)
        columns = self._summary(rows)
        trouble = self._failures(rows)
        pictures = folder / "pictures"
        if line := self._illustrate(study, rows, pictures):
            trouble.append(line)
        with self._progress.activity("writing the report"):
            chart, drawn = folder / "differences.png", sorted(pictures.glob("*.png"))
            has_chart = report.draw_differences(comparison, columns, chart)
            summary = {
                "job_id": tracker.sweep_id,
                "data_sets": data_sets,
                "commands": {
                    "MLflow": preflight.ui_command(comparison.tracking.uri),
                    "results": self._results(),
                },
                "notes": [
                    line
                    for line in [
                        *trouble,
                        *self._unknown(rows),
                        *study.changed_code(),
                        tracker.delivery_problem(),
                    ]
                    if line
                ],
                "chart": chart if has_chart else None,
                "pictures": drawn,
                "runs": run_ids(study, tracker),
            }
            written = [folder / "report.html", folder / "results.csv", folder / "results.json"]
            report.write_report(comparison, columns, rows, summary, written[0])
            self.publish(*written, *drawn, *([chart] if has_chart else []))
            for file in [*written, chart] if has_chart else written:
                tracker.log_file(file)
            for file in drawn:
                tracker.log_file(file, "pictures")
        return ComparisonOutcome(
            file=self._settings(),
            rows=[row.as_json() for row in rows],
            trouble=trouble,
            tracking=comparison.tracking.uri,
            report=self._directory.locate("report.html"),
        )

    def metrics(self, outcome: ComparisonOutcome) -> dict[str, float]:
        """Return the mean of each variant and its mean difference from the baseline, for each metric."""
        metrics: dict[str, float] = {}
        for column in self._summary(_rows(outcome)):
            for name, summary in column.variants.items():
                if summary.mean is not None:
                    metrics[f"{name}/{column.metric}"] = summary.mean
                if summary.difference is not None and summary.difference.mean is not None:
                    metrics[f"{name} - {self._comparison.baseline}/{column.metric}"] = summary.difference.mean
        return metrics

    def note(self, outcome: ComparisonOutcome) -> str:
        """Return the table."""
        rows = _rows(outcome)
        columns = self._summary(rows)
        table = report.markdown_table(self._comparison, columns)
        return "\n\n".join([table, *report.explain_table(self._comparison, columns, rows)])

    def summarise(self, outcome: ComparisonOutcome) -> None:
        """Show the table, what it means, and the addresses to look at."""
        rows = _rows(outcome)
        self._show(rows)
        explanation = report.explain_table(self._comparison, self._summary(rows), rows)
        for line in (*explanation, *outcome.trouble, *self._unknown(rows)):
            self._progress.print(line)
        self._progress.print(f"MLflow: {preflight.ui_command(outcome.tracking)}")
        self._progress.print(f"report: {outcome.report}")
        self._progress.print(f"results: {self._results()}")

    def show_unfinished(self, study: Study) -> None:
        """Show the table of what has been scored."""
        assert isinstance(study, GridStudy)
        rows = study.rows()
        if statistics.metrics_of(rows):
            self._show(rows)

    def _show(self, rows: Sequence[Row]) -> None:
        for table in report.terminal_tables(self._comparison, self._summary(rows)):
            self._progress.show(table)

    def _summary(self, rows: Sequence[Row]) -> list[Column]:
        """The metrics of the file, or all when one of them is not among the scores."""
        comparison, scores = self._comparison, statistics.metrics_of(rows)
        columns = scores if self._unknown(rows) else list(comparison.metrics) or scores
        modes = {metric: comparison.mode(metric) for metric in columns}
        return statistics.summarise(rows, list(comparison.variants), comparison.baseline, modes)

    def _unknown(self, rows: Sequence[Row]) -> list[str]:
        """Metrics of the file that no trial was scored on, one line each."""
        scores = statistics.metrics_of(rows)
        return [
            f"metrics: no trial has the score {metric!r}{nearest(metric, scores)} (the table shows them all)"
            for metric in self._comparison.metrics
            if metric not in scores
        ]

    def _failures(self, rows: Sequence[Row]) -> list[str]:
        failed = [row for row in rows if row.state == "failed"]
        lines = [f"{run_label(row)} failed: {row.reason}" for row in failed]
        return [*lines, "rerun the command to try failed trials again"] if lines else []

    def _illustrate(self, study: Study, rows: Sequence[Row], folder: Path) -> str:
        """Let the trainable draw its pictures; return what failed, or nothing."""
        comparison = self._comparison
        runs = [
            ScoredRun(
                row.variant,
                run_label(row),
                comparison.cell_config(cell).model_dump(mode="json", by_alias=True),
                study.checkpoint(row.number),
            )
            for cell, row in zip(comparison.cells, rows, strict=True)
            if row.state == "complete" and row.number is not None
        ]
        return illustrate(comparison, list(comparison.variants), runs, folder, self._progress)

    def _settings(self) -> dict[str, Any]:
        """Return the settings of the file that determine its outcome."""
        return self._comparison.model_dump(mode="json", exclude={"storage", "tracking", "resources"})

    def _results(self) -> str:
        return self._directory.locate("results.csv")


def _rows(outcome: ComparisonOutcome) -> list[Row]:
    return [Row.from_json(row) for row in outcome.rows]


def run_label(row: Row) -> str:
    """Return variant, split and seed of a run."""
    return f"{row.variant} ({', '.join(f'{path} {value}' for path, value in row.grid_point.items())})"
