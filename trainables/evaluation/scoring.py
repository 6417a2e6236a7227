"""Retrieval scores: cumulative matching characteristic (CMC), mean average precision (mAP), and mINP."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.spatial.distance import cdist

from trainables.data.tracklet import DISTRACTOR, JUNK, Protocol
from trainables.errors import DataError

RANKS = (1, 5, 10, 20)
LONGEST_RANK = 50

_BLOCK_ELEMENTS = 1 << 25
"""Distances held at a time (128 MiB in float32), which bounds memory for any size of query and gallery."""

_ROUNDING = 2.0**-24
"""Unit roundoff of float32."""

_Features = NDArray[np.float32] | NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Score:
    """Retrieval scores of a set of queries.

    Scores are fractions in 0..1. Only queries with a match count; arrays have one entry for each of them.
    """

    curve: tuple[float, ...]
    """CMC at ranks 1 to 50: fraction of queries with a match at that rank or before."""
    query_index: NDArray[np.int64]
    """Ascending indices of the queries that count."""
    first_rank: NDArray[np.int64] | NDArray[np.float64]
    """Rank of the first match, from 1; under single-gallery-shot, its mean over the draws."""
    average_precision: NDArray[np.float64]
    inverse_negative_penalty: NDArray[np.float64]
    """Number of matches divided by the rank of the last one (Ye et al., TPAMI 2021)."""
    unmatched: int
    """Number of queries that do not count: without a match in another camera, junk, or distractors."""
    cmc_only: bool = False
    """Whether the protocol reports only the CMC."""
    drawn_ranks: NDArray[np.int64] | None = None
    """Under single-gallery-shot, the rank of the match in each draw, ``[query, draw]``."""

    @property
    def queries(self) -> int:
        """Number of queries that count."""
        return len(self.query_index)

    @property
    def mean_average_precision(self) -> float:
        """Mean average precision (mAP)."""
        return float(self.average_precision.mean())

    @property
    def mean_inverse_negative_penalty(self) -> float:
        """Mean inverse negative penalty (mINP)."""
        return float(self.inverse_negative_penalty.mean())

    def per_query(self, ranks: Sequence[int] = RANKS) -> dict[str, NDArray[np.float64]]:
        """Return one value per query for each of `metrics`, whose mean it is."""
        first = self.first_rank[:, None] if self.drawn_ranks is None else self.drawn_ranks
        values = {f"rank{rank}": (first <= rank).mean(axis=1) for rank in ranks}
        if not self.cmc_only:
            values |= {"mAP": self.average_precision, "mINP": self.inverse_negative_penalty}
        return values

    def metrics(self, prefix: str, ranks: Sequence[int] = RANKS) -> dict[str, float]:
        """Return ``{prefix}rank1`` ... and ``{prefix}mAP`` and ``{prefix}mINP`` unless ``cmc_only``."""
        values = {f"{prefix}rank{rank}": self.curve[rank - 1] for rank in ranks}
        if not self.cmc_only:
            values[f"{prefix}mAP"] = self.mean_average_precision
            values[f"{prefix}mINP"] = self.mean_inverse_negative_penalty
        return values


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
    """Rank ``gallery [item, feature]`` for each row of ``query [query, feature]`` by Euclidean distance.

    A query ignores gallery items of its own identity in its own camera. Junk is always ignored; distractors
    are ranked but match no query. Ties are scored pessimistically: a wrong item at the same distance as a
    match is ranked before it, so the score does not depend on the order of the gallery, and features
    collapsed into one point score 0. ``block`` queries are compared at a time; the full distance matrix is
    never built.

    ``average_precision`` is the mean precision at the ``hits``, or the area under the precision-recall curve
    by the ``trapezoid`` rule, as in the code released with MARS.

    Raises:
        DataError: no query has a match.
        ValueError: a feature is not finite.
    """
    queries = _Side.of(query, query_identities, query_cameras)
    matches = dict(_match_ranks(queries, _Side.of(gallery, gallery_identities, gallery_cameras), block))
    _require_match(matches, queries)
    precision = _hit_precision if average_precision == "hits" else _trapezoid_precision
    first = np.array([ranks[0] for ranks in matches.values()])
    return Score(
        curve=_curve(first),
        query_index=np.array(list(matches)),
        first_rank=first,
        average_precision=np.array([precision(ranks) for ranks in matches.values()]),
        inverse_negative_penalty=np.array([len(ranks) / ranks[-1] for ranks in matches.values()]),
        unmatched=len(queries) - len(matches),
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

    Items are drawn from all cameras except the query's. Queries of one camera share their draws: the first
    item of each identity in random order. Every distractor counts as a separate identity. Everything else,
    including errors, is as in `score`.
    """
    queries = _Side.of(query, query_identities, query_cameras)
    items = _Side.of(gallery, gallery_identities, gallery_cameras)
    first_ranks: dict[int, NDArray[np.int64]] = {}
    for number, camera in enumerate(np.unique(queries.cameras)):
        indices = np.flatnonzero(queries.cameras == camera)
        others, rng = items[items.cameras != camera], np.random.default_rng([seed, number])
        for index, ranks_of_draws in _drawn_ranks(queries[indices], others, repeats, rng):
            first_ranks[int(indices[index])] = ranks_of_draws
    _require_match(first_ranks, queries)
    matching = sorted(first_ranks)
    ranks = np.array([first_ranks[index] for index in matching])
    precision = (1 / ranks).mean(axis=1)  # mAP and mINP are equal, because a draw holds one match
    return Score(
        curve=_curve(ranks.ravel()),
        query_index=np.array(matching),
        first_rank=ranks.mean(axis=1),
        average_precision=precision,
        inverse_negative_penalty=precision,
        unmatched=len(queries) - len(matching),
        cmc_only=True,
        drawn_ranks=ranks,
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
    """Score a set under its official protocol (key ``""``) and other conventions (keys ``"<name>/"``).

    - ``whole-gallery``: `score` with average precision at the hits.
    - ``single-gallery-shot``: `score_single_gallery_shot` with 100 draws and seed 0.
    - ``mars``: officially, queries stay in the gallery and average precision is by trapezoids. In the
      convention of most later work, ``common/``, gallery items that are queries (``queried [item]``) are
      dropped and average precision is at the hits; the key is absent if no query then has a match.
    """
    labels, cameras = np.asarray(gallery_identities), np.asarray(gallery_cameras)
    sides = query, gallery, query_identities, labels, query_cameras, cameras
    if protocol == "single-gallery-shot":
        return {"": score_single_gallery_shot(*sides)}
    if protocol == "whole-gallery":
        return {"": score(*sides)}
    scores = {"": score(*sides, average_precision="trapezoid")}
    rest = ~queried
    with contextlib.suppress(DataError):
        scores["common/"] = score(
            query, np.asarray(gallery)[rest], query_identities, labels[rest], query_cameras, cameras[rest]
        )
    return scores


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
    """Return the indices of the ``top`` nearest gallery items of each of ``queries``, ordered as in `score`.

    Junk is left out, and so is the query's own identity in its own camera.
    """
    side = _Side.of(query, query_identities, query_cameras)[np.asarray(queries, np.int64)]
    items = _Side.of(gallery, gallery_identities, gallery_cameras)
    rankings = []
    for index, distances in enumerate(_exact_distances(side.features, items.features)):
        matches = (items.identities == side.identities[index]) & ~_unnamed(items.identities)
        ignore = (items.identities == JUNK) | (matches & (items.cameras == side.cameras[index]))
        rest = np.flatnonzero(~ignore)
        rankings.append(rest[np.lexsort((matches[rest], distances[rest]))[:top]])
    return rankings


@dataclass(frozen=True, slots=True)
class _Side:
    """Query or gallery with features ``[item, feature]``, identities ``[item]`` and cameras ``[item]``."""

    features: _Features
    identities: NDArray[np.str_]
    cameras: NDArray[np.str_]

    @classmethod
    def of(cls, features: ArrayLike, identities: ArrayLike, cameras: ArrayLike) -> "_Side":
        values = np.asarray(features)
        if values.dtype != np.float32:
            values = values.astype(np.float64)
        if not np.isfinite(values).all():
            raise ValueError("cannot score features that contain NaN or infinity")
        return cls(values, np.asarray(identities, str), np.asarray(cameras, str))

    def __len__(self) -> int:
        return len(self.features)

    def __getitem__(self, items: NDArray[np.int64] | NDArray[np.bool_]) -> "_Side":
        return _Side(self.features[items], self.identities[items], self.cameras[items])


def _match_ranks(
    queries: _Side, items: _Side, block: int | None = None
) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """Yield the index of each query that has a match, with the ascending ranks (from 1) of its matches."""
    order = np.argsort(items.identities, kind="stable")  # makes an identity one slice of the gallery
    items = items[order[items.identities[order] != JUNK]]
    first = np.searchsorted(items.identities, queries.identities, side="left")
    last = np.searchsorted(items.identities, queries.identities, side="right")
    indices = np.flatnonzero((first < last) & ~_unnamed(queries.identities))
    if len(indices) == 0:
        return
    features = queries.features[indices]
    approximations = _approximate_distances(features, items.features, block)
    for index, query, (distances, error) in zip(indices.tolist(), features, approximations, strict=True):
        own = slice(first[index], last[index])
        matches = own.start + np.flatnonzero(items.cameras[own] != queries.cameras[index])
        if len(matches) > 0:
            before = _wrong_items_before(matches, own, distances, error, query, items.features)
            yield index, np.sort(before) + np.arange(1, len(matches) + 1)


def _wrong_items_before(
    matches: NDArray[np.int64],
    own: slice,
    distances: _Features,
    error: float,
    query: _Features,
    items: _Features,
) -> NDArray[np.int64]:
    """Return how many wrong items are ranked before each match: those that are not farther.

    ``distances [item]`` from the query are wrong by at most ``error``. Where a match and a wrong item are too
    close for that, both distances are computed exactly. The slice ``own`` holds the query's identity.
    """
    lower, upper = distances[matches] - 2 * error, distances[matches] + 2 * error
    distances[own] = np.nan  # which no comparison selects
    near = np.flatnonzero(distances <= upper.max())
    distances = distances[near]
    ascending = np.sort(distances)
    certain = np.searchsorted(ascending, lower, side="left")
    before = np.searchsorted(ascending, upper, side="right")
    unsure = certain < before
    if error and unsure.any():
        lower, upper = lower[unsure, None], upper[unsure, None]
        close = ((distances >= lower) & (distances <= upper)).any(axis=0)
        pairs = np.concatenate([matches[unsure], near[close]])
        chunks = (items[pairs[start : start + 256]] for start in range(0, len(pairs), 256))  # for the cache
        exact = np.concatenate([cdist(query[None], chunk, "sqeuclidean")[0] for chunk in chunks])
        nearer = exact[len(lower) :] <= exact[: len(lower), None]
        before[unsure] = certain[unsure] + (nearer & (distances[close] >= lower)).sum(axis=1)
    return before


def _approximate_distances(
    queries: _Features, items: _Features, block: int | None = None
) -> Iterator[tuple[_Features, float]]:
    """Yield each query's distances to all ``items``, and the maximum error of a distance.

    The distance is half of the square, less a constant of the query: |q - g|²/2 - |q|²/2 = |g|²/2 - q·g. This
    takes one float32 matrix product for ``block`` queries. The error is bounded for any order of summation
    (Higham, Accuracy and Stability of Numerical Algorithms, 2002, section 3.1). Features of which float32
    cannot hold the squares get exact distances, with error 0.
    """
    centre = items.mean(axis=0, dtype=np.float64).astype(items.dtype)
    with np.errstate(over="ignore"):
        left, right = ((side - centre).astype(np.float32, copy=False) for side in (queries, items))
    squares, query_squares = (np.einsum("ij,ij->i", side, side, dtype=np.float64) for side in (right, left))
    largest = max(squares.max(), query_squares.max())
    if not 1e-24 < largest < 1e24:
        yield from ((distances, 0.0) for distances in _exact_distances(queries, items, block))
        return
    terms = (items.shape[1] + 8) * _ROUNDING  # 8 for centring, halves, the difference, and the comparison
    error = float(terms / (1 - terms) * largest)
    halves = (squares / 2).astype(np.float32)
    size = min(len(queries), block or max(1, _BLOCK_ELEMENTS // len(items)))
    products = np.empty((size, len(items)), np.float32)
    for start in range(0, len(queries), size):
        rows = left[start : start + size]
        for row in np.matmul(rows, right.T, out=products[: len(rows)]):
            yield halves - row, error


def _exact_distances(
    queries: _Features, items: _Features, block: int | None = None
) -> Iterator[NDArray[np.float64]]:
    """Yield each query's squared distances to all ``items``, ``block`` queries at a time."""
    size = block or max(1, _BLOCK_ELEMENTS // max(1, len(items)))
    for start in range(0, len(queries), size):
        # cdist takes differences: a matrix product would round away ties between equal features.
        yield from cdist(queries[start : start + size], items, "sqeuclidean")


def _drawn_ranks(
    queries: _Side, items: _Side, repeats: int, rng: np.random.Generator
) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """Yield the index of each query that has a match, with the rank of its match in each draw.

    A draw holds the distractors, and the first item of each other identity in random order.
    """
    distracting = items.identities == DISTRACTOR
    named, distractors = items[~distracting], items.features[distracting]
    names, codes = np.unique(named.identities, return_inverse=True)
    orders = [rng.permutation(len(named)) for _ in range(repeats)]
    draws = np.array([order[np.unique(codes[order], return_index=True)[1]] for order in orders])
    names, draws = names[names != JUNK], draws[:, names != JUNK]
    indices = np.flatnonzero(np.isin(queries.identities, names))
    columns = np.searchsorted(names, queries.identities[indices])
    rows = _exact_distances(queries.features[indices], np.concatenate([named.features, distractors]))
    for index, column, distances in zip(indices.tolist(), columns.tolist(), rows, strict=True):
        drawn = distances[draws]
        match = drawn[:, column]
        nearer_distractors = np.searchsorted(np.sort(distances[len(named) :]), match, side="right")
        yield index, (drawn <= match[:, None]).sum(axis=1) + nearer_distractors


def _hit_precision(ranks: NDArray[np.int64]) -> float:
    return float((np.arange(1, len(ranks) + 1) / ranks).mean())


def _trapezoid_precision(ranks: NDArray[np.int64]) -> float:
    hits = np.arange(1, len(ranks) + 1)
    before = np.where(ranks > 1, (hits - 1) / np.maximum(ranks - 1, 1), 1.0)
    return float((hits / ranks + before).mean() / 2)


def _curve(first: NDArray[np.int64]) -> tuple[float, ...]:
    return tuple(float(np.mean(first <= rank)) for rank in range(1, LONGEST_RANK + 1))


def _unnamed(identities: NDArray[np.str_]) -> NDArray[np.bool_]:
    return np.isin(identities, (JUNK, DISTRACTOR))


def _require_match(ranks: dict[int, NDArray[np.int64]], queries: _Side) -> None:
    if not ranks:
        raise DataError(f"none of the {len(queries)} queries has a match in another camera of the gallery")
