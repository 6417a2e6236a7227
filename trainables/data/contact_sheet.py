"""A contact sheet: one picture with frames of several identities, to check how a data set looks."""

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from trainables.data.decoding import decode
from trainables.data.sampling import evenly_spaced
from trainables.data.tracklet import DISTRACTOR, JUNK, DataSet
from trainables.errors import DataError
from trainables.picture_style import EMPTY, MUTED, SETTINGS, save, show_frame

_CHARACTER = 0.07
"""Inches for a character of a caption."""


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
    """A data set or a pack: its tracklets by identity and camera, and their frames."""

    def __init__(self, data: DataSet | Packed) -> None:
        self.name, self.kind = data.name, data.kind
        self.frame: Callable[[int, int], NDArray[np.uint8]]
        """Return a frame of a tracklet, by both indices."""
        if isinstance(data, DataSet):
            facts = [
                (tracklet.identity, tracklet.camera, len(tracklet.frames)) for tracklet in data.tracklets
            ]
            self.frame = lambda tracklet, index: decode(data.tracklets[tracklet].frames[index])
        else:
            columns = (data.identities.tolist(), data.cameras.tolist(), data.lengths.tolist())
            facts = list(zip(*columns, strict=True))
            self.frame = lambda tracklet, index: data.frames(tracklet, np.array([index]))[0]
        self.lengths = [length for _, _, length in facts]
        self.tracklets: dict[str, dict[str, list[int]]] = {}
        for index, (identity, camera, _) in enumerate(facts):
            if identity not in (JUNK, DISTRACTOR):
                self.tracklets.setdefault(identity, {}).setdefault(camera, []).append(index)

    def choose_identities(self, count: int) -> list[str]:
        """Return ``count`` identities, evenly spaced among those in several cameras if there are any."""
        several = sorted(identity for identity, cameras in self.tracklets.items() if len(cameras) > 1)
        identities = several or sorted(self.tracklets)
        return [identities[index] for index in evenly_spaced(len(identities), count).tolist()]

    def choose_frames(self, tracklets: Sequence[int], count: int) -> list[tuple[int, int]]:
        """Return ``count`` pairs of tracklet and frame: of one sequence, or of several images."""
        if self.kind == "sequence":
            first = tracklets[0]
            return [(first, index) for index in evenly_spaced(self.lengths[first], count).tolist()]
        return [(tracklets[index], 0) for index in evenly_spaced(len(tracklets), count).tolist()]

    def caption(self, identity: str) -> str:
        """Return one line for each camera: its number of tracklets and frames of the identity."""
        unit = "image" if self.kind == "image" else "tracklet"
        lines = []
        for camera, tracklets in sorted(self.tracklets[identity].items()):
            number = len(tracklets)
            lines.append(f"{camera}: {number} {unit}{'' if number == 1 else 's'}")
            if self.kind == "sequence":
                lines[-1] += f", {sum(self.lengths[index] for index in tracklets)} frames"
        return "\n".join(lines)


def contact_sheet(
    data: DataSet | Packed,
    path: str | Path,
    *,
    identities: int = 8,
    cameras: int = 4,
    frames: int = 4,
    height: float = 0.9,
) -> Path:
    """Draw identities as rows, cameras and frames as columns, into a PNG or JPEG file.

    Args:
        data: a data set as read, or a pack.
        path: the picture; its suffix chooses the format.
        identities: most rows; identities in several cameras, evenly spaced over the set.
        cameras: most cameras, those with the most of these identities.
        frames: most frames of each camera, evenly spaced over the tracklet.
        height: height of a frame in inches; its width follows from the first frame drawn.

    Raises:
        DataError: a frame cannot be read, no identity can be shown or the picture cannot be written.
    """
    source = _Source(data)
    if not source.tracklets:
        raise DataError(f"{data.name}: no identity to show; expected at least one")
    shown = source.choose_identities(identities)
    uses = Counter(camera for identity in shown for camera in source.tracklets[identity])
    shown_cameras = sorted(camera for camera, _ in sorted(uses.items(), key=_by_use)[:cameras])
    all_cameras = {camera for by_camera in source.tracklets.values() for camera in by_camera}
    title = _title(source, len(shown), len(shown_cameras), len(all_cameras))
    target = Path(path)
    with matplotlib.rc_context(SETTINGS):
        figure = _draw(source, shown, shown_cameras, frames, height)
        figure.suptitle(title, x=0, ha="left", fontsize=12)
        try:
            save(figure, target)
        except (OSError, ValueError) as error:
            raise DataError(
                f"{target}: cannot be written ({error}); expected a writable .png or .jpg"
            ) from error
    return target


def _draw(
    source: _Source, identities: Sequence[str], cameras: Sequence[str], frames: int, height: float
) -> Figure:
    across = max(
        len(source.choose_frames(tracklets, frames))
        for identity in identities
        for tracklets in source.tracklets[identity].values()
    )
    first = source.frame(next(iter(source.tracklets[identities[0]].values()))[0], 0)
    block = across * height * first.shape[1] / first.shape[0]
    captions = [source.caption(identity) for identity in identities]
    lines = [line for text in (*identities, *captions) for line in text.splitlines()]
    label = _CHARACTER * max(map(len, lines)) + 0.2
    figure = Figure(figsize=(label + len(cameras) * (block + 0.15), 0.8 + len(identities) * (height + 0.15)))
    rows = figure.subplots(
        len(identities), 1 + len(cameras), squeeze=False, width_ratios=[label, *[block] * len(cameras)]
    )
    for identity, caption, (label_axes, *blocks) in zip(identities, captions, rows, strict=True):
        _label(label_axes, identity, caption)
        for camera, axes in zip(cameras, blocks, strict=True):
            tracklets = source.tracklets[identity].get(camera, [])
            _show_frames(axes, source, source.choose_frames(tracklets, across) if tracklets else [])
            axes.set(xlim=(0, across), ylim=(0, 1), box_aspect=height / block, anchor="NW")
    for camera, axes in zip(cameras, rows[0][1:], strict=True):
        axes.set_title(f"camera {camera}", fontsize=10)
    return figure


def _by_use(camera: tuple[str, int]) -> tuple[int, str]:
    name, identities = camera
    return -identities, name


def _title(source: _Source, identities: int, cameras: int, all_cameras: int) -> str:
    """Return the counts of the set, and how many of its identities and cameras are shown."""
    return (
        f"{source.name}: {len(source.tracklets):,} identities, {len(source.lengths):,} tracklets,"
        f" {sum(source.lengths):,} frames\nshown: {identities} identities, {cameras} of {all_cameras} cameras"
    )


def _label(axes: Axes, identity: str, caption: str) -> None:
    """Write an identity and its caption at the start of a row."""
    axes.set_axis_off()
    axes.text(0, 1, identity, va="top", fontsize=10)
    axes.annotate(
        caption,
        (0, 1),
        (0, -15),
        xycoords="axes fraction",
        textcoords="offset points",
        va="top",
        color=MUTED,
        fontsize=8,
    )


def _show_frames(axes: Axes, source: _Source, chosen: Sequence[tuple[int, int]]) -> None:
    """Show frames side by side; the space of absent frames is grey."""
    axes.set(facecolor=EMPTY, xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
    for position, (tracklet, index) in enumerate(chosen):
        show_frame(axes, source.frame(tracklet, index), (position, position + 1, 0, 1))
    for position in range(1, len(chosen)):
        axes.axvline(position, color="white", linewidth=2)
