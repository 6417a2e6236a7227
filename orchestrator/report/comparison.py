"""The report of a comparison: tables on the terminal, one chart, and one self-contained HTML file."""

from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.table import Table

from orchestrator.config.comparison import Comparison
from orchestrator.console.tables import format_count, format_number
from orchestrator.report.style import BEST, BLUE, INK, MUTED, SETTINGS, data_uri, picture_of, template
from orchestrator.study.statistics import CONFIDENCE, MIN_VALUES, POWER, Column, Row, Summary

_TABLE_METRICS = 3
"""Most metrics in one table of the terminal."""

_CHART_METRICS = 8
"""Most metrics in the chart of differences."""


def explain_table(comparison: Comparison, columns: Sequence[Column], rows: Sequence[Row]) -> list[str]:
    """Return sentences that explain the table of ``columns`` and its limits."""
    splits = len(next(iter(comparison.splits.values()), ()))
    runs = format_count(len(comparison.seeds), "seed")
    if splits:
        runs = f"{format_count(splits, 'split')} x {runs}"
    pairs = len(comparison.grid_points)
    marked = "; the best mean is marked" * (len(comparison.variants) > 1)
    lines = [f"Mean ± standard deviation over {runs}{marked}."]
    several = splits > 1 and len(comparison.seeds) > 1
    over = "splits, each of which is the mean of its seeds," if several else "pairs"
    if len(comparison.variants) > 1:
        lines.append(
            f"Differences are from {comparison.baseline}, on the same split and seed ("
            f"{format_count(pairs, 'pair')} if no trial failed): their mean and its "
            f"{CONFIDENCE:.0%} interval over the {over} by Student's t (none below {MIN_VALUES} of them, "
            "and none where all are equal)."
        )
        lines += _explain_tests(columns)
    lines += [
        f"{name} and {comparison.baseline} have equal scores in every run: what differs has no effect."
        for name in comparison.variants
        if (differences := [value for column in columns for value in _differences(column.variants[name])])
        and not any(differences)
    ]
    if splits > 1 and len(comparison.variants) > 1:
        lines.append(
            "Pairs are not independent where splits share data: an interval shows how much the result "
            "depends on split and seed, not how it would be on a new population."
        )
    if failed := [row for row in rows if row.state == "failed"]:
        lines.append(f"{len(failed)} of {len(rows)} trials failed; a pair with a failed trial is left out.")
    return lines


def _explain_tests(columns: Sequence[Column]) -> list[str]:
    """Return a sentence about p and about the differences that the comparison finds; none without a test.

    It has the first metric of each group, such as ``test/walkers``.
    """
    groups = groupby(columns, key=lambda column: column.metric.rpartition("/")[0])
    firsts = [next((each for each in group if each.detectable is not None), None) for _, group in groups]
    tested = [column for column in firsts if column is not None]
    if not tested:
        return []
    tests = max(column.tests for column in tested)
    corrected = f", corrected for the {tests} differences of a metric (Holm)" if tests > 1 else ""
    found = ", ".join(f"{column.number(column.detectable)} in {column.metric}" for column in tested)
    return [
        f"p is by Student's t test{corrected}. In {POWER:.0%} of cases, such a comparison finds (p < 0.05)"
        f" a true difference of {found}."
    ]


def terminal_tables(comparison: Comparison, columns: Sequence[Column]) -> list[Table]:
    """Return tables for the terminal, each with a few metrics of one group, such as ``test/walkers``."""
    tables = []
    for group, members in groupby(columns, key=lambda column: column.metric.rpartition("/")[0]):
        group_columns = list(members)
        for start in range(0, len(group_columns), _TABLE_METRICS):
            tables.append(_table(comparison, group, group_columns[start : start + _TABLE_METRICS]))
    return tables


def _table(comparison: Comparison, group: str, columns: Sequence[Column]) -> Table:
    several = len(comparison.variants) > 1
    table = Table(title=group or "scores", title_justify="left", title_style="bold")
    table.add_column("variant", overflow="fold")
    table.add_column("trials", justify="right")
    for column in columns:
        table.add_column(column.metric.rpartition("/")[2], justify="right", no_wrap=True)
        if several:
            table.add_column(f"difference from {comparison.baseline}", justify="right", overflow="fold")
    for name in comparison.variants:
        counts = sorted({len(column.variants[name].values) for column in columns})
        cells = [name, " to ".join(str(count) for count in dict.fromkeys((counts[0], counts[-1])))]
        for column in columns:
            summary = column.variants[name]
            spread = column.spread(summary)
            cells.append(f"[bold]{spread} *[/bold]" if summary.best and several else f"{spread}  ")
            if several:
                cells.append("" if summary.difference is None else column.gain(summary))
        table.add_row(*cells)
    return table


def markdown_table(comparison: Comparison, columns: Sequence[Column]) -> str:
    """Return the whole table for the page of the MLflow run."""
    header = ["variant", *(column.metric for column in columns)]
    lines = [f"| {' | '.join(header)} |", f"|{'---|' * len(header)}"]
    for name in comparison.variants:
        cells = []
        for column in columns:
            summary = column.variants[name]
            spread = f"**{column.spread(summary)}**" if summary.best else column.spread(summary)
            gain = f"<br>{column.gain(summary)}" if summary.difference else ""
            cells.append(f"{spread} ({len(summary.values)}){gain}")
        lines.append(f"| {' | '.join([name, *cells])} |")
    return "\n".join(lines)


def draw_differences(comparison: Comparison, columns: Sequence[Column], path: Path) -> bool:
    """Draw the paired differences from the baseline as a PNG file; return False when there are none to draw.

    Each metric has a panel with a mark for every split and seed, the mean, and its interval.
    """
    variants = [name for name in comparison.variants if name != comparison.baseline]
    compared = [column for column in columns if any(_differences(column.variants[name]) for name in variants)]
    shown = compared[:_CHART_METRICS]
    if not shown:
        return False
    across = min(2, len(shown))
    down = -(-len(shown) // across)
    with matplotlib.rc_context(SETTINGS):
        figure = Figure(figsize=(6.4 * across, (1.1 + 0.5 * len(variants)) * down))
        panels = figure.subplots(down, across, squeeze=False).flatten().tolist()
        for axes, column in zip(panels, shown, strict=False):
            _draw_panel(axes, column, variants)
            axes.set_xlabel(f"{column.metric} minus that of {comparison.baseline}")
        if len(shown) < len(compared):
            figure.suptitle(f"the first {len(shown)} of {len(compared)} metrics", color=MUTED)
        for axes in panels[len(shown) :]:
            axes.set_axis_off()
        figure.savefig(path)
    return True


def _draw_panel(axes: Axes, column: Column, variants: Sequence[str]) -> None:
    """Draw the differences of each variant as a row."""
    axes.axvline(0, color=INK, linewidth=1)
    for row, name in enumerate(variants):
        summary = column.variants[name]
        differences = _differences(summary)
        axes.plot(differences, [row] * len(differences), "|", color=MUTED, markersize=9, alpha=0.7)
        if summary.difference is None or summary.difference.mean is None:
            continue
        if summary.difference.interval is not None:
            axes.plot(
                summary.difference.interval, [row, row], color=BLUE, linewidth=4, solid_capstyle="round"
            )
        axes.plot([summary.difference.mean], [row], "o", color=BEST, markersize=7)
    axes.set_yticks(range(len(variants)), variants, color=INK)
    axes.set_ylim(len(variants) - 0.5, -0.5)
    axes.margins(x=0.12)


def _differences(summary: Summary) -> tuple[float, ...]:
    return () if summary.difference is None else summary.difference.values


def write_report(
    comparison: Comparison,
    columns: Sequence[Column],
    rows: Sequence[Row],
    summary: Mapping[str, Any],
    path: Path,
) -> None:
    """Write the report of a comparison as an HTML file.

    Args:
        comparison: the comparison file.
        columns: metrics of the table.
        rows: trials of the comparison, at least one.
        summary: ``job_id``, ``data_sets``, ``commands`` (command of every purpose), ``notes`` (lines of
            text), ``chart`` (PNG file or None), ``pictures`` (PNG files), ``runs`` (MLflow run id of every
            trial number).
        path: the HTML file.
    """
    html = template("comparison.html.jinja").render(
        name=comparison.name,
        comparison=comparison,
        columns=columns,
        rows=rows,
        summary=summary,
        explanation=explain_table(comparison, columns, rows),
        counts={state: sum(row.state == state for row in rows) for state in ("complete", "failed")},
        leader=_leader(columns),
        settings={name: _settings(settings) for name, settings in comparison.variants.items()},
        paths=list(rows[0].grid_point),
        chart=data_uri(summary["chart"].read_bytes()) if summary["chart"] else None,
        figures=[picture_of(file) for file in summary["pictures"]],
        confidence=f"{CONFIDENCE:.0%}",
        format_number=format_number,
    )
    path.write_text(html, encoding="utf-8")


def _leader(columns: Sequence[Column]) -> dict[str, str]:
    """Return the value and the text of the card that shows the best mean of the first metric."""
    for column in columns[:1]:
        for name, summary in column.variants.items():
            if summary.best:
                gain = f", {column.gain(summary)}" if summary.difference else ", the baseline"
                return {"value": column.number(summary.mean), "text": f"best {column.metric}: {name}{gain}"}
    return {}


def _settings(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{path}: {value}" for path, value in settings.items()) or "as in config"
