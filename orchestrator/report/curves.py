"""The curves of one training."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from orchestrator.report.style import BLUE, SETTINGS
from orchestrator.trainable import ERROR

_COLUMNS = 3


def draw_training(reports: Sequence[Mapping[str, float]], title: str, path: Path) -> None:
    """Draw each metric of a training by epoch, with a band of one standard error, as a PNG file."""
    present = dict.fromkeys(name for report in reports for name in report)
    errors = {name + ERROR for name in present} & present.keys()
    shown = (name for name in present if name != "epoch" and name not in errors)
    names = sorted(shown, key=lambda name: not name.startswith("val/"))
    rows = -(-len(names) // _COLUMNS)
    with matplotlib.rc_context(SETTINGS):
        figure = Figure(figsize=(3.4 * _COLUMNS, 2.3 * rows + 0.4))
        figure.suptitle(title, parse_math=False)
        for position, name in enumerate(names, 1):
            points = [(report["epoch"], report[name]) for report in reports if name in report]
            axes = figure.add_subplot(rows, _COLUMNS, position)
            axes.plot(*zip(*points, strict=True), marker="o", markersize=3, color=BLUE)
            _add_band(axes, reports, name)
            axes.set_title(name, loc="left", parse_math=False)
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            if position > len(names) - _COLUMNS:
                axes.set_xlabel("epoch")
        figure.savefig(path)


def _add_band(axes: Axes, reports: Sequence[Mapping[str, float]], name: str) -> None:
    """Add a band of one standard error around the curve of a metric, where it has one."""
    rows = [(each["epoch"], each[name], each[name + ERROR]) for each in reports if name + ERROR in each]
    if rows:
        epochs, values, errors = (np.array(column) for column in zip(*rows, strict=True))
        axes.fill_between(epochs, values - errors, values + errors, color=BLUE, alpha=0.15, linewidth=0)
