"""The style of reports: colours, settings of Matplotlib, page templates and embedded pictures.

`trainables.picture_style` repeats the colours, because neither package may import the other.
"""

import base64
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
from matplotlib.figure import Figure
from optuna.trial import TrialState

INK, MUTED, RULE, PAPER = "#1f2933", "#616e7c", "#e4e7eb", "#f5f7fa"
BLUE, RED, GREEN, PALE = "#2a6fdb", "#d64545", "#2f9e6e", "#a9b4c0"
BEST = "#e07a1f"

STATE_COLOURS = {
    TrialState.COMPLETE: BLUE,
    TrialState.PRUNED: PALE,
    TrialState.FAIL: RED,
    TrialState.RUNNING: GREEN,
    TrialState.WAITING: PALE,
}

SHADES = ("#cddcf3", "#0b3d91")
"""Ends of the colour map of values: the worst, the best."""

SETTINGS: Any = {  # the exact type would list every setting of Matplotlib
    "axes.axisbelow": True,
    "axes.edgecolor": RULE,
    "axes.grid": True,
    "axes.labelcolor": INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "figure.constrained_layout.use": True,
    "font.size": 9,
    "grid.color": RULE,
    "legend.frameon": False,
    "savefig.dpi": 150,
    "svg.fonttype": "none",  # text stays text, so that it can be searched
    "svg.hashsalt": "report",  # equal charts are equal files
    "text.color": INK,
    "xtick.color": MUTED,
    "xtick.major.size": 0,
    "xtick.minor.size": 0,
    "ytick.color": MUTED,
    "ytick.major.size": 0,
    "ytick.minor.size": 0,
}
"""Settings of Matplotlib for every chart, to be used as ``with matplotlib.rc_context(SETTINGS)``."""


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture of a report."""

    title: str
    caption: str
    image: str
    """Data URI."""
    wide: bool = False
    """Whether it takes the whole width of the page rather than half of it."""


def template(name: str) -> jinja2.Template:
    """Return a page template, which sees the colours as ``colours``."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.globals["colours"] = {
        "ink": INK,
        "muted": MUTED,
        "rule": RULE,
        "paper": PAPER,
        "best": BEST,
        "complete": BLUE,
        "fail": RED,
        "running": GREEN,
    }
    return environment.get_template(name)


def data_uri(content: bytes, mime: str = "image/png") -> str:
    """Return an address that contains a picture, so that the page needs no other file."""
    return f"data:{mime};base64,{base64.b64encode(content).decode()}"


def picture_of(file: Path) -> Picture:
    """Return a PNG file as a picture with the name of the file as its title."""
    title = file.stem.replace("-", " ").replace("_", " ")
    return Picture(title, "", data_uri(file.read_bytes()), wide=True)


def figure_uri(figure: Figure) -> str:
    """Return a figure as the data URI of an SVG picture."""
    drawing = io.BytesIO()
    figure.savefig(drawing, format="svg", metadata={"Date": None})
    return data_uri(drawing.getvalue(), "image/svg+xml")
