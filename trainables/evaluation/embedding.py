"""Embedding of tracklets as L2-normalised features, on one or several workers, and their scores."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, distributed
from torch.nn.functional import normalize

from trainables.data.augmentation import shift_and_mirror
from trainables.data.loading import as_tensor
from trainables.data.parts import Part
from trainables.data.tracklet import LONGEST
from trainables.evaluation.scoring import Score, score, score_by_protocol
from trainables.network.section import Section

FRAMES_AT_ONCE = 512
"""Frames embedded at a time, to bound memory."""


class Embedder(Protocol):
    """What maps sequences to features: a `SequenceEmbedder`, or a model that was exported."""

    dimension: int

    def eval(self) -> Any:
        """Switch to evaluation mode."""

    def __call__(self, frames: Tensor) -> Tensor:
        """Map ``[batch, time, channel, height, width]`` to features ``[batch, dimension]``."""


@dataclass(frozen=True, slots=True)
class View:
    """Transformation of a sequence for testing: a shift by whole pixels, then an optional horizontal flip."""

    down: int = 0
    right: int = 0
    mirrored: bool = False

    def __call__(
        self, frames: NDArray[np.uint8], flow: NDArray[np.float32] | None
    ) -> tuple[NDArray[np.uint8], NDArray[np.float32] | None]:
        """Transform ``frames [..., height, width, 3]`` and ``flow [..., height, width, 2]``.

        As in `trainables.data.augmentation`, the border is repeated, the size is kept, and the horizontal
        flow of a mirrored sequence is negated.
        """
        return shift_and_mirror(frames, flow, self.down, self.right, self.mirrored)


class EvaluationConfig(Section):
    """Config of the frames and views of a tracklet that a test uses; validation uses one view of all frames.

    From the paper: McLaughlin et al. (CVPR 2016) compare the first K frames in one camera with the last K in
    the other, and sum distances over 8 windows along the diagonal of a 40x56 crop, with and without flip.

    Our interpretation: windows lie on the same diagonal, over the shifts that training uses, but a tracklet's
    feature is the normalised mean of its unit features in all views. Summed distances would need every view
    of the whole gallery; a mean is as small as a single view, and a retrieval index can store it.
    """

    frames: int | None = Field(
        None,
        ge=1,
        le=LONGEST,
        description="K: use a query's first and a gallery tracklet's last K frames; default: the first"
        f" {LONGEST}",
    )
    flip: bool = Field(False, description="also average over the mirrored sequence")
    crops: int = Field(
        1,
        ge=1,
        le=32,
        description="number of windows to average over, along the diagonal of augmentation.crop",
    )

    def views(self, crop: float, height: int, width: int) -> tuple[View, ...]:
        """Return the views to average; windows move by up to half the fraction ``crop`` of either side."""
        down, right = (round(crop * side / 2) for side in (height, width))
        diagonal = np.linspace(-1, 1, self.crops) if self.crops > 1 else np.zeros(1)
        shifts = dict.fromkeys((round(down * t), round(right * t)) for t in diagonal.tolist())
        flips = (False, True) if self.flip else (False,)
        return tuple(View(*shift, flip) for shift in shifts for flip in flips)


PLAIN = EvaluationConfig()


@torch.inference_mode()
def embed(
    embedder: Embedder,
    part: Part,
    device: torch.device,
    *,
    views: Sequence[View] = (View(),),
    frames: int = LONGEST,
    last: bool = False,
    rank: int = 0,
    workers: int = 1,
) -> NDArray[np.float32]:
    """Return features ``[tracklet, feature]`` of unit length, in the order of ``part.tracklets``.

    A feature is the mean over ``views`` of the tracklet's first ``frames`` frames, or of its last ones if
    ``last``. The embedder stays in evaluation mode. Several ``workers`` share the work; each gets the whole
    result.

    Raises:
        FloatingPointError: a feature is not finite.
    """
    embedder.eval()
    features = torch.zeros(len(part.tracklets), embedder.dimension, device=device)
    for positions, length in _groups(part, frames, rank, workers):
        tracklets, pack = part.tracklets[positions], part.pack
        window = slice(-length, None) if last else slice(length)
        colours = np.stack([pack.frames(tracklet, window) for tracklet in tracklets])
        flow = np.stack([pack.flow(tracklet, window) for tracklet in tracklets]) if pack.has_flow else None
        rows = torch.from_numpy(positions).to(device)
        for view in views:
            # In float32, as the exported model.
            features[rows] += normalize(embedder(as_tensor(*view(colours, flow)).to(device)))
    if workers > 1:
        distributed.all_reduce(features)  # other workers' rows are zero, so the sum joins all rows
    if not bool(features.isfinite().all()):
        raise FloatingPointError("the feature of a tracklet is not finite")
    return normalize(features).cpu().numpy()


def embed_sides(
    embedder: Embedder,
    query: Part,
    gallery: Part,
    device: torch.device,
    config: EvaluationConfig = PLAIN,
    *,
    crop: float = 0.0,
    rank: int = 0,
    workers: int = 1,
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return the features of two parts of one pack, ``query`` and ``gallery``.

    A tracklet in both parts is embedded once if both use the same frames. ``crop`` is the fraction of height
    and width within which the windows of ``config.crops`` move.
    """
    pack = query.pack
    views = config.views(crop, pack.height, pack.width)
    if config.frames is None:
        union = np.union1d(query.tracklets, gallery.tracklets)
        features = embed(embedder, Part(pack, union), device, views=views, rank=rank, workers=workers)
        rows = (np.searchsorted(union, part.tracklets) for part in (query, gallery))
        first, second = (features[row] for row in rows)
        return first, second
    first, second = (
        embed(
            embedder, part, device, views=views, frames=config.frames, last=last, rank=rank, workers=workers
        )
        for part, last in ((query, False), (gallery, True))
    )
    return first, second


def retrieve(
    embedder: Embedder,
    query: Part,
    gallery: Part,
    device: torch.device,
    *,
    rank: int = 0,
    workers: int = 1,
) -> Score:
    """Embed two parts of one pack, and score the whole gallery for every query, as validation does."""
    features = embed_sides(embedder, query, gallery, device, rank=rank, workers=workers)
    return score(*features, *labels(query, gallery))


def score_sides(
    query: Part, gallery: Part, features: tuple[NDArray[np.float32], NDArray[np.float32]]
) -> dict[str, Score]:
    """Score the features of a test part under its set's protocol; see `scoring.score_by_protocol`."""
    queried = np.isin(gallery.tracklets, query.tracklets)
    return score_by_protocol(query.pack.protocol, *features, *labels(query, gallery), queried=queried)


_Names = NDArray[np.str_]


def labels(query: Part, gallery: Part) -> tuple[_Names, _Names, _Names, _Names]:
    """Return the identities of query and gallery, then their cameras."""
    return query.identities, gallery.identities, query.cameras, gallery.cameras


def _groups(part: Part, frames: int, rank: int, workers: int) -> Iterator[tuple[NDArray[np.int64], int]]:
    """Yield positions of tracklets to embed together, and their common length in frames."""
    lengths = np.minimum(part.lengths, frames)
    for length in np.unique(lengths):
        positions = np.flatnonzero(lengths == length)[rank::workers]
        size = max(1, FRAMES_AT_ONCE // int(length))
        for start in range(0, len(positions), size):
            yield positions[start : start + size], int(length)
