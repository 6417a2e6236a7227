"""Tracklets to L2-normalised features, on one worker or shared out over all of them, and to scores."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from torch import distributed
from torch.nn.functional import normalize

from trainables.data.loading import Part, as_tensor
from trainables.evaluation.scoring import Score, score, score_by_protocol
from trainables.network.embedder import SequenceEmbedder

LONGEST = 128
"""Frames of a tracklet that are used, from its first (McLaughlin et al., CVPR 2016, test with K <= 128)."""

_FRAMES_AT_ONCE = 512
"""Frames embedded in one go: bounds memory."""


@dataclass(frozen=True, slots=True)
class View:
    """One way to look at a sequence: the window moved by whole pixels, then mirrored left to right or not."""

    down: int = 0
    right: int = 0
    mirrored: bool = False

    def __call__(
        self, frames: NDArray[np.uint8], flow: NDArray[np.float32] | None
    ) -> tuple[NDArray[np.uint8], NDArray[np.float32] | None]:
        """See ``frames [..., height, width, 3]`` and ``flow [..., height, width, 2]`` as training does.

        As in `trainables.data.augmentation`, the border is repeated, the size stays, and a mirrored sequence
        has the opposite horizontal flow.
        """
        height, width = frames.shape[-3:-1]
        rows = (np.arange(height) + self.down).clip(0, height - 1)[:, None]
        columns = (np.arange(width) + self.right).clip(0, width - 1)
        if self.mirrored:
            columns = columns[::-1]
        frames = frames[..., rows, columns, :]
        if flow is not None:
            flow = flow[..., rows, columns, :]
            if self.mirrored:
                flow[..., 0] *= -1
        return frames, flow


class EvaluationConfig(BaseModel):
    """How tracklets are shown when a test part is scored; validation shows each whole and once.

    Known: McLaughlin et al. (CVPR 2016) compare the first K frames in one camera with the last K in the other
    and sum the distances over 8 windows along the diagonal of a 40x56 crop, each mirrored or not. Our
    reading: the windows lie as theirs do, from corner to corner of what training shifts by, but a tracklet's
    feature is the mean of its unit features in every view, again of length 1. Summed distances would need
    every view of the whole gallery at once; a mean costs no more than one view once it is embedded, and is
    what a retrieval index can hold.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    frames: int | None = Field(
        None,
        ge=1,
        le=LONGEST,
        description="K: the first K frames of a query and the last K of a gallery tracklet; default: all, up"
        f" to the first {LONGEST}",
    )
    flip: bool = Field(False, description="average with the mirrored sequence")
    crops: int = Field(
        1,
        ge=1,
        le=32,
        description="average over so many windows, evenly from one corner to the other of augmentation.crop",
    )

    def views(self, crop: float, height: int, width: int) -> tuple[View, ...]:
        """The views averaged, for windows that move by up to half the fraction ``crop`` of either side."""
        down, right = (round(crop * side / 2) for side in (height, width))
        along = np.linspace(-1, 1, self.crops) if self.crops > 1 else np.zeros(1)
        places = dict.fromkeys((round(down * place), round(right * place)) for place in along.tolist())
        mirrored = (False, True) if self.flip else (False,)
        return tuple(View(*place, flip) for place in places for flip in mirrored)


PLAIN = EvaluationConfig()


@torch.inference_mode()
def embed(
    embedder: SequenceEmbedder,
    part: Part,
    device: torch.device,
    *,
    views: Sequence[View] = (View(),),
    frames: int = LONGEST,
    last: bool = False,
    rank: int = 0,
    workers: int = 1,
) -> NDArray[np.float32]:
    """Features ``[tracklet, feature]`` of ``part``, each of length 1, in the order of its tracklets.

    Uses the first ``frames`` of each tracklet, or the ``last``, and averages over ``views``. The embedder is
    left in evaluation mode. Several ``workers`` share the work; each gets the whole result.
    Raises ``FloatingPointError`` when a feature is not finite.
    """
    embedder.eval()
    features = torch.zeros(len(part.tracklets), embedder.dimension, device=device)
    for positions, length in _groups(part, frames, rank, workers):
        chosen, pack = part.tracklets[positions], part.pack
        window = slice(-length, None) if last else slice(length)
        colours = np.stack([pack.frames(tracklet, window) for tracklet in chosen])
        flow = np.stack([pack.flow(tracklet, window) for tracklet in chosen]) if pack.has_flow else None
        rows = torch.from_numpy(positions).to(device)
        for view in views:
            with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
                pooled = embedder(as_tensor(*view(colours, flow)).to(device))
            features[rows] += normalize(pooled.float())
    if workers > 1:
        distributed.all_reduce(features)  # rows of other workers are zero: the sum is the union
    if not bool(features.isfinite().all()):
        raise FloatingPointError("an embedded tracklet is not finite")
    return normalize(features).cpu().numpy()


def embed_sides(
    embedder: SequenceEmbedder,
    query: Part,
    gallery: Part,
    device: torch.device,
    config: EvaluationConfig = PLAIN,
    *,
    crop: float = 0.0,
    rank: int = 0,
    workers: int = 1,
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Features of two parts of one pack; a tracklet in both is embedded once where its frames are the same.

    ``crop`` is the fraction of the height and width that the windows of ``config.crops`` move within.
    """
    pack = query.pack
    views = config.views(crop, pack.height, pack.width)
    if config.frames is None:
        everything = np.union1d(query.tracklets, gallery.tracklets)
        features = embed(embedder, Part(pack, everything), device, views=views, rank=rank, workers=workers)
        places = (np.searchsorted(everything, part.tracklets) for part in (query, gallery))
        first, second = (features[place] for place in places)
        return first, second
    first, second = (
        embed(
            embedder, part, device, views=views, frames=config.frames, last=last, rank=rank, workers=workers
        )
        for part, last in ((query, False), (gallery, True))
    )
    return first, second


def retrieve(
    embedder: SequenceEmbedder,
    query: Part,
    gallery: Part,
    device: torch.device,
    *,
    rank: int = 0,
    workers: int = 1,
) -> Score:
    """Embed two parts of one pack plainly and rank the whole gallery for every query, as validation does."""
    features = embed_sides(embedder, query, gallery, device, rank=rank, workers=workers)
    return score(*features, *labels(query, gallery))


def evaluate(
    embedder: SequenceEmbedder,
    query: Part,
    gallery: Part,
    device: torch.device,
    config: EvaluationConfig = PLAIN,
    *,
    crop: float = 0.0,
) -> dict[str, Score]:
    """Embed a test part once, and score it under its set's protocol: see `scoring.score_by_protocol`."""
    return score_sides(query, gallery, embed_sides(embedder, query, gallery, device, config, crop=crop))


def score_sides(
    query: Part, gallery: Part, features: tuple[NDArray[np.float32], NDArray[np.float32]]
) -> dict[str, Score]:
    """Score an embedded test part under its set's protocol."""
    queried = np.isin(gallery.tracklets, query.tracklets)
    return score_by_protocol(query.pack.protocol, *features, *labels(query, gallery), queried=queried)


_Names = NDArray[np.str_]


def labels(query: Part, gallery: Part) -> tuple[_Names, _Names, _Names, _Names]:
    """Identities of query and gallery, cameras of query and gallery."""
    return query.identities, gallery.identities, query.cameras, gallery.cameras


def _groups(part: Part, frames: int, rank: int, workers: int) -> Iterator[tuple[NDArray[np.int64], int]]:
    """Positions of tracklets that are embedded together, being of one length, and that length."""
    lengths = np.minimum(part.lengths, frames)
    for length in np.unique(lengths):
        alike = np.flatnonzero(lengths == length)[rank::workers]
        size = max(1, _FRAMES_AT_ONCE // int(length))
        for start in range(0, len(alike), size):
            yield alike[start : start + size], int(length)
