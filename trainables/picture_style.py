"""The style of pictures of data and results: colours, settings of Matplotlib, and the drawing of frames.

`orchestrator.report.style` repeats the colours, because neither package may import the other.
"""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

INK, MUTED, RULE, EMPTY = "#1f2933", "#616e7c", "#e4e7eb", "#f0f1f3"
RIGHT, WRONG = "#00805f", "#c8500a"
"""Of matches and mistakes, which colour-blind readers can tell apart."""
LINES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", INK)
"""Of curves (Okabe and Ito, 2008)."""
MARKERS = "osD^vPX*"

SETTINGS: Any = {  # the exact type would list every setting of Matplotlib
    "axes.axisbelow": True,
    "axes.edgecolor": RULE,
    "axes.grid": True,
    "axes.labelcolor": INK,
    "axes.titlelocation": "left",
    "axes.titlesize": 9,
    "figure.constrained_layout.use": True,
    "font.size": 9,
    "grid.color": RULE,
    "legend.edgecolor": RULE,
    "savefig.bbox": "tight",
    "savefig.dpi": 150,
    "savefig.pad_inches": 0.16,
    "text.color": INK,
    "xtick.color": MUTED,
    "xtick.major.size": 0,
    "ytick.color": MUTED,
    "ytick.major.size": 0,
}
"""Settings of Matplotlib for every picture, to be used as ``with matplotlib.rc_context(SETTINGS)``."""


def show_frame(axes: Axes, frame: NDArray[np.uint8], extent: tuple[float, float, float, float]) -> None:
    """Show a frame ``[height, width, 3]`` at ``(left, right, bottom, top)`` of axes with fixed limits."""
    axes.imshow(frame, extent=extent, aspect="auto")


def save(figure: Figure, path: Path) -> None:
    """Write a figure to a file, whose folder is created."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # Of a sheet of photos, Pillow's usual level 6 saves a tenth of the bytes in three times the seconds.
    figure.savefig(path, pil_kwargs={"compress_level": 3})
