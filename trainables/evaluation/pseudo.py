"""How far stills and their pseudo sequences are from real sequences, on identities that do not train."""

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import normalize

from trainables.data.loading import as_tensor
from trainables.data.parts import Part
from trainables.evaluation.embedding import FRAMES_AT_ONCE
from trainables.methods.alignment import AlignmentMethod
from trainables.methods.joint import JointMethod
from trainables.methods.method import Method, MethodConfig

STILL_GAP, PSEUDO_GAP = "val/still/gap", "val/pseudo/gap"

PSEUDO_METRICS = (STILL_GAP, PSEUDO_GAP, "val/pseudo/motion", "val/pseudo/content")
"""All that `measure_pseudo` may measure; less is better."""

_SMALLEST = 1e-5
"""Mean squared distance below which features of unit length count as equal, because of rounding."""


def pseudo_metrics(method: type[Method], config: MethodConfig) -> set[str]:
    """Return the names of what `measure_pseudo` measures with a method."""
    names = {STILL_GAP}
    if issubclass(method, JointMethod):
        names.add(PSEUDO_GAP)
    if issubclass(method, AlignmentMethod):
        terms = AlignmentMethod.terms(config) & {"motion", "content"}
        names |= {f"val/pseudo/{term}" for term in terms}
    return names


@torch.inference_mode()
def measure_pseudo(method: Method, part: Part, device: torch.device) -> dict[str, float]:
    """Compare stills with the real sequences around them, by the metrics of `pseudo_metrics`.

    Of every tracklet of ``part`` with at least ``alignment.length`` frames, the frames in the middle are a
    real sequence, and the middle one of these is the still.

    - ``val/still/gap``: squared distance between the features of the still, shown as a motionless sequence
      without optical flow, and of the real sequence; relative to the mean squared distance between the real
      sequences of two identities.
    - ``val/pseudo/gap``: the same with the still's pseudo sequence. Of sampled motions only the mean counts:
      for two of them, a and b, and the real sequence r it is ``(|a - r|² + |b - r|² - |a - b|²) / 2``.
    - ``val/pseudo/motion`` and ``val/pseudo/content``: errors of what MGM and CGM generate, as their losses
      define them. Standing still has an error of 1.

    Features have unit length, as in retrieval. The metrics are missing if there are no two identities, or if
    their features are all equal. Every worker measures all of them. The method stays in evaluation mode, and
    the motions that MGM samples are the same in every call.
    """
    method.eval()
    embedder, length = method.embedder, method.config.alignment.length
    chosen = np.flatnonzero(part.lengths >= length)
    identities = part.identities[chosen]
    if len(np.unique(identities)) < 2:
        return {}
    real: list[Tensor] = []
    totals: dict[str, float] = {}

    def add(name: str, mean: Tensor, count: int) -> None:
        totals[name] = totals.get(name, 0.0) + float(mean) * count / len(chosen)

    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(0)
        for frames in _clips(part, chosen, length):
            clips, count = frames.to(device), len(frames)
            maps = embedder.spatial(clips.flatten(0, 1))
            steps = embedder.encoder.project(maps).view(count, length, -1)
            real.append(normalize(embedder.aggregate(steps)))
            stills = clips[:, length // 2, :3]
            still = normalize(embedder.aggregate(embedder.hold(embedder.spatial(stills), length)))
            add("still/gap", _squares(still - real[-1]), count)
            if isinstance(method, JointMethod):
                one, two = (
                    normalize(embedder.aggregate(method.pseudo_steps(method.as_frames(stills))))
                    for _ in range(2)
                )
                distances = _squares(one - real[-1]) + _squares(two - real[-1]) - _squares(one - two)
                add("pseudo/gap", distances / 2, count)
            if isinstance(method, AlignmentMethod):
                for name, term in method.generator_terms(clips, maps).items():
                    add(f"pseudo/{name}", term, count)
    between = _between_identities(torch.cat(real), identities)
    if between < _SMALLEST:
        return {}
    return {
        f"val/{name}": total / between if name.endswith("/gap") else total for name, total in totals.items()
    }


def _squares(differences: Tensor) -> Tensor:
    """Return the mean squared length of ``[clip, dimension]``."""
    return differences.square().sum(dim=1).mean()


def _clips(part: Part, positions: NDArray[np.int64], length: int) -> Iterator[Tensor]:
    """Yield the ``length`` frames in the middle of tracklets, ``[clip, length, channel, height, width]``.

    All parts are of about one size: what is relative to the mean of a part needs many clips.
    """
    pack, parts = part.pack, -(-len(positions) * length // FRAMES_AT_ONCE)
    for chosen in np.array_split(positions, parts):
        clips = []
        for tracklet in part.tracklets[chosen].tolist():
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
    return (of_pairs(features) - sum(map(of_pairs, same))) / pairs
