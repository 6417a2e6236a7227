"""Whole tracklets to L2-normalised features, on one worker or shared out over all of them."""

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import distributed
from torch.nn.functional import normalize

from trainables.data.loading import Part, as_tensor
from trainables.network.embedder import SequenceEmbedder
from trainables.scoring import Score, score

LONGEST = 128
"""Frames of a tracklet that are used, from its first (McLaughlin et al., CVPR 2016, test with K <= 128)."""

_FRAMES_AT_ONCE = 512
"""Frames embedded in one go: bounds memory."""


@torch.inference_mode()
def embed(
    embedder: SequenceEmbedder, part: Part, device: torch.device, *, rank: int = 0, workers: int = 1
) -> NDArray[np.float32]:
    """Features ``[tracklet, feature]`` of ``part``, each of length 1, in the order of its tracklets.

    The embedder is left in evaluation mode. Several ``workers`` share the work; each gets the whole result.
    Raises ``FloatingPointError`` when a feature is not finite.
    """
    embedder.eval()
    features = torch.zeros(len(part.tracklets), embedder.dimension, device=device)
    for positions, length in _groups(part, rank, workers):
        chosen, pack = part.tracklets[positions], part.pack
        frames = np.stack([pack.frames(tracklet, slice(length)) for tracklet in chosen])
        flow = np.stack([pack.flow(t, slice(length)) for t in chosen]) if pack.has_flow else None
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            pooled = embedder(as_tensor(frames, flow).to(device))
        features[torch.from_numpy(positions).to(device)] = normalize(pooled.float())
    if workers > 1:
        distributed.all_reduce(features)  # rows of other workers are zero: the sum is the union
    if not bool(features.isfinite().all()):
        raise FloatingPointError("an embedded tracklet is not finite")
    return features.cpu().numpy()


def retrieve(
    embedder: SequenceEmbedder,
    query: Part,
    gallery: Part,
    device: torch.device,
    *,
    rank: int = 0,
    workers: int = 1,
) -> Score:
    """Embed two parts of one pack, a tracklet in both only once, and rank the gallery for every query."""
    everything = np.union1d(query.tracklets, gallery.tracklets)
    features = embed(embedder, Part(query.pack, everything), device, rank=rank, workers=workers)
    return score(
        features[np.searchsorted(everything, query.tracklets)],
        features[np.searchsorted(everything, gallery.tracklets)],
        query.identities,
        gallery.identities,
        query.cameras,
        gallery.cameras,
    )


def _groups(part: Part, rank: int, workers: int) -> Iterator[tuple[NDArray[np.int64], int]]:
    """Positions of tracklets that are embedded together, being of one length, and that length."""
    lengths = np.minimum(part.lengths, LONGEST)
    for length in np.unique(lengths):
        alike = np.flatnonzero(lengths == length)[rank::workers]
        size = max(1, _FRAMES_AT_ONCE // int(length))
        for start in range(0, len(alike), size):
            yield alike[start : start + size], int(length)
