"""Retrieval on a test part: its scores, and its worst and best queries with the tracklets retrieved for them.

A summary of each retrieval is kept in the folder of the checkpoint, so that pictures of a scored checkpoint
can be drawn without embedding the test part again.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError

from trainables.data.parts import Part
from trainables.data.tracklet import Protocol
from trainables.evaluation.embedding import Embedder, EvaluationConfig, embed_sides, labels, score_sides
from trainables.evaluation.scoring import Score, ranking, score

EXTREMES = 4
"""Most queries of a summary from either end, the worst and the best."""
TOP = 10
"""Gallery tracklets of a summary for each of these queries."""

FILE = "retrievals.json"
"""Name of the file of summaries in the folder of a checkpoint."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A gallery tracklet beside a query."""

    tracklet: int
    """Index into the pack."""
    distance: float
    """Euclidean distance to the query, of two features of length 1: 0 to 2."""
    right: bool
    """Whether it shows the query's identity."""


@dataclass(frozen=True, slots=True)
class RankedQuery:
    """A query and the gallery tracklets nearest to it."""

    query: int
    """Index into the pack."""
    average_precision: float
    first_rank: int
    """Rank of the first match, from 1."""
    candidates: tuple[Candidate, ...]
    """Nearest first, without those that the query ignores."""


@dataclass(frozen=True, slots=True)
class RetrievalSummary:
    """The part of a retrieval that pictures show; it can be stored as JSON."""

    digest: str
    """Content of the pack that the tracklets are indices of; see `trainables.data.packing.Pack`."""
    protocol: Protocol
    """Protocol of the curve."""
    curve: tuple[float, ...]
    """CMC of the set's official protocol; see `Score.curve`."""
    queries: int
    """Number of scored queries."""
    worst: tuple[RankedQuery, ...]
    best: tuple[RankedQuery, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Retrieval:
    """A test part, embedded once and scored under its set's protocol."""

    query: Part
    gallery: Part
    features: tuple[NDArray[np.float32], NDArray[np.float32]]
    """Features of query and gallery, each ``[tracklet, feature]`` of length 1."""
    scores: Mapping[str, Score]
    """Score of every convention; see `trainables.evaluation.scoring.score_by_protocol`."""

    @classmethod
    def of(
        cls,
        embedder: Embedder,
        query: Part,
        gallery: Part,
        device: torch.device,
        config: EvaluationConfig,
        *,
        crop: float,
    ) -> Self:
        """Embed query and gallery of one pack, and score them."""
        features = embed_sides(embedder, query, gallery, device, config, crop=crop)
        return cls(query, gallery, features, score_sides(query, gallery, features))

    @property
    def score(self) -> Score:
        """Score of the set's official protocol."""
        return self.scores[""]

    def worst_and_best_queries(
        self, extremes: int = EXTREMES, top: int = TOP
    ) -> tuple[tuple[RankedQuery, ...], tuple[RankedQuery, ...]]:
        """Return the worst and the best queries by average precision, ties broken by index, no query in both.

        Either begins with its extreme. With fewer than twice ``extremes`` queries, half of them are the
        worst. The whole gallery is ranked, even if the official protocol draws a gallery.
        """
        item_labels = labels(self.query, self.gallery)
        scores = score(*self.features, *item_labels) if self.score.cmc_only else self.score
        order = np.lexsort((scores.query_index, scores.average_precision))
        worst = order[: min(extremes, (len(order) + 1) // 2)]
        rest = np.setdiff1d(order, worst)
        best = rest[np.lexsort((scores.query_index[rest], -scores.average_precision[rest]))][:extremes]
        positions = [*worst.tolist(), *best.tolist()]
        queries = scores.query_index[positions].tolist()
        nearest = ranking(*self.features, *item_labels, queries=queries, top=top)
        ranked = tuple(
            self._ranked_query(scores, position, gallery)
            for position, gallery in zip(positions, nearest, strict=True)
        )
        return ranked[: len(worst)], ranked[len(worst) :]

    def summary(self) -> RetrievalSummary:
        """Return the part that pictures show."""
        pack = self.query.pack
        worst, best = self.worst_and_best_queries()
        return RetrievalSummary(pack.digest, pack.protocol, self.score.curve, self.score.queries, worst, best)

    def _ranked_query(self, scores: Score, position: int, nearest: NDArray[np.int64]) -> RankedQuery:
        """Return the query at a position of the scores, with its nearest gallery tracklets."""
        index, gallery = int(scores.query_index[position]), self.gallery
        feature = self.features[0][index].astype(np.float64)
        distances = np.linalg.norm(self.features[1][nearest] - feature, axis=1)
        right = gallery.identities[nearest] == self.query.identities[index]
        candidates = zip(gallery.tracklets[nearest], distances, right, strict=True)
        return RankedQuery(
            int(self.query.tracklets[index]),
            float(scores.average_precision[position]),
            int(scores.first_rank[position]),
            tuple(
                Candidate(int(tracklet), float(distance), bool(match))
                for tracklet, distance, match in candidates
            ),
        )


_summaries = TypeAdapter(dict[str, RetrievalSummary])


def write_summaries(summaries: Mapping[str, RetrievalSummary], checkpoint: Path) -> None:
    """Keep the summary of every target in the folder of a checkpoint."""
    (checkpoint / FILE).write_bytes(_summaries.dump_json(dict(summaries)))


def read_summaries(checkpoint: Path) -> dict[str, RetrievalSummary]:
    """Return the summaries in the folder of a checkpoint; empty if this version wrote none."""
    try:
        return _summaries.validate_json((checkpoint / FILE).read_bytes())
    except (FileNotFoundError, ValidationError):
        return {}
