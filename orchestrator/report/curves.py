"""The curves of one training."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from orchestrator.report.style import BLUE, SETTINGS

_COLUMNS = 3


def draw_training(reports: Sequence[Mapping[str, float]], title: str, path: Path) -> None:
    """Draw each metric of a training by epoch, as a PNG file."""
    names = sorted(
        (name for name in dict.fromkeys(name for report in reports for name in report) if name != "epoch"),
        key=lambda name: not name.startswith("val/"),
    )
    rows = -(-len(names) // _COLUMNS)
    with matplotlib.rc_context(SETTINGS):
        figure = Figure(figsize=(3.4 * _COLUMNS, 2.3 * rows + 0.4))
        figure.suptitle(title, parse_math=False)
        for position, name in enumerate(names, 1):
            points = [(report["epoch"], report[name]) for report in reports if name in report]
            axes = figure.add_subplot(rows, _COLUMNS, position)
            axes.plot(*zip(*points, strict=True), marker="o", markersize=3, color=BLUE)
            axes.set_title(name, loc="left", parse_math=False)
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            if position > len(names) - _COLUMNS:
                axes.set_xlabel("epoch")
        figure.savefig(path)
