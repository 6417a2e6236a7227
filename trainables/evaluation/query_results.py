"""Results of every query on a target, which tell whether one model is better than another or only luckier.

They are kept in the folder of a checkpoint beside the summaries of its retrievals.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import TypeAdapter, ValidationError

from trainables.data.parts import Part
from trainables.data.tracklet import LONGEST
from trainables.evaluation.embedding import EvaluationConfig
from trainables.evaluation.scoring import RANKS, Score

SCORING = "1"
"""Version of the scoring. Increase it if a model may get other results, so that champions are scored anew."""

FILE = "query-results.json"
"""Name of the file of results in the folder of a checkpoint."""

_MARS_CONVENTIONS = ("", "common/")


@dataclass(frozen=True, slots=True)
class QueryResults:
    """Results of every query that counts on one target; it can be stored as JSON."""

    data: str
    """Hash of the content of the test part; see `trainables.data.contents.content_hash`."""
    protocol: str
    """The set's protocol, and the frames and views that are used."""
    version: str
    """Version of the scoring."""
    queries: tuple[str, ...]
    """Identity, camera and position of each query."""
    identities: tuple[str, ...]
    """Identity of each query."""
    metrics: dict[str, tuple[float | None, ...]]
    """One value per query for each score; None where a convention does not count the query."""


def query_results(
    query: Part, scores: Mapping[str, Score], data: str, config: EvaluationConfig, crop: float
) -> QueryResults:
    """Return the results of a retrieval.

    Args:
        query: the queries.
        scores: score of every convention, the official one under ``""``.
        data: hash of the content of the test part.
        config: frames and views that were used.
        crop: fraction of height and width within which the windows moved.
    """
    counted = scores[""].query_index
    metrics = {
        f"{convention}{name}": _at(counted, score.query_index, values)
        for convention, score in scores.items()
        for name, values in score.per_query().items()
    }
    identities = tuple(str(query.identities[i]) for i in counted.tolist())
    names = tuple(f"{query.identities[i]}/{query.cameras[i]}/{i}" for i in counted.tolist())
    return QueryResults(data, _protocol(query, config, crop), SCORING, names, identities, metrics)


def metric_names(protocol: str) -> list[str]:
    """Return the metrics of the results under a protocol of `trainables.data.tracklet.Protocol`."""
    conventions = _MARS_CONVENTIONS if protocol == "mars" else ("",)
    kinds = [f"rank{rank}" for rank in RANKS]
    kinds += [] if protocol == "single-gallery-shot" else ["mAP", "mINP"]
    return [f"{convention}{kind}" for convention in conventions for kind in kinds]


_results = TypeAdapter(dict[str, QueryResults])


def write_results(results: Mapping[str, QueryResults], checkpoint: Path) -> None:
    """Keep the results on every target in the folder of a checkpoint."""
    (checkpoint / FILE).write_bytes(_results.dump_json(dict(results)))


def read_results(checkpoint: Path) -> dict[str, QueryResults]:
    """Return the results in the folder of a checkpoint; empty if this version wrote none."""
    try:
        return _results.validate_json((checkpoint / FILE).read_bytes())
    except (FileNotFoundError, ValidationError):
        return {}


def _at(counted: Any, index: Any, values: Any) -> tuple[float | None, ...]:
    """Return the values of a convention, in the order of the queries that count officially."""
    found = dict(zip(np.asarray(index).tolist(), np.asarray(values, float).tolist(), strict=True))
    return tuple(found.get(query) for query in np.asarray(counted).tolist())


def _protocol(query: Part, config: EvaluationConfig, crop: float) -> str:
    frames = f"first {LONGEST}" if config.frames is None else f"first and last {config.frames}"
    windows = f"{config.crops} windows within {crop:g}" if config.crops > 1 else "1 window"
    flip = ", flipped too" if config.flip else ""
    return f"{query.pack.protocol}, {frames} frames, {windows}{flip}"
