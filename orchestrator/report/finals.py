"""The finals of a sweep as tables: on the terminal, as Markdown, and in the report."""

from collections.abc import Sequence
from typing import NamedTuple

from rich.table import Table as TerminalTable

from orchestrator.study.finals import Finalist, MatrixCell
from orchestrator.study.statistics import CONFIDENCE, NONE, Sample


class Table(NamedTuple):
    """A table of text: its columns, of which the first ones hold names, and its rows."""

    title: str
    columns: tuple[str, ...]
    names: int
    rows: Sequence[tuple[str, ...]]

    def on_terminal(self) -> TerminalTable:
        """Return the table for the terminal."""
        table = TerminalTable(title=self.title, title_justify="left", title_style="bold")
        for index, column in enumerate(self.columns):
            table.add_column(column, justify="left" if index < self.names else "right", overflow="fold")
        for row in self.rows:
            table.add_row(*row)
        return table

    def as_markdown(self) -> str:
        """Return the table as Markdown."""
        lines = [self.columns, ("---",) * len(self.columns), *self.rows]
        return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def finalists_table(finalists: Sequence[Finalist], metric: str) -> Table:
    """Return the validation score of each finalist, the winner first."""
    rows = [
        (finalist.name, f"{_number(finalist.mean)} ± {_number(finalist.error)}", str(len(finalist.values)))
        for finalist in finalists
    ]
    return Table("Finals", ("trial", f"{metric}, mean ± standard error", "runs"), 1, rows)


def matrix_table(cells: Sequence[MatrixCell]) -> Table:
    """Return the scores of the winner on each target."""
    rows = [
        (
            cell.train,
            cell.target,
            cell.metric,
            f"{_number(cell.mean)} ± {_number(cell.deviation)}",
            _interval(cell),
            str(len(cell.values)),
        )
        for cell in cells
    ]
    columns = ("train", "test", "score", "mean ± deviation", f"{CONFIDENCE:.0%} interval", "runs")
    return Table("Scores of the winner", columns, 3, rows)


def _interval(sample: Sample) -> str:
    if sample.interval is None:
        return NONE
    low, high = sample.interval
    return f"{_number(low)} to {_number(high)}"


def _number(value: float | None) -> str:
    return NONE if value is None else f"{value:.3f}"
