"""Pictures of trained networks: CMC curves, ranked retrievals, and pseudo sequences of images."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import hsv_to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import PercentFormatter
from numpy.typing import NDArray

from trainables.data.loading import as_tensor
from trainables.data.packing import Pack
from trainables.data.parts import Part
from trainables.data.sampling import evenly_spaced
from trainables.data.tracklet import Protocol
from trainables.evaluation.retrieval import TOP, Candidate, RetrievalSummary
from trainables.methods.alignment import AlignmentMethod
from trainables.network.embedder import SequenceEmbedder
from trainables.picture_style import LINES, MARKERS, MUTED, RIGHT, SETTINGS, WRONG, save, show_frame

RANKS = 20
"""Ranks of a CMC picture."""
STILLS = 6
"""Images whose pseudo sequences are shown."""
SEQUENCES = 3
"""Real sequences that are compared with what is generated from their frames."""
STEPS = 9
"""Most steps shown of a pseudo sequence, its ends and its middle among them."""

_REAL_TRACKLETS, _REAL_FRAMES = 300, 8
"""Most tracklets, and most frames of each, that a generated step is compared with."""

_PROTOCOLS: Mapping[Protocol, str] = {
    "whole-gallery": "",
    "single-gallery-shot": ", one gallery image per identity, 100 draws",
    "mars": ", queries stay in the gallery",
}


def draw_retrieval(retrieval: RetrievalSummary, gallery: Part, title: str, path: Path) -> None:
    """Draw the worst and the best queries of a retrieval, each a row, into a PNG file."""
    pack = gallery.pack
    rows = []
    for name, queries in (("worst", retrieval.worst), ("best", retrieval.best)):
        for number, ranked in enumerate(queries, 1):
            heading = (
                f"{name} {number}: {_describe(pack, ranked.query)}, AP {ranked.average_precision:.1%},"
                f" first match at rank {ranked.first_rank:,}"
            )
            cells = (_candidate(pack, candidate) for candidate in ranked.candidates)
            rows.append(_Row(heading, _Cell(_middle_frame(pack, ranked.query)), tuple(cells)))
    notes = (
        f"The worst and the best of {retrieval.queries:,} scored queries by average precision (AP);"
        f" gallery of {len(gallery.tracklets):,}. The middle frame of every tracklet is shown.",
        "Below each frame: identity, camera, and Euclidean distance of unit features."
        " Left out: junk, and the query's identity in its own camera.",
        "\N{CHECK MARK} the query's identity   \N{BALLOT X} another identity, or a distractor",
    )
    columns = ("query", *(str(rank) for rank in range(1, TOP + 1)))
    _draw_rows(title, notes, columns, rows, path)


@dataclass(frozen=True, slots=True, eq=False)
class Shown:
    """A frame ``[height, width, 3]`` of a ranking, with the lines of text below it."""

    frame: NDArray[np.uint8]
    lines: tuple[str, ...] = ()


def draw_rankings(
    title: str,
    notes: Sequence[str],
    rankings: Sequence[tuple[str, NDArray[np.uint8], Sequence[Shown]]],
    path: Path,
) -> None:
    """Draw rankings into a PNG or JPEG file: a heading, a query and its candidates in each row."""
    rows = [
        _Row(heading, _Cell(query), tuple(_Cell(shown.frame, shown.lines) for shown in candidates))
        for heading, query, candidates in rankings
    ]
    top = max(len(row.rest) for row in rows)
    _draw_rows(title, notes, ("query", *(str(rank) for rank in range(1, top + 1))), rows, path)


def draw_cmc(curves: Mapping[str, Sequence[Sequence[float]]], title: str, path: Path) -> None:
    """Draw the CMC of each variant into a PNG file: the mean of its runs, in a band of a standard deviation.

    ``curves`` has the `Score.curve` of every run of every variant. A variant always has the same line in
    pictures of the same variants.
    """
    with matplotlib.rc_context(SETTINGS):
        figure = Figure(figsize=(7.2, 5))
        axes = figure.subplots()
        lines = [
            _draw_curve(axes, variant, np.asarray(runs, np.float64)[:, :RANKS], colour, marker)
            for (variant, runs), colour, marker in zip(
                curves.items(), cycle(LINES), cycle(MARKERS), strict=False
            )
        ]
        lines.sort(key=lambda line: -float(np.asarray(line.get_ydata())[0]))
        axes.legend(handles=lines, title="rank-1", loc="lower right")
        figure.suptitle(title, x=0, ha="left", fontsize=13)
        axes.set_title(_describe_runs(curves), color=MUTED)
        axes.set(xlabel="rank", ylabel="queries with a match by that rank", xlim=(0.6, RANKS + 0.4))
        axes.set_xticks([1, *range(5, RANKS + 1, 5)])
        bottom, top = axes.get_ylim()
        axes.set_ylim(max(0, bottom), min(1.02, top))
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        axes.spines[:].set_visible(False)
        save(figure, path)


def _draw_curve(axes: Axes, variant: str, runs: NDArray[np.float64], colour: str, marker: str) -> Line2D:
    """Draw the mean of ``runs [run, rank]`` in its band and return its line."""
    ranks = np.arange(1, runs.shape[1] + 1)
    mean, deviation = runs.mean(axis=0), _deviation(runs)
    low, high = (mean - deviation).clip(0), (mean + deviation).clip(max=1)
    axes.fill_between(ranks, low, high, color=colour, alpha=0.13, linewidth=0)
    label = f"{variant}  {mean[0]:.1%}" + (f" ± {100 * deviation[0]:.1f}" if len(runs) > 1 else "")
    (line,) = axes.plot(
        ranks, mean, label=label, color=colour, marker=marker, markersize=4.5, markeredgecolor="white"
    )
    return line


@dataclass(frozen=True, slots=True, eq=False)
class Neighbour:
    """The real frame whose feature is nearest to that of a generated step."""

    tracklet: int
    """Index into the pack of the real sequences."""
    frame: int
    """Index into the tracklet."""
    distance: float
    """Euclidean distance of the encoder's features."""


@torch.inference_mode()
def nearest_frames(embedder: SequenceEmbedder, steps: torch.Tensor, real: Part) -> list[list[Neighbour]]:
    """Return, for every step of ``steps [image, length, features]``, the nearest frame of real sequences.

    Compared are at most 8 frames, evenly spaced, of each of at most 300 tracklets of ``real``.
    """
    features, frames = [], []
    for tracklet in real.tracklets[evenly_spaced(len(real.tracklets), _REAL_TRACKLETS)].tolist():
        indices = evenly_spaced(int(real.pack.lengths[tracklet]), _REAL_FRAMES)
        flow = real.pack.flow(tracklet, indices) if real.pack.has_flow else None
        batch = as_tensor(real.pack.frames(tracklet, indices), flow).to(steps.device)
        features.append(embedder.encode(batch))
        frames += [(tracklet, index) for index in indices.tolist()]
    distances, nearest = torch.cdist(steps.flatten(0, 1), torch.cat(features)).min(dim=1)
    neighbours = [
        Neighbour(tracklet=frames[index][0], frame=frames[index][1], distance=distance)
        for index, distance in zip(nearest.tolist(), distances.tolist(), strict=True)
    ]
    length = steps.shape[1]
    return [neighbours[start : start + length] for start in range(0, len(neighbours), length)]


@torch.inference_mode()
def draw_pseudo(
    method: AlignmentMethod,
    images: Sequence[Part],
    real: Part,
    held_out: Part,
    title: str,
    path: Path,
    *,
    seed: int,
) -> None:
    """Draw a few of ``images`` with the pseudo sequence of each into a PNG file.

    A step that is a generated frame is shown as it is; a step that exists only as a feature is shown as the
    nearest frame of ``real``. Below them are a few sequences of ``held_out``, whose identities do not train,
    each above what is generated from its frame in the middle. ``method`` is in evaluation mode; ``seed`` is
    the seed of the drawn motions.
    """
    stills = [
        (part.pack, int(part.tracklets[index]))
        for part, count in zip(images, _shares(STILLS, len(images)), strict=True)
        for index in evenly_spaced(len(part.tracklets), count)
    ]
    frames = np.concatenate([pack.frames(tracklet) for pack, tracklet in stills])
    torch.manual_seed(seed)
    cells = _pseudo_cells(method, as_tensor(frames, None), real)[0]
    rows = [
        _Row(f"{pack.name}: {_describe(pack, tracklet)}", _Cell(frame), steps)
        for (pack, tracklet), frame, steps in zip(stills, frames, cells, strict=True)
    ]
    length = method.config.alignment.length
    long = held_out.tracklets[held_out.lengths >= length]
    for index in evenly_spaced(len(long), SEQUENCES):
        rows += _compared_rows(method, held_out.pack, int(long[index]), real)
    offsets = (f"{step - length // 2:+d}".replace("+0", "0") for step in _shown_steps(length))
    _draw_rows(title, _pseudo_notes(method), ("image", *offsets), rows, path)


def _compared_rows(method: AlignmentMethod, pack: Pack, tracklet: int, real: Part) -> Iterator["_Row"]:
    """Yield the frames in the middle of a tracklet, and what is generated from the middle one of these."""
    length = method.config.alignment.length
    shown, start = _shown_steps(length), (int(pack.lengths[tracklet]) - length) // 2
    frames = pack.frames(tracklet, slice(start, start + length))
    still, who = frames[length // 2], f"{pack.name}: {_describe(pack, tracklet)}, which does not train"
    generated, flows = _pseudo_cells(method, as_tensor(still[None], None), real)
    yield _Row(f"{who}: real", _Cell(still), tuple(_Cell(frames[step]) for step in shown))
    yield _Row("generated", _Cell(still), generated[0])
    if flows is not None and pack.has_flow:
        real_flow = pack.flow(tracklet, slice(start, start + length))
        largest = max(1e-6, float(np.linalg.norm(real_flow, axis=-1).max()))
        for heading, flow in (("real optical flow", real_flow), ("generated optical flow", flows[0])):
            cells = tuple(_Cell(_flow_picture(flow[step], largest)) for step in shown)
            yield _Row(heading, _Cell(still), cells)


def _flow_picture(flow: NDArray[np.float32], largest: float) -> NDArray[np.uint8]:
    """Return flow ``[height, width, 2]`` as colours: the hue is its direction; no motion is white."""
    hue = np.arctan2(flow[..., 1], flow[..., 0]) / (2 * np.pi) % 1
    strength = np.minimum(np.linalg.norm(flow, axis=-1) / largest, 1)
    colours = hsv_to_rgb(np.stack([hue, strength, np.ones_like(hue)], axis=-1))
    return (255 * colours).round().astype(np.uint8)


def _pseudo_cells(
    method: AlignmentMethod, images: torch.Tensor, real: Part
) -> tuple[list[tuple["_Cell", ...]], NDArray[np.float32] | None]:
    """Return the shown steps of the pseudo sequence of each image.

    Also the generated flow ``[image, length, height, width, 2]``, where frames are generated.
    """
    images = images.to(next(method.parameters()).device)
    shown = _shown_steps(method.config.alignment.length)
    generated = method.pseudo_frames(images)
    if generated is None:
        steps = method.pseudo_steps(method.as_frames(images))
        neighbours = nearest_frames(method.embedder, steps, real)
        return [tuple(_neighbour(real.pack, row[step]) for step in shown) for row in neighbours], None
    colours, flow = generated
    frames = (colours.clamp(0, 1) * 255).round().byte().movedim(2, -1).cpu().numpy()
    return [tuple(_Cell(row[step]) for step in shown) for row in frames], flow.movedim(2, -1).cpu().numpy()


def _pseudo_notes(method: AlignmentMethod) -> tuple[str, ...]:
    """Return the lines that explain the steps of a picture."""
    if method.config.alignment.level == "pixel":
        offsets = "Above each generated frame: its offset from the image, in frames."
        flow = "Optical flow: the hue is its direction; white is no motion, full colour the fastest real one."
        return (offsets, flow) if method.config.network.flow != "none" else (offsets,)
    return (
        "Above each frame: its offset from the image, in frames.",
        "Each frame is the real one nearest to the generated feature. Below it: the distance of the two.",
    )


def file_name(*parts: str) -> str:
    """Return the name of a picture, such as ``retrieval-alignment-prid.png``."""
    return "-".join(parts).replace("/", "_") + ".png"


def cmc_title(name: str, protocol: Protocol) -> str:
    """Return the title of a CMC: its set, and what the protocol ranks if not the whole gallery."""
    return f"CMC on {name}{_PROTOCOLS[protocol]}"


def _deviation(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the sample standard deviation over runs for each rank, 0 for a single run."""
    return values.std(axis=0, ddof=1) if len(values) > 1 else np.zeros(values.shape[1])


def _describe_runs(curves: Mapping[str, Sequence[Sequence[float]]]) -> str:
    counts = {len(runs) for runs in curves.values()}
    runs = " to ".join(str(count) for count in sorted({min(counts), max(counts)}))
    if counts == {1}:
        return "one run of each"
    return f"mean of {runs} runs of each, band: ±1 standard deviation over runs"


def _shares(total: int, parts: int) -> Iterator[int]:
    """Return ``total`` as ``parts`` nearly equal shares, the larger ones first, each at least 1."""
    return (max(1, total // parts + (part < total % parts)) for part in range(parts))


def _shown_steps(length: int) -> list[int]:
    """Return the shown steps of a pseudo sequence, symmetric about the middle because ``length`` is odd."""
    return [int(step) for step in evenly_spaced(length, STEPS)]


def _middle_frame(pack: Pack, tracklet: int) -> NDArray[np.uint8]:
    frame: NDArray[np.uint8] = pack.frames(tracklet)[int(pack.lengths[tracklet]) // 2]
    return frame


def _describe(pack: Pack, tracklet: int) -> str:
    return f"identity {pack.identities[tracklet]} in camera {pack.cameras[tracklet]}"


@dataclass(frozen=True, slots=True, eq=False)
class _Cell:
    """One frame, ``[height, width, 3]``, with small text below it."""

    frame: NDArray[np.uint8]
    lines: tuple[str, ...] = ()
    right: bool | None = None
    """Whether the frame is marked as right, as wrong, or not at all."""


@dataclass(frozen=True, slots=True, eq=False)
class _Row:
    """One frame, and after a gap the frames that belong to it."""

    heading: str
    first: _Cell
    rest: tuple[_Cell, ...]


def _candidate(pack: Pack, candidate: Candidate) -> _Cell:
    identity, camera = pack.identities[candidate.tracklet], pack.cameras[candidate.tracklet]
    lines = (str(identity), f"camera {camera}", f"{candidate.distance:.3f}")
    return _Cell(_middle_frame(pack, candidate.tracklet), lines, candidate.right)


def _neighbour(pack: Pack, neighbour: Neighbour) -> _Cell:
    identity, camera = pack.identities[neighbour.tracklet], pack.cameras[neighbour.tracklet]
    lines = (str(identity), f"camera {camera}", f"frame {neighbour.frame + 1}", f"{neighbour.distance:.2f}")
    return _Cell(pack.frames(neighbour.tracklet)[neighbour.frame], lines)


_HEIGHT = 1.0
"""Inches of a frame."""
_LEAST_WIDTH = 0.8
"""Inches of a column, for the text below a frame."""
_GAP = 0.4
"""Gap after the first frame, in columns."""
_LINE = 0.15
"""Inches of a line of text."""
_HEADING = 0.4
"""Inches above a frame, for the heading of its row and the name of its column."""
_MOST_CHARACTERS = 12
"""Characters of a line below a frame."""


def _draw_rows(
    title: str, notes: Sequence[str], columns: Sequence[str], rows: Sequence[_Row], path: Path
) -> None:
    """Draw rows of frames, each under its heading and the names of the columns, into a PNG or JPEG file.

    All of it is in one axes whose unit is an inch: axes for every row, with ticks and a layout engine to
    place them, take several times as long.
    """
    height, width = rows[0].first.frame.shape[:2]
    frame = _HEIGHT * width / height
    column = max(frame, _LEAST_WIDTH) + 0.1
    lefts = [0, *(column * (position + _GAP) for position in range(1, len(columns)))]
    lines = max(len(cell.lines) for row in rows for cell in row.rest)
    top, step = 0.6 + 0.19 * len(notes), _HEADING + _HEIGHT + _LINE * lines + 0.2
    size = (lefts[-1] + column, top + step * len(rows))
    with matplotlib.rc_context(SETTINGS | {"figure.constrained_layout.use": False}):
        figure = Figure(figsize=size)
        axes = figure.add_axes((0, 0, 1, 1), xlim=(0, size[0]), ylim=(size[1], 0), autoscale_on=False)
        axes.set_axis_off()
        axes.text(0, 0, title, va="top", fontsize=14)
        axes.text(0, 0.42, "\n".join(notes), va="top", color=MUTED, linespacing=1.4)
        for number, row in enumerate(rows):
            _draw_row(axes, row, columns, lefts, top + step * number, frame)
        save(figure, path)


def _draw_row(
    axes: Axes, row: _Row, columns: Sequence[str], lefts: Sequence[float], top: float, width: float
) -> None:
    """Draw a row from ``top`` down, its frames at ``lefts`` and ``width`` wide, all in inches."""
    axes.text(0, top, row.heading, va="top", fontsize=10)
    above, below = top + _HEADING, top + _HEADING + _HEIGHT
    for left, column, cell in zip(lefts, columns, (row.first, *row.rest), strict=False):
        colour = _colour(cell)
        axes.text(left, above - 0.05, _marked(column, cell), va="baseline", color=colour)
        show_frame(axes, cell.frame, (left, left + width, below, above))
        if cell.right is not None:
            border = Rectangle((left, above), width, _HEIGHT, fill=False, edgecolor=colour, linewidth=2.5)
            axes.add_patch(border)
        text = "\n".join(map(_shortened, cell.lines))
        axes.text(left, below + 0.05, text, va="top", color=MUTED, fontsize=8, linespacing=1.3)


def _colour(cell: _Cell) -> str:
    return {True: RIGHT, False: WRONG, None: MUTED}[cell.right]


def _marked(column: str, cell: _Cell) -> str:
    """Return the name of a column, with a mark where the frame is right or wrong."""
    mark = {True: " \N{CHECK MARK}", False: " \N{BALLOT X}", None: ""}[cell.right]
    return column + mark


def _shortened(text: str) -> str:
    """Return the text, or its end where it is too long: numbers come last."""
    return text if len(text) <= _MOST_CHARACTERS else f"…{text[1 - _MOST_CHARACTERS :]}"
