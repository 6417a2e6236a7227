"""How far stills and their pseudo sequences are from real sequences, on identities that do not train."""

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import normalize

from trainables.data.loading import as_tensor
from trainables.data.parts import Part
from trainables.methods.alignment import AlignmentMethod
from trainables.methods.joint import JointMethod
from trainables.methods.method import Method, MethodConfig

STILL_GAP, PSEUDO_GAP = "val/still/gap", "val/pseudo/gap"

PSEUDO_METRICS = (STILL_GAP, PSEUDO_GAP, "val/pseudo/motion", "val/pseudo/content")
"""All that `measure_pseudo` may measure; less is better."""

_FRAMES_AT_ONCE = 512
"""Frames encoded at a time, to bound memory."""


def pseudo_metrics(method: type[Method], config: MethodConfig) -> set[str]:
    """Return the names of what `measure_pseudo` measures with a method."""
    names = {STILL_GAP}
    if issubclass(method, JointMethod):
        names.add(PSEUDO_GAP)
    if issubclass(method, AlignmentMethod):
        names |= {f"val/pseudo/{term}" for term in method.terms(config) & {"motion", "content"}}
    return names


@torch.inference_mode()
def measure_pseudo(method: Method, part: Part, device: torch.device) -> dict[str, float]:
    """Compare stills with the real sequences around them, by the metrics of `pseudo_metrics`.

    Of every tracklet of ``part`` with at least ``alignment.length`` frames, the frames in the middle are a
    real sequence, and the middle one of these is the still.

    - ``val/still/gap``: squared distance between the features of the still, shown as a motionless sequence
      without optical flow, and of the real sequence; relative to the mean squared distance between the real
      sequences of two identities. At 0 nothing is left for generated motion to close.
    - ``val/pseudo/gap``: the same with the still's pseudo sequence.
    - ``val/pseudo/motion`` and ``val/pseudo/content``: errors of what MGM and CGM generate, as their losses
      define them. Standing still has an error of 1.

    Features have unit length, as in retrieval. The metrics are missing if no two identities can be compared.
    The method stays in evaluation mode, and the motions that MGM samples are the same in every call.
    """
    method.eval()
    embedder, length = method.embedder, method.config.alignment.length
    chosen = np.flatnonzero(part.lengths >= length)
    identities = part.identities[chosen]
    if len(np.unique(identities)) < 2:
        return {}
    features: dict[str, list[Tensor]] = {"real": [], "still": [], "pseudo": []}
    terms: dict[str, float] = {}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for frames in _clips(part, chosen, length):
            clips = frames.to(device)
            stills = clips[:, length // 2, :3]
            features["real"].append(normalize(embedder(clips)))
            held = embedder.hold(embedder.spatial(stills), length)
            features["still"].append(normalize(embedder.aggregate(held)))
            if isinstance(method, JointMethod):
                steps = method.pseudo_steps(method.as_frames(stills))
                features["pseudo"].append(normalize(embedder.aggregate(steps)))
            if isinstance(method, AlignmentMethod):
                maps = embedder.spatial(clips.flatten(0, 1))
                for name, term in method.generator_terms(clips, maps).items():
                    terms[name] = terms.get(name, 0.0) + float(term) * len(clips) / len(chosen)
    real = torch.cat(features["real"])
    between = _between_identities(real, identities)
    if between == 0:
        return {}
    gaps = {
        f"val/{kind}/gap": float((torch.cat(features[kind]) - real).square().sum(dim=1).mean()) / between
        for kind in ("still", "pseudo")
        if features[kind]
    }
    return gaps | {f"val/pseudo/{name}": value for name, value in terms.items()}


def _clips(part: Part, positions: NDArray[np.int64], length: int) -> Iterator[Tensor]:
    """Yield the ``length`` frames in the middle of tracklets, ``[clip, length, channel, height, width]``."""
    pack, size = part.pack, max(1, _FRAMES_AT_ONCE // length)
    for first in range(0, len(positions), size):
        clips = []
        for tracklet in part.tracklets[positions[first : first + size]].tolist():
            start = (int(pack.lengths[tracklet]) - length) // 2
            window = slice(start, start + length)
            flow = pack.flow(tracklet, window) if pack.has_flow else None
            clips.append(as_tensor(pack.frames(tracklet, window), flow))
        yield torch.stack(clips)


def _between_identities(features: Tensor, identities: NDArray[np.str_]) -> float:
    """Return the mean squared distance of two rows of ``features`` with different identities.

    For rows of unit length, the sum over all pairs (i, j) of n rows is ``2 n² - 2 |sum of the rows|²``.
    """

    def of_pairs(rows: Tensor) -> float:
        return 2 * len(rows) ** 2 - 2 * float(rows.double().sum(dim=0).square().sum())

    same = [features[torch.from_numpy(identities == name)] for name in np.unique(identities)]
    pairs = len(features) ** 2 - sum(len(rows) ** 2 for rows in same)
    distance = (of_pairs(features) - sum(map(of_pairs, same))) / pairs
    return max(0.0, distance)
