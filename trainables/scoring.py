"""Retrieval scores: cumulative matching characteristic (CMC) and mean average precision (mAP)."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from trainables.data.tracklet import DISTRACTOR, JUNK, DataError

RANKS = (1, 5, 10, 20)

_BLOCK_ELEMENTS = 1 << 22
"""Distances held at once (32 MiB in float64): bounds memory whatever the sizes of query and gallery."""


@dataclass(frozen=True, slots=True)
class Score:
    """Fractions in 0..1, means over the queries that have a match.

    ``mean_average_precision`` takes the precision at each hit (Market-1501, and the common MARS convention);
    ``trapezoid`` integrates the precision-recall curve by trapezoids (the official MARS convention).
    """

    cmc: dict[int, float]
    mean_average_precision: float
    trapezoid: float
    queries: int
    """Queries that counted."""
    unmatched: int
    """Queries left out: no match in another camera, or junk or a distractor themselves."""

    def metrics(self, prefix: str, ranks: Sequence[int] = RANKS) -> dict[str, float]:
        """``{prefix}rank1`` and so on, with ``{prefix}mAP``."""
        return {f"{prefix}rank{rank}": self.cmc[rank] for rank in ranks} | {
            f"{prefix}mAP": self.mean_average_precision
        }


def score(
    query: ArrayLike,
    gallery: ArrayLike,
    query_identities: ArrayLike,
    gallery_identities: ArrayLike,
    query_cameras: ArrayLike,
    gallery_cameras: ArrayLike,
    *,
    block: int | None = None,
) -> Score:
    """Rank ``gallery [item, feature]`` for every row of ``query [query, feature]`` by Euclidean distance.

    Per query, gallery items of the same identity in the same camera are ignored; junk is ignored for all;
    distractors stay and match nobody. Ties count against us: a wrong item at the same distance as a match
    is ranked before it, so the score does not depend on the order of the gallery and features that have
    collapsed into one point score nothing. ``block`` queries are compared at a time; the full distance
    matrix never exists.

    Raises ``DataError`` when no query has a match, ``ValueError`` when a feature is not finite.
    """
    queries, items = np.asarray(query, np.float64), np.asarray(gallery, np.float64)
    if not (np.isfinite(queries).all() and np.isfinite(items).all()):
        raise ValueError("features to be scored hold NaN or infinity")
    query_labels, query_views = np.asarray(query_identities, str), np.asarray(query_cameras, str)
    labels, views = np.asarray(gallery_identities, str), np.asarray(gallery_cameras, str)

    counted = labels != JUNK
    items, labels, views = items[counted], labels[counted], views[counted]
    order = np.argsort(labels, kind="stable")  # an identity's items are then one slice of the gallery
    items, labels, views = items[order], labels[order], views[order]
    first = np.searchsorted(labels, query_labels, side="left")
    last = np.searchsorted(labels, query_labels, side="right")
    first[np.isin(query_labels, (JUNK, DISTRACTOR))] = last[np.isin(query_labels, (JUNK, DISTRACTOR))]

    size = block or max(1, _BLOCK_ELEMENTS // max(1, len(items)))
    best, precisions, areas = [], [], []
    for index, distances in _distances(queries, items, size):
        own = slice(first[index], last[index])
        matches = np.sort(distances[own][views[own] != query_views[index]])
        if len(matches) == 0:
            continue
        # Each wrong item stands before every match that is not strictly nearer than it.
        before = np.bincount(np.searchsorted(matches, distances[: own.start]), minlength=len(matches) + 1)
        before += np.bincount(np.searchsorted(matches, distances[own.stop :]), minlength=len(matches) + 1)
        hits = np.arange(1, len(matches) + 1)
        ranks = before[:-1].cumsum() + hits
        precision = hits / ranks
        previous = np.where(ranks > 1, (hits - 1) / np.maximum(ranks - 1, 1), 1.0)
        best.append(ranks[0])
        precisions.append(precision.mean())
        areas.append((precision + previous).mean() / 2)
    if not best:
        raise DataError(f"none of the {len(queries)} queries has a match in another camera of the gallery")
    found = np.asarray(best)
    return Score(
        cmc={rank: float(np.mean(found <= rank)) for rank in RANKS},
        mean_average_precision=float(np.mean(precisions)),
        trapezoid=float(np.mean(areas)),
        queries=len(found),
        unmatched=len(queries) - len(found),
    )


def _distances(
    queries: NDArray[np.float64], items: NDArray[np.float64], block: int
) -> Iterator[tuple[int, NDArray[np.float64]]]:
    """Each query's index with its squared distances to all ``items``; ``block`` queries at a time."""
    lengths = np.square(items).sum(axis=1)
    for start in range(0, len(queries), block):
        part = queries[start : start + block]
        squared = np.square(part).sum(axis=1)[:, None] + lengths - 2.0 * (part @ items.T)
        yield from enumerate(squared, start)
