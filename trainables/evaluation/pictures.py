"""Pictures of trained networks: CMC curves, ranked retrievals, and what images are made into."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Self

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from trainables.data.contact_sheet import EMPTY, GREY, INK, MARGIN, PAPER, RULE
from trainables.data.loading import Part, as_tensor
from trainables.data.packing import Pack
from trainables.evaluation.embedding import EvaluationConfig, embed_sides, labels, score_sides
from trainables.evaluation.scoring import Score, ranking, score
from trainables.methods.alignment import AlignmentMethod
from trainables.network.embedder import SequenceEmbedder

RANKS = 20
"""Ranks of a CMC picture."""
EXTREMES = 4
"""Queries shown from either end, the worst and the best."""
TOP = 10
"""Gallery tracklets shown beside a query."""
STILLS = 6
"""Images whose pseudo sequences are shown."""
STEPS = 9
"""Steps of a pseudo sequence that are shown at most, its ends and its middle among them."""

_REAL_TRACKLETS, _REAL_FRAMES = 300, 8
"""Real frames that a generated step is compared with: so many of so many tracklets."""

_RIGHT, _WRONG = "#00805f", "#c8500a"  # told apart by the colour-blind too, and marked beside
_LINES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#1d232b")  # Okabe and Ito, 2008
_MARKERS = "osD^vPX*"

_PROTOCOLS = {
    "whole-gallery": "",
    "single-gallery-shot": ", one gallery image per identity, 100 draws",
    "mars": ", queries stay in the gallery",
}


@dataclass(frozen=True, slots=True, eq=False)
class Retrieval:
    """A test part, embedded once and scored as `AlignmentTrainable.evaluate` does."""

    query: Part
    gallery: Part
    features: tuple[NDArray[np.float32], NDArray[np.float32]]
    """Of query and gallery, ``[tracklet, feature]``, each of length 1."""
    score: Score
    """Under the set's official protocol."""

    @classmethod
    def of(
        cls,
        embedder: SequenceEmbedder,
        query: Part,
        gallery: Part,
        device: torch.device,
        config: EvaluationConfig,
        *,
        crop: float,
    ) -> Self:
        """Embed two parts of one pack, the test part of a split; see `trainables.evaluation.embedding.evaluate`."""
        features = embed_sides(embedder, query, gallery, device, config, crop=crop)
        return cls(query, gallery, features, score_sides(query, gallery, features)[""])


@dataclass(frozen=True, slots=True)
class Candidate:
    """A gallery tracklet beside a query."""

    tracklet: int
    """Index into the pack."""
    distance: float
    """Euclidean, of two features of length 1: 0..2."""
    right: bool
    """Whether it shows the query's identity."""


@dataclass(frozen=True, slots=True)
class Strip:
    """A query and the gallery tracklets nearest to it."""

    query: int
    """Index into the pack."""
    average_precision: float
    first_rank: int
    """Rank of the first match, from 1."""
    candidates: tuple[Candidate, ...]
    """Nearest first, without those that the query ignores."""


def strips(retrieval: Retrieval, extremes: int = EXTREMES, top: int = TOP) -> tuple[list[Strip], list[Strip]]:
    """The worst and the best queries by average precision, ties broken by index, no query in both.

    Each list begins with its extreme. Of fewer than twice ``extremes`` queries half are the worst. Ranked is
    the whole gallery, so average precision is that of the official protocol, or at the hits where the
    protocol draws a gallery.
    """
    query, gallery = retrieval.query, retrieval.gallery
    known = labels(query, gallery)
    found = retrieval.score
    if found.cmc_only:
        found = score(*retrieval.features, *known)
    order = np.lexsort((found.query_index, found.average_precision))
    worst = order[: min(extremes, (len(order) + 1) // 2)]
    rest = np.setdiff1d(order, worst)
    best = rest[np.lexsort((found.query_index[rest], -found.average_precision[rest]))][:extremes]
    chosen = [*worst.tolist(), *best.tolist()]
    asked = found.query_index[chosen].tolist()
    result = []
    for place, index, ranked in zip(
        chosen, asked, ranking(*retrieval.features, *known, queries=asked, top=top), strict=True
    ):
        feature = retrieval.features[0][index].astype(np.float64)
        distances = np.linalg.norm(retrieval.features[1][ranked] - feature, axis=1)
        right = gallery.identities[ranked] == query.identities[index]
        result.append(
            Strip(
                int(query.tracklets[index]),
                float(found.average_precision[place]),
                int(found.first_rank[place]),
                tuple(
                    Candidate(int(tracklet), float(distance), bool(match))
                    for tracklet, distance, match in zip(
                        gallery.tracklets[ranked], distances, right, strict=True
                    )
                ),
            )
        )
    return result[: len(worst)], result[len(worst) :]


def draw_retrieval(retrieval: Retrieval, title: str, path: Path) -> None:
    """Draw the worst and the best queries of `strips`, each a row, into a PNG file."""
    pack = retrieval.query.pack
    rows = []
    for name, shown in zip(("worst", "best"), strips(retrieval), strict=True):
        for place, strip in enumerate(shown, 1):
            heading = (
                f"{name} {place}: identity {pack.identities[strip.query]} in camera"
                f" {pack.cameras[strip.query]}, AP {strip.average_precision:.1%}, first match at rank"
                f" {strip.first_rank:,}"
            )
            cells = (_candidate(pack, candidate) for candidate in strip.candidates)
            rows.append(_Row(heading, _Cell(_middle_frame(pack, strip.query), ()), tuple(cells)))
    notes = (
        f"{retrieval.score.queries:,} queries that count, by average precision (AP);"
        f" gallery of {len(retrieval.gallery.tracklets):,}. Middle frame of every tracklet.",
        "Below: identity, camera, and Euclidean distance of unit features. Left out: junk, and the query's"
        " identity in its own camera.",
    )
    columns = ("query", *(str(rank) for rank in range(1, TOP + 1)))
    _draw_rows(title, notes, columns, rows, path, key=True)


def draw_cmc(curves: Mapping[str, Sequence[Sequence[float]]], title: str, path: Path) -> None:
    """Draw the CMC of each variant into a PNG file: the mean of its runs, in a band of a standard deviation.

    ``curves`` has the `Score.curve` of every run of every variant; a variant always has the same line in
    pictures of the same variants.
    """
    figure = Figure(figsize=(7.2, 5), dpi=150, layout="constrained", facecolor=PAPER)
    axes = figure.subplots()
    ranks = np.arange(1, RANKS + 1)
    lines = []
    for (variant, runs), colour, marker in zip(curves.items(), cycle(_LINES), cycle(_MARKERS), strict=False):
        values = np.asarray(runs, np.float64)[:, :RANKS]
        mean, spread = values.mean(axis=0), _deviation(values)
        axes.fill_between(
            ranks, (mean - spread).clip(0), (mean + spread).clip(max=1), color=colour, alpha=0.13, lw=0
        )
        label = f"{variant}  {mean[0]:.1%}" + (f" ± {100 * spread[0]:.1f}" if len(values) > 1 else "")
        lines += axes.plot(
            ranks, mean, label=label, color=colour, marker=marker, ms=4.5, mec=PAPER, mew=0.6, lw=1.8
        )
    lines.sort(key=lambda line: -float(np.asarray(line.get_ydata())[0]))
    legend = axes.legend(
        handles=lines, title="rank-1", loc="lower right", frameon=True, edgecolor=RULE, labelcolor=INK
    )
    legend.get_title().set_color(GREY)
    axes.set_title(title, loc="left", color=INK, fontsize=13, pad=22)
    axes.text(0, 1.02, _band(curves), transform=axes.transAxes, color=GREY, fontsize=9)
    axes.set(xlabel="rank", ylabel="queries with a match by that rank", xlim=(0.6, RANKS + 0.4))
    axes.set_xticks([1, *range(5, RANKS + 1, 5)])
    axes.set_ylim(top=min(1.02, axes.get_ylim()[1]), bottom=max(0, axes.get_ylim()[0]))
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.grid(color=RULE, lw=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=GREY, length=0)
    for axis in (axes.xaxis, axes.yaxis):
        axis.label.set_color(INK)
    axes.spines[:].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


@dataclass(frozen=True, slots=True, eq=False)
class Neighbour:
    """The real frame whose feature is nearest to that of a generated step."""

    tracklet: int
    """Index into the pack of the real sequences."""
    frame: int
    distance: float
    """Euclidean, in the encoder's features."""


@torch.inference_mode()
def nearest_frames(embedder: SequenceEmbedder, steps: torch.Tensor, real: Part) -> list[list[Neighbour]]:
    """For every step of ``steps [image, length, features]`` the nearest frame of real sequences.

    Looked at are at most 8 frames, evenly spread, of each of at most 300 tracklets of ``real``.
    """
    device, features = steps.device, []
    places: list[tuple[int, int]] = []
    for tracklet in real.tracklets[spread(len(real.tracklets), _REAL_TRACKLETS)].tolist():
        frames = spread(int(real.pack.lengths[tracklet]), _REAL_FRAMES)
        flow = real.pack.flow(tracklet, frames) if real.pack.has_flow else None
        features.append(embedder.encode(as_tensor(real.pack.frames(tracklet, frames), flow).to(device)))
        places += [(tracklet, frame) for frame in frames.tolist()]
    least, which = torch.cdist(steps.flatten(0, 1), torch.cat(features)).min(dim=1)
    found = []
    for place, distance in zip(which.tolist(), least.tolist(), strict=True):
        tracklet, frame = places[place]
        found.append(Neighbour(tracklet, frame, distance))
    length = steps.shape[1]
    return [found[start : start + length] for start in range(0, len(found), length)]


@torch.inference_mode()
def draw_pseudo(
    method: AlignmentMethod, images: Sequence[Part], real: Part, title: str, path: Path, *, seed: int
) -> None:
    """Draw a few of ``images`` with the pseudo sequence of each into a PNG file.

    Frames that were generated are shown as they are; steps that exist as features alone, as the frame of
    ``real`` nearest to each. ``method`` is in evaluation mode; ``seed`` is that of the motions drawn.
    """
    stills = [
        (part.pack, int(part.tracklets[place]))
        for part, count in zip(images, _shares(STILLS, len(images)), strict=True)
        for place in spread(len(part.tracklets), count)
    ]
    device = next(method.parameters()).device
    shown = as_tensor(np.concatenate([pack.frames(tracklet) for pack, tracklet in stills]), None).to(device)
    torch.manual_seed(seed)
    frames = method.pseudo_frames(shown)
    length = method.config.alignment.length
    chosen = _shown_steps(length)
    if frames is not None:
        generated = (frames.clamp(0, 1) * 255).round().byte().movedim(2, -1).cpu().numpy()
        cells = [[_Cell(row[step], ()) for step in chosen] for row in generated]
        notes: tuple[str, ...] = ("Below each offset, in frames from the image: the frame generated.",)
    else:
        found = nearest_frames(method.embedder, method.pseudo_steps(shown), real)
        cells = [[_neighbour(real.pack, row[step]) for step in chosen] for row in found]
        notes = (
            "Below each offset, in frames from the image: the real frame",
            "nearest to the generated feature, and the distance of the two.",
        )
    rows = [
        _Row(
            f"{pack.name}: identity {pack.identities[tracklet]} in camera {pack.cameras[tracklet]}",
            _Cell(pack.frames(tracklet)[0], ()),
            tuple(row),
        )
        for (pack, tracklet), row in zip(stills, cells, strict=True)
    ]
    offsets = (f"{step - length // 2:+d}".replace("+0", "0") for step in chosen)
    _draw_rows(title, notes, ("image", *offsets), rows, path)


def spread(available: int, count: int) -> NDArray[np.int64]:
    """``count`` indices, or as many as there are, evenly over ``range(available)`` with both its ends."""
    return np.linspace(0, available - 1, min(count, available)).round().astype(np.int64)


def file_name(*parts: str) -> str:
    """The name of a picture: ``retrieval-alignment-prid.png``."""
    return "-".join(parts).replace("/", "_") + ".png"


def cmc_title(pack: Pack) -> str:
    """What a CMC is on, and what its protocol ranks where that is not plainly the whole gallery."""
    return f"CMC on {pack.name}{_PROTOCOLS[pack.protocol]}"


def _deviation(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Of a sample of runs, 0 for a single one."""
    return values.std(axis=0, ddof=1) if len(values) > 1 else np.zeros(values.shape[1])


def _band(curves: Mapping[str, Sequence[Sequence[float]]]) -> str:
    counts = {len(runs) for runs in curves.values()}
    runs = " to ".join(str(count) for count in sorted({min(counts), max(counts)}))
    if counts == {1}:
        return "one run of each"
    return f"mean of {runs} runs of each, band: \N{PLUS-MINUS SIGN}1 standard deviation over runs"


def _shares(total: int, parts: int) -> Iterator[int]:
    """``total`` in so many nearly equal shares, the larger ones first, each at least 1."""
    return (max(1, total // parts + (part < total % parts)) for part in range(parts))


def _shown_steps(length: int) -> list[int]:
    """Steps of a pseudo sequence that are shown; symmetric about the middle, as ``length`` is odd."""
    return [int(step) for step in spread(length, STEPS)]


def _middle_frame(pack: Pack, tracklet: int) -> NDArray[np.uint8]:
    frame: NDArray[np.uint8] = pack.frames(tracklet)[int(pack.lengths[tracklet]) // 2]
    return frame


@dataclass(frozen=True, slots=True, eq=False)
class _Cell:
    """One frame, ``[height, width, 3]``, with small text below it."""

    frame: NDArray[np.uint8]
    lines: tuple[str, ...]
    right: bool | None = None
    """Whether the frame is framed and marked as right or as wrong, or as neither."""


@dataclass(frozen=True, slots=True, eq=False)
class _Row:
    """One frame, a gap, and what was found for it."""

    heading: str
    first: _Cell
    rest: tuple[_Cell, ...]


def _candidate(pack: Pack, candidate: Candidate) -> _Cell:
    identity, camera = pack.identities[candidate.tracklet], pack.cameras[candidate.tracklet]
    lines = (str(identity), f"camera {camera}", f"{candidate.distance:.3f}")
    return _Cell(_middle_frame(pack, candidate.tracklet), lines, candidate.right)


def _neighbour(pack: Pack, found: Neighbour) -> _Cell:
    identity, camera = pack.identities[found.tracklet], pack.cameras[found.tracklet]
    lines = (str(identity), f"camera {camera}", f"frame {found.frame + 1}", f"{found.distance:.2f}")
    return _Cell(pack.frames(found.tracklet)[found.frame], lines)


_HEIGHT = 136  # of a frame
_LEAST_WIDTH = 84  # of a column: text is below it
_BORDER, _BETWEEN, _APART, _LINE = 4, 8, 28, 15


def _draw_rows(
    title: str,
    notes: Sequence[str],
    columns: Sequence[str],
    rows: Sequence[_Row],
    path: Path,
    *,
    key: bool = False,
) -> None:
    """Write rows of frames under ``columns`` into a PNG file; ``key`` explains the marks."""
    large, medium, small = (ImageFont.load_default(size) for size in (22, 14, 12))
    first = rows[0].first.frame
    size = (round(_HEIGHT * first.shape[1] / first.shape[0]), _HEIGHT)
    step = max(size[0] + 2 * _BORDER, _LEAST_WIDTH) + _BETWEEN
    lefts = [MARGIN, *(MARGIN + _APART + step * column for column in range(1, len(columns)))]
    tallest = max(len(cell.lines) for row in rows for cell in row.rest)
    tall = 26 + _HEIGHT + 2 * _BORDER + 5 + tallest * _LINE + 18
    top = MARGIN + 34 + 18 * (len(notes) + key) + 34
    texts = [(title, large), *((note, small) for note in notes), *((row.heading, medium) for row in rows)]
    widest = max(font.getlength(text) for text, font in texts)
    width = max(lefts[-1] + step - _BETWEEN, MARGIN + round(widest)) + MARGIN
    sheet = Image.new("RGB", (width, top + tall * len(rows) - 18 + MARGIN), PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((MARGIN, MARGIN - 4), title, INK, large)
    for line, note in enumerate(notes):
        draw.text((MARGIN, MARGIN + 30 + 18 * line), note, GREY, small)
    if key:
        _draw_key(draw, MARGIN, MARGIN + 30 + 18 * len(notes), small)
    for left, column in zip(lefts, columns, strict=True):
        draw.text((left + _BORDER, top - 26), column, INK, medium)
    for number, row in enumerate(rows):
        y = top + tall * number
        draw.line((MARGIN, y - 4, width - MARGIN, y - 4), RULE)
        draw.text((MARGIN, y + 2), row.heading, INK, medium)
        for left, cell in zip(lefts, (row.first, *row.rest), strict=False):
            _draw_cell(sheet, draw, cell, (left, y + 26), size, small)
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path)


def _draw_cell(
    sheet: Image.Image,
    draw: ImageDraw.ImageDraw,
    cell: _Cell,
    place: tuple[int, int],
    size: tuple[int, int],
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
) -> None:
    x, y = place
    right, bottom = x + size[0] + 2 * _BORDER - 1, y + size[1] + 2 * _BORDER - 1
    colour = {True: _RIGHT, False: _WRONG, None: EMPTY}[cell.right]
    draw.rectangle((x, y, right, bottom), colour)
    frame = Image.fromarray(cell.frame).resize(size, Image.Resampling.LANCZOS)
    sheet.paste(frame, (x + _BORDER, y + _BORDER))
    if cell.right is not None:
        _draw_mark(draw, right - 21, y, cell.right)
    room = max(size[0] + 2 * _BORDER, _LEAST_WIDTH)
    for line, text in enumerate(cell.lines):
        draw.text((x, bottom + 5 + _LINE * line), _fitted(text, room, font), GREY, font)


def _draw_key(
    draw: ImageDraw.ImageDraw, x: int, y: int, font: ImageFont.FreeTypeFont | ImageFont.ImageFont
) -> None:
    for right, text in ((True, "the query's identity"), (False, "another identity, or a distractor")):
        _draw_mark(draw, x, y - 2, right)
        draw.text((x + 28, y), text, GREY, font)
        x += 28 + round(font.getlength(text)) + 24


def _draw_mark(draw: ImageDraw.ImageDraw, x: int, y: int, right: bool) -> None:
    """A tick or a cross on a square of 22 pixels: told apart without colours."""
    draw.rectangle((x, y, x + 21, y + 21), _RIGHT if right else _WRONG)
    strokes = [(5, 11, 9, 16, 16, 6)] if right else [(6, 6, 15, 15), (6, 15, 15, 6)]
    for stroke in strokes:
        moved = [place + (y if axis % 2 else x) for axis, place in enumerate(stroke)]
        draw.line(moved, PAPER, 3, joint="curve")


def _fitted(text: str, room: int, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    """The text, or its end after dots where it is wider than ``room`` pixels: numbers stand last."""
    if font.getlength(text) <= room:
        return text
    while text and font.getlength(f"...{text}") > room:
        text = text[1:]
    return f"...{text}"
