"""Calibration on validation identities: distances that few pairs of different identities fall below."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial.distance import cdist

from trainables.data.parts import Part
from trainables.data.sampling import evenly_spaced
from trainables.evaluation.embedding import embed
from trainables.network.embedder import SequenceEmbedder

RATES = (0.01, 0.001)
"""False-match rates: fractions of pairs of different identities that are nearer than the threshold."""

_FEWEST_FALSE_MATCHES = 3
"""The rule of 3 of ISO/IEC 19795-1: n pairs establish no rate below 3/n with 95 % confidence."""
_MOST_TRACKLETS = 2048
_DRAWS = 1000


@dataclass(frozen=True, slots=True)
class Threshold:
    """A distance, and how far its rates can be trusted."""

    false_match_rate: float
    distance: float
    """Largest distance at which two sequences count as one identity."""
    interval: tuple[float, float]
    """95 % interval of the false-match rate with other identities: a bootstrap over identities."""
    missed: float | None
    """Fraction of pairs of one identity in two cameras that are farther; None if there is no such pair."""


@dataclass(frozen=True, slots=True)
class Calibration:
    """Thresholds of a model, or the reasons why there are none."""

    thresholds: tuple[Threshold, ...]
    not_stated: tuple[str, ...]
    """One reason for each rate that is not stated."""
    set: str
    """Set of the validation identities."""
    identities: int = 0
    impostor_pairs: int = 0
    """Pairs of tracklets of different identities, in one camera or two."""
    genuine_pairs: int = 0
    """Pairs of tracklets of one identity in two cameras."""


def calibrate(embedder: SequenceEmbedder, query: Part, gallery: Part, device: torch.device) -> Calibration:
    """Calibrate on the validation identities of ``query`` and ``gallery``, parts of one pack."""
    tracklets = np.union1d(query.tracklets, gallery.tracklets)
    if len(tracklets) == 0:
        return without("no identities were held back for validation (data.validation is 0)", query.pack.name)
    part = Part(query.pack, tracklets[evenly_spaced(len(tracklets), _MOST_TRACKLETS)])
    features = embed(embedder, part, device)
    return calibrate_features(features, part.identities, part.cameras, query.pack.name)


def without(reason: str, name: str) -> Calibration:
    """Return a calibration without thresholds."""
    return Calibration((), (reason,), name)


def calibrate_features(
    features: NDArray[np.float32], identities: NDArray[np.str_], cameras: NDArray[np.str_], name: str
) -> Calibration:
    """Calibrate from features ``[tracklet, feature]`` of length 1, and their identities and cameras."""
    first, second = np.triu_indices(len(features), k=1)
    distances = cdist(features, features)[first, second]
    same = identities[first] == identities[second]
    genuine = np.sort(distances[same & (cameras[first] != cameras[second])])
    impostors = _Impostors.of(distances[~same], identities, first[~same], second[~same])
    thresholds, reasons = [], []
    for rate in RATES:
        distance = impostors.threshold(rate)
        if isinstance(distance, str):
            reasons.append(f"{rate:.1%}: {distance}")
            continue
        missed = float((genuine > distance).mean()) if len(genuine) else None
        thresholds.append(Threshold(rate, distance, impostors.interval(distance), missed))
    return Calibration(
        thresholds=tuple(thresholds),
        not_stated=tuple(reasons),
        set=name,
        identities=len(np.unique(identities)),
        impostor_pairs=len(impostors.distances),
        genuine_pairs=len(genuine),
    )


@dataclass(frozen=True, slots=True, eq=False)
class _Impostors:
    """Pairs of tracklets of different identities."""

    distances: NDArray[np.float64]
    identities: NDArray[np.int64]
    """Numbers of the two identities of each pair, ``[2, pair]``."""

    @classmethod
    def of(
        cls, distances: NDArray[np.float64], names: NDArray[np.str_], *tracklets: NDArray[np.int64]
    ) -> "_Impostors":
        """Sort the pairs of ``tracklets`` by distance."""
        numbers = np.unique(names, return_inverse=True)[1]
        order = np.argsort(distances, kind="stable")
        return cls(distances[order], np.stack([numbers[side][order] for side in tracklets]))

    def threshold(self, rate: float) -> float | str:
        """Return the distance that at most ``rate`` of the pairs do not exceed, or why there is none."""
        accepted = int(rate * len(self.distances) + 1e-9)
        if accepted < _FEWEST_FALSE_MATCHES:
            needed = round(_FEWEST_FALSE_MATCHES / rate)
            return f"needs {needed:,} pairs of different identities; there are {len(self.distances):,}"
        below = np.searchsorted(self.distances, self.distances[accepted], side="left")
        if below == 0:
            return "too many pairs of different identities have equal distances"
        return float(self.distances[below - 1])

    def interval(self, distance: float) -> tuple[float, float]:
        """Return the 95 % interval of the rate at a distance: identities are drawn with replacement.

        Pairs share identities and depend on each other, so that drawing pairs would give too narrow an
        interval.
        """
        count = int(self.identities.max()) + 1
        pairs, accepted = (
            _matrix(self.identities[:, chosen], count) for chosen in (slice(None), self.distances <= distance)
        )
        rng = np.random.default_rng(0)
        rates: list[float] = []
        for _ in range(_DRAWS):
            weights = rng.multinomial(count, np.full(count, 1 / count)).astype(np.float64)
            if total := weights @ pairs @ weights:
                rates.append(float(weights @ accepted @ weights / total))
        low, high = np.quantile(rates, (0.025, 0.975))
        return float(low), float(high)


def _matrix(identities: NDArray[np.int64], count: int) -> NDArray[np.float64]:
    """Return the number of pairs of every two identities."""
    matrix: NDArray[np.float64] = np.zeros((count, count))
    np.add.at(matrix, tuple(identities), 1)
    return matrix
