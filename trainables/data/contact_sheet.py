"""A page of people as one picture: does the set look as it should?"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from trainables.data.decoding import decode
from trainables.data.tracklet import DISTRACTOR, JUNK, DataError, DataSet

INK, GREY, PAPER, EMPTY, RULE = "#1d232b", "#737b85", "#ffffff", "#f0f1f3", "#dfe2e6"
MARGIN, GAP, CAMERA_GAP, ROW_GAP = 24, 3, 18, 16


class Packed(Protocol):
    """The part of a pack that a contact sheet needs."""

    name: str
    kind: Literal["sequence", "image"]

    @property
    def identities(self) -> NDArray[np.str_]:
        """Identity of every tracklet."""

    @property
    def cameras(self) -> NDArray[np.str_]:
        """Camera of every tracklet."""

    @property
    def lengths(self) -> NDArray[Any]:
        """Number of frames of every tracklet."""

    def frames(self, tracklet: int, indices: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Frames of one tracklet, uint8 RGB ``[time, height, width, 3]``."""


class _Source:
    """A data set or a pack, seen as (identity, camera) and a way to fetch frames."""

    def __init__(self, data: DataSet | Packed) -> None:
        self.name, self.kind = data.name, data.kind
        self.frame: Callable[[int, int], NDArray[np.uint8]]
        if isinstance(data, DataSet):
            found = [(t.identity, t.camera, len(t.frames)) for t in data.tracklets]
            self.frame = lambda tracklet, index: decode(data.tracklets[tracklet].frames[index])
        else:
            columns = (data.identities.tolist(), data.cameras.tolist(), data.lengths.tolist())
            found = list(zip(*columns, strict=True))
            self.frame = lambda tracklet, index: data.frames(tracklet, np.array([index]))[0]
        self.lengths = [length for _, _, length in found]
        self.tracklets: dict[str, dict[str, list[int]]] = {}
        for i, (identity, camera, _) in enumerate(found):
            if identity not in (JUNK, DISTRACTOR):
                self.tracklets.setdefault(identity, {}).setdefault(camera, []).append(i)

    def choose_identities(self, count: int) -> list[str]:
        """``count`` people spread evenly over those in several cameras, or over all when there are none."""
        several = sorted(person for person, cameras in self.tracklets.items() if len(cameras) > 1)
        people = several or sorted(self.tracklets)
        return [people[i] for i in _spread(len(people), count)]

    def cells(self, tracklets: Sequence[int], count: int) -> list[tuple[int, int]]:
        """``count`` (tracklet, frame) of one person in one camera: of one sequence, or of several stills."""
        if self.kind == "sequence":
            return [(tracklets[0], i) for i in _spread(self.lengths[tracklets[0]], count)]
        return [(tracklets[i], 0) for i in _spread(len(tracklets), count)]

    def caption(self, cameras: dict[str, list[int]]) -> list[str]:
        """One line for each camera: how much there is of a person."""
        unit = "image" if self.kind == "image" else "tracklet"
        lines = []
        for camera, tracklets in sorted(cameras.items()):
            number = len(tracklets)
            lines.append(f"{camera}: {number} {unit}{'' if number == 1 else 's'}")
            if self.kind == "sequence":
                lines[-1] += f", {sum(self.lengths[i] for i in tracklets)} frames"
        return lines


def contact_sheet(
    data: DataSet | Packed,
    path: str | Path,
    *,
    identities: int = 8,
    cameras: int = 4,
    frames: int = 4,
    height: int = 128,
) -> Path:
    """Draw people as rows, cameras and frames as columns, into a PNG or JPEG file.

    Args:
        data: a data set as read, or a pack.
        path: the picture; its suffix chooses the format.
        identities: rows at most; people in several cameras, spread evenly over the set.
        cameras: cameras at most.
        frames: frames of each camera at most, spread evenly over the tracklet.
        height: height of a frame in pixels; its width follows from the first frame drawn.

    Raises:
        DataError: a frame cannot be read, no identity can be shown or the picture cannot be written.
    """
    source = _Source(data)
    if not source.tracklets:
        raise DataError(f"{data.name}: no identity to show; expected at least one")
    people = source.choose_identities(identities)
    shown = sorted({camera for person in people for camera in source.tracklets[person]})[:cameras]
    across = max(
        len(source.cells(tracklets, frames)) for p in people for tracklets in source.tracklets[p].values()
    )
    first = source.frame(next(iter(source.tracklets[people[0]].values()))[0], 0)
    cell = (round(height * first.shape[1] / first.shape[0]), height)
    title = (
        f"{len(source.tracklets):,} identities, {len(source.lengths):,} tracklets,"
        f" {sum(source.lengths):,} frames; {len(people)} shown"
    )
    sheet = _draw(source, people, shown, across, cell, title)
    target = Path(path)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        sheet.save(target)
    except (OSError, ValueError) as error:
        raise DataError(f"{target}: cannot be written ({error}); expected a writable .png or .jpg") from error
    return target


def _draw(
    source: _Source, people: list[str], cameras: list[str], across: int, cell: tuple[int, int], title: str
) -> Image.Image:
    width, height = cell
    large, medium, small = (ImageFont.load_default(size) for size in (22, 15, 12))
    captions = {person: source.caption(source.tracklets[person]) for person in people}
    label = 16 + max(
        round(font.getlength(line))
        for person in people
        for font, lines in ((medium, [person]), (small, captions[person]))
        for line in lines
    )
    block = across * (width + GAP) - GAP
    top = MARGIN + 88
    needed = MARGIN + label + len(cameras) * (block + CAMERA_GAP) - CAMERA_GAP + MARGIN
    right = max(needed, round(small.getlength(title)) + 2 * MARGIN)
    sheet = Image.new("RGB", (right, top + len(people) * (height + ROW_GAP) - ROW_GAP + MARGIN), PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((MARGIN, MARGIN - 4), source.name, INK, large)
    draw.text((MARGIN, MARGIN + 26), title, GREY, small)
    lefts = {c: MARGIN + label + i * (block + CAMERA_GAP) for i, c in enumerate(cameras)}
    for camera, left in lefts.items():
        draw.text((left, top - 28), f"camera {camera}", INK, medium)
        draw.line((left, top - 7, left + block - 1, top - 7), RULE, 2)
    for row, person in enumerate(people):
        y = top + row * (height + ROW_GAP)
        draw.text((MARGIN, y), person, INK, medium)
        draw.multiline_text((MARGIN, y + 24), "\n".join(captions[person]), GREY, small, spacing=5)
        for camera, left in lefts.items():
            tracklets = source.tracklets[person].get(camera, [])
            cells = source.cells(tracklets, across) if tracklets else []
            for column in range(across):
                x = left + column * (width + GAP)
                if column < len(cells):
                    frame = Image.fromarray(source.frame(*cells[column]))
                    sheet.paste(frame.resize(cell, Image.Resampling.LANCZOS), (x, y))
                else:
                    draw.rectangle((x, y, x + width - 1, y + height - 1), EMPTY)
    return sheet


def _spread(available: int, count: int) -> list[int]:
    """``count`` indices, or as many as there are, spread evenly over ``range(available)``."""
    return sorted({round(place) for place in np.linspace(0, available - 1, min(count, available)).tolist()})
