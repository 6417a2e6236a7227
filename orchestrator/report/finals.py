"""The finals of a sweep as tables: on the terminal, as Markdown, and in the report."""

from collections.abc import Sequence
from typing import NamedTuple

from rich.table import Table as TerminalTable

from orchestrator.study.finals import Finalist, MatrixCell
from orchestrator.study.statistics import CONFIDENCE, NONE, Column, Sample, decimals

_FEW_RUNS = 3
_WIDE = "Student's t intervals of so few runs are wide: more seeds or splits in 'finals' narrow them."


class Table(NamedTuple):
    """A table of text: its columns, of which the first ones hold names, and its rows."""

    title: str
    columns: tuple[str, ...]
    names: int
    rows: Sequence[tuple[str, ...]]
    note: str = ""

    def on_terminal(self) -> TerminalTable:
        """Return the table for the terminal."""
        table = TerminalTable(
            title=self.title,
            title_justify="left",
            title_style="bold",
            caption=self.note or None,
            caption_justify="left",
        )
        for index, column in enumerate(self.columns):
            table.add_column(column, justify="left" if index < self.names else "right", overflow="fold")
        for row in self.rows:
            table.add_row(*row)
        return table

    def as_markdown(self) -> str:
        """Return the table as Markdown."""
        lines = [self.columns, ("---",) * len(self.columns), *self.rows]
        return "\n".join(
            [*(f"| {' | '.join(line)} |" for line in lines), *(["", self.note] if self.note else [])]
        )


def finalists_table(finalists: Sequence[Finalist], metric: str) -> Table:
    """Return the validation score of each finalist, the winner first."""
    column = _column(metric, finalists)
    rows = [
        (
            finalist.name,
            f"{column.number(finalist.mean)} ± {column.number(finalist.error)}",
            str(len(finalist.values)),
        )
        for finalist in finalists
    ]
    return Table("Finals", ("trial", f"{metric}, mean ± standard error", "runs"), 1, rows)


def matrix_table(cells: Sequence[MatrixCell]) -> Table:
    """Return the scores of the winner on each target."""
    numbers = {
        metric: _column(metric, [cell for cell in cells if cell.metric == metric])
        for metric in dict.fromkeys(cell.metric for cell in cells)
    }
    rows = [
        (
            cell.train,
            cell.target,
            cell.metric,
            f"{numbers[cell.metric].number(cell.mean)} ± {numbers[cell.metric].number(cell.deviation)}",
            _interval(cell, numbers[cell.metric]),
            str(len(cell.values)),
        )
        for cell in cells
    ]
    columns = ("train", "test", "score", "mean ± deviation", f"{CONFIDENCE:.0%} interval", "runs")
    note = _WIDE if any(1 < len(cell.values) <= _FEW_RUNS for cell in cells) else ""
    return Table("Scores of the winner", columns, 3, rows, note)


def _column(metric: str, samples: Sequence[Sample]) -> Column:
    """Return the column that writes the numbers of one metric."""
    largest = max((abs(value) for sample in samples for value in sample.values), default=0.0)
    return Column(metric, decimals(largest), {})


def _interval(sample: Sample, column: Column) -> str:
    if sample.interval is None:
        return NONE
    low, high = sample.interval
    return f"{column.number(low)} to {column.number(high)}"
