"""What a comparison shows: tables on the terminal, one chart, one HTML file that needs nothing else."""

from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rich.table import Table

from orchestrator.config.comparison import Comparison
from orchestrator.report.sweep import BEST, INK, MUTED, data_uri, restyle, template
from orchestrator.study.statistics import CONFIDENCE, FEWEST_PAIRS, RESAMPLES, Column, Row, Summary

_ABREAST = 3
"""Metrics in one table of the terminal."""

_CHARTS = 8
"""Metrics in the chart of differences, at most."""

_BLUE = "#2a6fdb"


def explanation(comparison: Comparison, rows: Sequence[Row]) -> list[str]:
    """What the table says and what it does not, in full sentences."""
    splits = len(next(iter(comparison.splits.values()), ()))
    over = f"{splits} splits x {len(comparison.seeds)} seeds" if splits else f"{len(comparison.seeds)} seeds"
    pairs = len(comparison.places)
    lines = [
        f"Mean ± standard deviation over {over}; the best mean is marked.",
        f"Differences are to {comparison.baseline}, on the same split and seed ({pairs} "
        f"{'pair' if pairs == 1 else 'pairs'} where nothing failed): their mean and its "
        f"{CONFIDENCE:.0%} percentile bootstrap interval over the pairs ({RESAMPLES:,} resamples; "
        f"none below {FEWEST_PAIRS} pairs).",
    ]
    if splits > 1:
        lines.append(
            "Pairs are not independent where splits share data: an interval tells how far the result depends "
            "on split and seed, not how it would be on a new population."
        )
    if failed := [row for row in rows if row.state == "failed"]:
        lines.append(f"{len(failed)} of {len(rows)} trials failed; a pair that lacks a partner is left out.")
    return lines


def tables(comparison: Comparison, columns: Sequence[Column]) -> list[Table]:
    """Tables for the terminal, by what the metrics measure (``test/walkers``) and a few metrics abreast."""
    found = []
    for group, members in groupby(columns, key=lambda column: column.metric.rpartition("/")[0]):
        together = list(members)
        for start in range(0, len(together), _ABREAST):
            found.append(_table(comparison, group, together[start : start + _ABREAST]))
    return found


def _table(comparison: Comparison, group: str, columns: Sequence[Column]) -> Table:
    table = Table(title=group or "scores", title_justify="left", title_style="bold")
    table.add_column("variant", overflow="fold")
    table.add_column("trials", justify="right")
    for column in columns:
        table.add_column(column.metric.rpartition("/")[2], justify="right", no_wrap=True)
        table.add_column(f"difference to {comparison.baseline}", justify="right", overflow="fold")
    for name in comparison.variants:
        counts = sorted({len(column.variants[name].values) for column in columns})
        cells = [name, " to ".join(str(count) for count in dict.fromkeys((counts[0], counts[-1])))]
        for column in columns:
            summary = column.variants[name]
            spread = column.spread(summary)
            cells.append(f"[bold]{spread} *[/bold]" if summary.best else f"{spread}  ")
            cells.append("" if summary.difference is None else column.gain(summary.difference))
        table.add_row(*cells)
    return table


def markdown(comparison: Comparison, columns: Sequence[Column]) -> str:
    """The whole table for the page of the MLflow run."""
    header = ["variant", *(column.metric for column in columns)]
    lines = [f"| {' | '.join(header)} |", f"|{'---|' * len(header)}"]
    for name in comparison.variants:
        cells = []
        for column in columns:
            summary = column.variants[name]
            spread = f"**{column.spread(summary)}**" if summary.best else column.spread(summary)
            gain = f"<br>{column.gain(summary.difference)}" if summary.difference else ""
            cells.append(f"{spread} ({len(summary.values)}){gain}")
        lines.append(f"| {' | '.join([name, *cells])} |")
    return "\n".join(lines)


def draw_differences(comparison: Comparison, columns: Sequence[Column], path: Path) -> bool:
    """Draw the paired differences as ``path`` (PNG); returns False when there are none to draw.

    A panel a metric: a dot for each split and seed, the mean, and its interval.
    """
    others = [name for name in comparison.variants if name != comparison.baseline]
    shown = [column for column in columns if any(_pairs(column.variants[name]) for name in others)][:_CHARTS]
    if not shown:
        return False
    width = min(2, len(shown))
    height = -(-len(shown) // width)
    figure = Figure(figsize=(6.4 * width, (1.1 + 0.5 * len(others)) * height), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(height, width, squeeze=False).flat
    for column, axes in zip(shown, panels, strict=False):
        for row, name in enumerate(others):
            pairs = _pairs(column.variants[name])
            axes.plot(pairs, [row] * len(pairs), "|", color=MUTED, markersize=9, alpha=0.7)
            difference = column.variants[name].difference
            if difference is None or difference.mean is None:
                continue
            if difference.interval is not None:
                axes.plot(difference.interval, [row, row], color=_BLUE, linewidth=4, solid_capstyle="round")
            axes.plot([difference.mean], [row], "o", color=BEST, markersize=7)
        axes.axvline(0, color=INK, linewidth=1)
        axes.set(yticks=range(len(others)), yticklabels=others, ylim=(len(others) - 0.5, -0.5))
        axes.set_xlabel(f"{column.metric} minus that of {comparison.baseline}")
        axes.margins(x=0.12)
    for axes in list(panels):
        axes.set_axis_off()
    restyle(figure)
    figure.savefig(path, dpi=150)
    return True


def _pairs(summary: Summary) -> tuple[float, ...]:
    return () if summary.difference is None else summary.difference.pairs


def write_report(
    comparison: Comparison,
    columns: Sequence[Column],
    rows: Sequence[Row],
    summary: Mapping[str, Any],
    path: Path,
) -> None:
    """Write the report of a comparison.

    Args:
        comparison: the file.
        columns: what its table shows.
        rows: its trials.
        summary: ``job_id``, ``data_sets``, ``commands`` (what it does: command), ``notes`` (lines), ``chart``
            (PNG or None), ``pictures`` (PNGs), ``runs`` (trial number: MLflow run).
        path: the HTML file.
    """
    figures = [
        {"title": _title(file), "caption": "", "image": data_uri(file.read_bytes()), "wide": "wide"}
        for file in summary["pictures"]
    ]
    html = template("comparison.html.jinja").render(
        name=comparison.name,
        comparison=comparison,
        columns=columns,
        rows=rows,
        summary=summary,
        explanation=explanation(comparison, rows),
        counts={state: sum(row.state == state for row in rows) for state in ("complete", "failed")},
        leading=_leading(comparison, columns),
        settings={name: _settings(settings) for name, settings in comparison.variants.items()},
        paths=list(rows[0].place),
        chart=data_uri(summary["chart"].read_bytes()) if summary["chart"] else None,
        figures=figures,
        digits=lambda value: f"{value:.4g}" if isinstance(value, float) else str(value),
    )
    path.write_text(html, encoding="utf-8")


def _leading(comparison: Comparison, columns: Sequence[Column]) -> dict[str, str]:
    """The variant with the best mean of the first metric, as a card."""
    for column in columns[:1]:
        for name, summary in column.variants.items():
            if summary.best:
                gain = f", {column.gain(summary.difference)}" if summary.difference else ", the baseline"
                return {"value": column.number(summary.mean), "text": f"best {column.metric}: {name}{gain}"}
    return {}


def _settings(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{path}: {value}" for path, value in settings.items()) or "as in config"


def _title(file: Path) -> str:
    return file.stem.replace("-", " ").replace("_", " ")
