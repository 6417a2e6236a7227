"""Tracklets, the item type of every data set, and splits into training, query and gallery."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

JUNK = "junk"
"""Identity of boxes that every protocol ignores (MARS ``00-1``, Market-1501 ``-1``)."""

DISTRACTOR = "distractor"
"""Identity of gallery boxes that match no query (MARS and Market-1501 ``0000``)."""

LONGEST = 128
"""Maximum number of frames used of a tracklet (McLaughlin et al., CVPR 2016, test with K <= 128)."""

Protocol = Literal["whole-gallery", "single-gallery-shot", "mars"]
"""Protocol that scores the test part of a set; see `trainables.evaluation.scoring.score_by_protocol`."""


class Frame(NamedTuple):
    """Reference to one image: a file, or the object ``key`` inside an HDF5 file."""

    path: Path
    key: str | None = None


@dataclass(frozen=True, slots=True)
class Tracklet:
    """Frames of one identity in one camera, in order of time. A still image is a tracklet of length 1."""

    identity: str
    camera: str
    frames: tuple[Frame, ...]


@dataclass(frozen=True, slots=True)
class Split:
    """Indices of the tracklets of a ``DataSet`` that are for training, query and gallery.

    Identities of ``train`` never occur in ``query`` or ``gallery``. A set without an official protocol has
    one split.
    """

    train: tuple[int, ...]
    query: tuple[int, ...]
    gallery: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class DataSet:
    """All tracklets of a set and its official splits, as returned by a reader."""

    name: str
    kind: Literal["sequence", "image"]
    tracklets: tuple[Tracklet, ...]
    splits: tuple[Split, ...]
    notes: tuple[str, ...] = field(default=())
    """What to know of the set, such as differences from the published counts, one line each."""
    protocol: Protocol = "whole-gallery"
