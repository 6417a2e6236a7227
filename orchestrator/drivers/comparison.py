"""From a checked comparison file to its table, step by step."""

import contextlib
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ray
from rich.console import Group, RenderableType
from rich.table import Table

from orchestrator import trainable
from orchestrator.config.comparison import Comparison
from orchestrator.console.progress import Progress
from orchestrator.drivers.base import FAILED, Driver, runs
from orchestrator.drivers.plan import pairs, places
from orchestrator.errors import nearest
from orchestrator.execution.cluster import Cluster
from orchestrator.execution.trial import explain, trainable_task
from orchestrator.report import comparison as report
from orchestrator.study import statistics as results
from orchestrator.study.base import Study
from orchestrator.study.grid import ComparisonStudy
from orchestrator.study.statistics import Column, Row
from orchestrator.tracking import preflight as tracking_store
from orchestrator.tracking.tracker import Tracker
from orchestrator.trainable import DataSetRecord, Illustrating


class ComparisonDriver(Driver):
    """Trains and scores every variant on every split and seed, and tells how they differ."""

    outcome_keys = ("file", "rows", "trouble", "tracking", "report")

    def __init__(self, comparison: Comparison, progress: Progress) -> None:
        super().__init__(comparison, progress)
        self._comparison = comparison

    def is_final(self, outcome: dict[str, Any]) -> bool:
        """Whether it answers just this file, and nothing failed."""
        return bool(outcome["file"] == self._asked() and self.code(outcome) == 0)

    def code(self, outcome: dict[str, Any]) -> int:
        """0 when every trial was scored and every picture drawn."""
        return FAILED if outcome["trouble"] else 0

    def plan(self, joined: Cluster) -> RenderableType:
        """Variants, splits, seeds and resources."""
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
            **places(comparison, trials, joined),
        }
        return Group(variants, "", pairs(f"Comparison {comparison.name}", rows), "")

    def columns(self) -> dict[str, Any]:
        """Variants, baseline and trials."""
        comparison = self._comparison
        return {"variants": ", ".join(comparison.variants), "baseline": comparison.baseline}

    def open_study(self) -> ComparisonStudy:
        """The study of the comparison."""
        return ComparisonStudy(self._comparison, self._directory)

    def conclude(self, study: Study, data_sets: Sequence[DataSetRecord], tracker: Tracker) -> dict[str, Any]:
        """Draw the pictures, and write results and report."""
        assert isinstance(study, ComparisonStudy)
        comparison, folder = self._comparison, self._directory.path
        rows = study.rows()
        results.write(rows, folder)
        columns = self._summary(rows)
        trouble = self._failures(rows)
        pictures = folder / "pictures"
        if line := self._illustrate(study, rows, pictures):
            trouble.append(line)
        with self._progress.doing("writing the report"):
            chart, drawn = folder / "differences.png", sorted(pictures.glob("*.png"))
            has_chart = report.draw_differences(comparison, columns, chart)
            summary = {
                "job_id": tracker.sweep_id,
                "data_sets": data_sets,
                "commands": {
                    "MLflow": tracking_store.look(comparison.tracking.uri),
                    "results": self._results(),
                },
                "notes": [*trouble, *self._unknown(rows)],
                "chart": chart if has_chart else None,
                "pictures": drawn,
                "runs": runs(study, tracker),
            }
            written = [folder / "report.html", folder / "results.csv", folder / "results.json"]
            report.write_report(comparison, columns, rows, summary, written[0])
            self._directory.publish(*written, *drawn, *([chart] if has_chart else []))
            for file in [*written, chart] if has_chart else written:
                tracker.log_file(file)
            for file in drawn:
                tracker.log_file(file, "pictures")
        return {
            "file": self._asked(),
            "rows": [row.as_json() for row in rows],
            "trouble": trouble,
            "tracking": comparison.tracking.uri,
            "report": self._directory.locate("report.html"),
        }

    def metrics(self, outcome: dict[str, Any]) -> dict[str, float]:
        """Mean of each variant and mean difference to the baseline, for each metric of the table."""
        found: dict[str, float] = {}
        for column in self._summary(_rows(outcome)):
            for name, summary in column.variants.items():
                if summary.mean is not None:
                    found[f"{name}/{column.metric}"] = summary.mean
                if summary.difference is not None and summary.difference.mean is not None:
                    found[f"{name} - {self._comparison.baseline}/{column.metric}"] = summary.difference.mean
        return found

    def note(self, outcome: dict[str, Any]) -> str:
        """The table."""
        rows = _rows(outcome)
        table = report.markdown(self._comparison, self._summary(rows))
        return "\n\n".join([table, *report.explanation(self._comparison, rows)])

    def summarise(self, outcome: dict[str, Any]) -> None:
        """The table, what it means, and where to look."""
        rows = _rows(outcome)
        self._show(rows)
        for line in (*report.explanation(self._comparison, rows), *outcome["trouble"], *self._unknown(rows)):
            self._progress.say(line)
        self._progress.say(f"MLflow: {tracking_store.look(outcome['tracking'])}")
        self._progress.say(f"report: {outcome['report']}")
        self._progress.say(f"results: {self._results()}")

    def interrupted(self, study: Study) -> None:
        """The table of what has been scored."""
        assert isinstance(study, ComparisonStudy)
        rows = study.rows()
        if results.metrics_of(rows):
            self._show(rows)

    def _show(self, rows: Sequence[Row]) -> None:
        for table in report.tables(self._comparison, self._summary(rows)):
            self._progress.show(table)

    def _summary(self, rows: Sequence[Row]) -> list[Column]:
        """The metrics of the file, or all when one of them is not among the scores."""
        comparison, known = self._comparison, results.metrics_of(rows)
        shown = known if self._unknown(rows) else list(comparison.metrics) or known
        modes = {metric: comparison.mode(metric) for metric in shown}
        return results.summarise(rows, list(comparison.variants), comparison.baseline, modes)

    def _unknown(self, rows: Sequence[Row]) -> list[str]:
        """Metrics of the file that no trial was scored on, one line each."""
        known = results.metrics_of(rows)
        return [
            f"metrics: no trial has the score {metric!r}{nearest(metric, known)} (the table shows them all)"
            for metric in self._comparison.metrics
            if metric not in known
        ]

    def _failures(self, rows: Sequence[Row]) -> list[str]:
        failed = [row for row in rows if row.state == "failed"]
        lines = [f"{_where(row)} failed: {row.reason}" for row in failed]
        return [*lines, "the same command tries what failed again"] if lines else []

    def _illustrate(self, study: Study, rows: Sequence[Row], pictures: Path) -> str | None:
        """Let the trainable draw its pictures, if it can; returns a line when that failed."""
        shutil.rmtree(pictures, ignore_errors=True)
        comparison = self._comparison
        if not isinstance(comparison.implementation, Illustrating):
            return None
        pictures.mkdir()
        finished: dict[str, list[tuple[dict[str, Any], ray.train.Checkpoint]]] = {
            name: [] for name in comparison.variants
        }
        for cell, row in zip(comparison.cells, rows, strict=True):
            if row.state == "complete" and row.number is not None:
                config = comparison.cell_config(cell).model_dump(mode="json")
                finished[cell.variant].append((config, study.checkpoint(row.number)))
        resources = comparison.resources
        with self._progress.doing("drawing the pictures"):
            task = trainable_task(illustrate, resources.cpus, resources.gpus, "illustrate")
            try:
                drawn: dict[str, bytes] = ray.get(task.remote(comparison.trainable, finished))
            except ray.exceptions.RayError as error:
                return f"the pictures could not be drawn: {explain(error)}; the same command tries again"
        for file, content in drawn.items():
            (pictures / file).write_bytes(content)
        return None

    def _asked(self) -> dict[str, Any]:
        """What of the file makes its outcome."""
        return self._comparison.model_dump(mode="json", exclude={"storage", "tracking", "resources"})

    def _results(self) -> str:
        return self._directory.locate("results.csv")


def illustrate(
    dotted: str, finished: Mapping[str, Sequence[tuple[Any, ray.train.Checkpoint]]]
) -> dict[str, bytes]:
    """Draw the pictures of a trainable, PNG files by their names; what a Ray task runs."""
    subject = trainable.load(dotted)
    assert isinstance(subject, Illustrating)
    with contextlib.ExitStack() as stack:
        runs = {
            name: [
                (subject.Config.model_validate(config), Path(stack.enter_context(checkpoint.as_directory())))
                for config, checkpoint in each
            ]
            for name, each in finished.items()
        }
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        subject.illustrate(runs, folder)
        return {file.name: file.read_bytes() for file in sorted(folder.glob("*.png"))}


def _rows(outcome: Mapping[str, Any]) -> list[Row]:
    return [Row(**row) for row in outcome["rows"]]


def _where(row: Row) -> str:
    return f"{row.variant} ({', '.join(f'{path} {value}' for path, value in row.place.items())})"
