"""The one item type of every data set: a tracklet, with the splits that say how it is used."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

JUNK = "junk"
"""Identity of boxes that no protocol counts (MARS ``00-1``, Market-1501 ``-1``)."""

DISTRACTOR = "distractor"
"""Identity of gallery boxes that match no query (MARS and Market-1501 ``0000``)."""


Protocol = Literal["whole-gallery", "single-gallery-shot", "mars"]
"""How the test part of a set is scored; `trainables.evaluation.scoring.score_by_protocol` says what each is."""


class DataError(ValueError):
    """The user's data is at fault. ``str()`` is one line: what is wrong, where, and what would be right."""


class Frame(NamedTuple):
    """Where one image lies: a file, or an object inside an HDF5 file when ``key`` is given."""

    path: Path
    key: str | None = None


@dataclass(frozen=True, slots=True)
class Tracklet:
    """Frames of one identity in one camera, in time order. A still image is a tracklet of length 1."""

    identity: str
    camera: str
    frames: tuple[Frame, ...]


@dataclass(frozen=True, slots=True)
class Split:
    """Which tracklets (by index into ``DataSet.tracklets``) train, query and form the gallery.

    Identities of ``train`` never occur in ``query``. A set without a protocol of its own has one split.
    """

    train: tuple[int, ...]
    query: tuple[int, ...]
    gallery: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class DataSet:
    """What a reader found: every tracklet, and the official splits of the set."""

    name: str
    kind: Literal["sequence", "image"]
    tracklets: tuple[Tracklet, ...]
    splits: tuple[Split, ...]
    notes: tuple[str, ...] = field(default=())
    """Differences from the published counts that do not forbid use, one line each."""
    protocol: Protocol = "whole-gallery"
