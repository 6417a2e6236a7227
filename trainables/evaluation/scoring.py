"""Retrieval scores: cumulative matching characteristic (CMC), mean average precision (mAP), and mINP."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.spatial.distance import cdist

from trainables.data.tracklet import DISTRACTOR, JUNK, DataError, Protocol

RANKS = (1, 5, 10, 20)
LONGEST_RANK = 50

_BLOCK_ELEMENTS = 1 << 22
"""Distances held at once (32 MiB in float64): bounds memory whatever the sizes of query and gallery."""


@dataclass(frozen=True, slots=True, eq=False)
class Score:
    """Fractions in 0..1, means over the queries that have a match; arrays hold one entry per such query."""

    curve: tuple[float, ...]
    """CMC at ranks 1 to 50: fraction of the queries with a match at that rank or before."""
    query_index: NDArray[np.int64]
    """Which queries counted, ascending."""
    first_rank: NDArray[np.int64] | NDArray[np.float64]
    """Rank of the first match, from 1; its mean over the draws, under single-gallery-shot."""
    average_precision: NDArray[np.float64]
    inverse_negative_penalty: NDArray[np.float64]
    """Number of matches over the rank of the last one (Ye et al., TPAMI 2021)."""
    unmatched: int
    """Queries left out: no match in another camera, or junk or a distractor themselves."""
    cmc_only: bool = False
    """Whether the protocol reports the CMC and nothing else."""

    @property
    def queries(self) -> int:
        """Queries that counted."""
        return len(self.query_index)

    @property
    def mean_average_precision(self) -> float:
        """The field's mAP."""
        return float(self.average_precision.mean())

    @property
    def mean_inverse_negative_penalty(self) -> float:
        """The field's mINP."""
        return float(self.inverse_negative_penalty.mean())

    def metrics(self, prefix: str, ranks: Sequence[int] = RANKS) -> dict[str, float]:
        """``{prefix}rank1`` and so on, with ``{prefix}mAP`` and ``{prefix}mINP`` unless ``cmc_only``."""
        found = {f"{prefix}rank{rank}": self.curve[rank - 1] for rank in ranks}
        if not self.cmc_only:
            found[f"{prefix}mAP"] = self.mean_average_precision
            found[f"{prefix}mINP"] = self.mean_inverse_negative_penalty
        return found


def score(
    query: ArrayLike,
    gallery: ArrayLike,
    query_identities: ArrayLike,
    gallery_identities: ArrayLike,
    query_cameras: ArrayLike,
    gallery_cameras: ArrayLike,
    *,
    average_precision: Literal["hits", "trapezoid"] = "hits",
    block: int | None = None,
) -> Score:
    """Rank ``gallery [item, feature]`` for every row of ``query [query, feature]`` by Euclidean distance.

    Per query, gallery items of the same identity in the same camera are ignored; junk is ignored for all;
    distractors stay and match nobody. Ties count against us: a wrong item at the same distance as a match
    is ranked before it, so the score does not depend on the order of the gallery and features that have
    collapsed into one point score nothing. ``block`` queries are compared at a time; the full distance
    matrix never exists.

    ``average_precision`` is the mean precision at the ``hits``, or the area under the precision-recall curve
    by the ``trapezoid`` rule, as the code released with MARS computes it.

    Raises ``DataError`` when no query has a match, ``ValueError`` when a feature is not finite.
    """
    queries = _Side.of(query, query_identities, query_cameras)
    found = dict(_match_ranks(queries, _Side.of(gallery, gallery_identities, gallery_cameras), block))
    _require_match(found, queries)
    precision = _hit_precision if average_precision == "hits" else _trapezoid_precision
    first = np.array([ranks[0] for ranks in found.values()])
    return Score(
        curve=_curve(first),
        query_index=np.array(list(found)),
        first_rank=first,
        average_precision=np.array([precision(ranks) for ranks in found.values()]),
        inverse_negative_penalty=np.array([len(ranks) / ranks[-1] for ranks in found.values()]),
        unmatched=len(queries) - len(found),
    )


def score_single_gallery_shot(
    query: ArrayLike,
    gallery: ArrayLike,
    query_identities: ArrayLike,
    gallery_identities: ArrayLike,
    query_cameras: ArrayLike,
    gallery_cameras: ArrayLike,
    *,
    repeats: int = 100,
    seed: int = 0,
) -> Score:
    """Score with one random gallery item per identity, over ``repeats`` draws (Li et al., CVPR 2014).

    The items come from the cameras other than the query's: queries of one camera share their draws, the
    first item of each identity in random order. Every distractor counts as an identity of its own. All else
    is as in `score`, errors too.
    """
    queries = _Side.of(query, query_identities, query_cameras)
    items = _Side.of(gallery, gallery_identities, gallery_cameras)
    found: dict[int, list[int]] = {}
    for number, view in enumerate(np.unique(queries.cameras)):
        asked = np.flatnonzero(queries.cameras == view)
        others = np.flatnonzero((items.cameras != view) & (items.identities != DISTRACTOR))
        nobody = np.flatnonzero((items.cameras != view) & (items.identities == DISTRACTOR))
        rng = np.random.default_rng([seed, number])
        for _ in range(repeats):
            order = others[rng.permutation(len(others))]
            _, first = np.unique(items.identities[order], return_index=True)
            drawn = np.concatenate([order[first], nobody])
            for index, ranks in _match_ranks(queries[asked], items[drawn]):
                found.setdefault(int(asked[index]), []).append(int(ranks[0]))
    _require_match(found, queries)
    counted = sorted(found)
    drawn_ranks = np.array([found[index] for index in counted])
    precision = (1 / drawn_ranks).mean(axis=1)  # of one match: mAP and mINP are the same
    return Score(
        curve=_curve(drawn_ranks.ravel()),
        query_index=np.array(counted),
        first_rank=drawn_ranks.mean(axis=1),
        average_precision=precision,
        inverse_negative_penalty=precision,
        unmatched=len(queries) - len(counted),
        cmc_only=True,
    )


def score_by_protocol(
    protocol: Protocol,
    query: ArrayLike,
    gallery: ArrayLike,
    query_identities: ArrayLike,
    gallery_identities: ArrayLike,
    query_cameras: ArrayLike,
    gallery_cameras: ArrayLike,
    *,
    queried: NDArray[np.bool_],
) -> dict[str, Score]:
    """Score a set under its official protocol, key ``""``, and any other convention, key ``"<name>/"``.

    ``whole-gallery``: `score`, average precision at the hits. ``single-gallery-shot``: 100 draws, seed 0.
    ``mars``: officially the queries stay in the gallery and average precision is by trapezoids; under
    ``common/``, as in most later work, the gallery items that are queries (``queried [item]``) are dropped
    and average precision is at the hits. Where that leaves no query a match there is no such key.
    """
    labels, views = np.asarray(gallery_identities), np.asarray(gallery_cameras)
    sides = query, gallery, query_identities, labels, query_cameras, views
    if protocol == "single-gallery-shot":
        return {"": score_single_gallery_shot(*sides)}
    if protocol == "whole-gallery":
        return {"": score(*sides)}
    found = {"": score(*sides, average_precision="trapezoid")}
    rest = ~queried
    with contextlib.suppress(DataError):
        found["common/"] = score(
            query, np.asarray(gallery)[rest], query_identities, labels[rest], query_cameras, views[rest]
        )
    return found


def ranking(
    query: ArrayLike,
    gallery: ArrayLike,
    query_identities: ArrayLike,
    gallery_identities: ArrayLike,
    query_cameras: ArrayLike,
    gallery_cameras: ArrayLike,
    queries: Sequence[int],
    top: int,
) -> list[NDArray[np.int64]]:
    """For each of ``queries``, the nearest ``top`` gallery items by index, in the order that `score` uses.

    Junk, and the query's own identity in its own camera, are left out.
    """
    asked = _Side.of(query, query_identities, query_cameras)[np.asarray(queries, np.int64)]
    items = _Side.of(gallery, gallery_identities, gallery_cameras)
    ranked = []
    for index, distances in _distances(asked.features, items.features):
        matches = (items.identities == asked.identities[index]) & ~_nobody(items.identities)
        ignored = (items.identities == JUNK) | (matches & (items.cameras == asked.cameras[index]))
        kept = np.flatnonzero(~ignored)
        ranked.append(kept[np.lexsort((matches[kept], distances[kept]))[:top]])
    return ranked


@dataclass(frozen=True, slots=True)
class _Side:
    """Query or gallery: features ``[item, feature]``, identities and cameras ``[item]``."""

    features: NDArray[np.float64]
    identities: NDArray[np.str_]
    cameras: NDArray[np.str_]

    @classmethod
    def of(cls, features: ArrayLike, identities: ArrayLike, cameras: ArrayLike) -> "_Side":
        found = np.asarray(features, np.float64)
        if not np.isfinite(found).all():
            raise ValueError("features to be scored hold NaN or infinity")
        return cls(found, np.asarray(identities, str), np.asarray(cameras, str))

    def __len__(self) -> int:
        return len(self.features)

    def __getitem__(self, chosen: NDArray[np.int64] | NDArray[np.bool_]) -> "_Side":
        return _Side(self.features[chosen], self.identities[chosen], self.cameras[chosen])


def _match_ranks(
    queries: _Side, items: _Side, block: int | None = None
) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """Each query that has a match, with the ranks of all its matches, from 1, ascending."""
    items = items[items.identities != JUNK]
    items = items[np.argsort(items.identities, kind="stable")]  # an identity is then one slice of the gallery
    first = np.searchsorted(items.identities, queries.identities, side="left")
    last = np.searchsorted(items.identities, queries.identities, side="right")
    last = np.where(_nobody(queries.identities), first, last)
    for index, distances in _distances(queries.features, items.features, block):
        own = slice(first[index], last[index])
        matches = np.sort(distances[own][items.cameras[own] != queries.cameras[index]])
        if len(matches) == 0:
            continue
        # Each wrong item stands before every match that is not strictly nearer than it.
        before = np.bincount(np.searchsorted(matches, distances[: own.start]), minlength=len(matches) + 1)
        before += np.bincount(np.searchsorted(matches, distances[own.stop :]), minlength=len(matches) + 1)
        yield index, before[:-1].cumsum() + np.arange(1, len(matches) + 1)


def _distances(
    queries: NDArray[np.float64], items: NDArray[np.float64], block: int | None = None
) -> Iterator[tuple[int, NDArray[np.float64]]]:
    """Each query's index with its squared distances to all ``items``; ``block`` queries at a time."""
    size = block or max(1, _BLOCK_ELEMENTS // max(1, len(items)))
    for start in range(0, len(queries), size):
        # Of differences, not by a matrix product, whose rounding breaks ties between equal features.
        yield from enumerate(cdist(queries[start : start + size], items, "sqeuclidean"), start)


def _hit_precision(ranks: NDArray[np.int64]) -> float:
    return float((np.arange(1, len(ranks) + 1) / ranks).mean())


def _trapezoid_precision(ranks: NDArray[np.int64]) -> float:
    hits = np.arange(1, len(ranks) + 1)
    before = np.where(ranks > 1, (hits - 1) / np.maximum(ranks - 1, 1), 1.0)
    return float((hits / ranks + before).mean() / 2)


def _curve(first: NDArray[np.int64]) -> tuple[float, ...]:
    return tuple(float(np.mean(first <= rank)) for rank in range(1, LONGEST_RANK + 1))


def _nobody(identities: NDArray[np.str_]) -> NDArray[np.bool_]:
    return np.isin(identities, (JUNK, DISTRACTOR))


def _require_match(found: dict[int, NDArray[np.int64]] | dict[int, list[int]], queries: _Side) -> None:
    if not found:
        raise DataError(f"none of the {len(queries)} queries has a match in another camera of the gallery")
