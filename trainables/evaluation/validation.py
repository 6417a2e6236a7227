"""Validation: retrieval scores of validation identities, and their standard errors."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from trainables.data.parts import Part
from trainables.data.splits import CROSS
from trainables.evaluation.embedding import retrieve
from trainables.network.embedder import SequenceEmbedder

OWN = ""
"""Name of the validation identities of the set that trains, whose metrics name no set."""

SCORES = ("rank1", "rank5", "mAP", "mINP")
"""Scores of each set, as ``val/mAP`` or ``val/<set>/mAP``."""

CROSS_SCORES = ("rank1", "mAP")
"""Scores of which there is a mean over the other sets, as ``val/cross/mAP``."""

ERROR = "/error"
"""Ends the name of the standard error of a metric."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over queries, and its standard error; None where one identity alone has queries."""

    value: float
    error: float | None


def standard_error(values: ArrayLike, identities: ArrayLike) -> float | None:
    """Return how far the mean of ``values [query]`` would vary with other identities.

    Queries of one identity are alike, so identities are resampled and not queries. This is the cluster-robust
    standard error of a mean (Liang and Zeger, Biometrika 1986; Cameron and Miller, Journal of Human Resources
    2015, section II, with their factor for few clusters)::

        sqrt(G / (G - 1) * sum over identities g of (sum over queries i of g of (x_i - mean))²) / N

    for N queries of G identities. It says nothing about another training, nor about a larger gallery. It
    measures one model: two models on the same identities differ by less, because hard identities are hard
    for both.
    """
    numbers = np.asarray(values, np.float64)
    _, groups = np.unique(np.asarray(identities), return_inverse=True)
    count = int(groups.max()) + 1
    if count < 2:
        return None
    deviations = np.bincount(groups, numbers - numbers.mean())
    return math.sqrt(count / (count - 1) * float(deviations @ deviations)) / len(numbers)


def mean_of_sets(estimates: list[Estimate]) -> Estimate:
    """Return the mean over sets, which have no identity in common."""
    value = float(np.mean([estimate.value for estimate in estimates]))
    errors = [estimate.error for estimate in estimates if estimate.error is not None]
    complete = len(errors) == len(estimates)
    return Estimate(value, math.hypot(*errors) / len(errors) if complete else None)


def mean_of_folds(folds: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return the mean of each metric over models with other training and validation identities.

    The standard error of a score of the set that trains is that of a mean over disjoint identities. The
    models may share identities of other sets, so for those the mean of the errors is returned, an upper
    bound.
    """
    own_errors = {metric_name(OWN, score) + ERROR for score in SCORES}
    metrics = {}
    for metric in folds[0]:
        values = [fold[metric] for fold in folds if metric in fold]
        if len(values) == len(folds):
            total = math.hypot(*values) if metric in own_errors else math.fsum(values)
            metrics[metric] = total / len(values)
    return metrics


def validate(
    embedder: SequenceEmbedder,
    sets: Mapping[str, tuple[Part, Part]],
    device: torch.device,
    *,
    rank: int = 0,
    workers: int = 1,
) -> dict[str, float]:
    """Return the scores of validation sets and their standard errors.

    Args:
        embedder: the model.
        sets: query and gallery of each set, by its name or `OWN`; those without a query are left out.
        device: where to embed.
        rank: number of this worker.
        workers: number of workers; each embeds its share, and gets all scores.

    Returns:
        ``val/<score>`` or ``val/<set>/<score>`` for each of `SCORES`, and ``val/cross/<score>``, the mean
        over the sets that do not train, for each of `CROSS_SCORES`; each with its ``<metric>/error``.
    """
    scores: dict[str, dict[str, Estimate]] = {}
    for name, (query, gallery) in sets.items():
        if len(query.tracklets):
            scores[name] = _score(embedder, query, gallery, device, rank, workers)
    others = [estimates for name, estimates in scores.items() if name != OWN]
    if others:
        scores[CROSS] = {score: mean_of_sets([own[score] for own in others]) for score in CROSS_SCORES}
    metrics: dict[str, float] = {}
    for name, estimates in scores.items():
        for score, estimate in estimates.items():
            metric = metric_name(name, score)
            metrics[metric] = estimate.value
            if estimate.error is not None:
                metrics[metric + ERROR] = estimate.error
    return metrics


def metric_name(name: str, score: str) -> str:
    """Return the name of the metric of a set: ``val/<set>/<score>``, or ``val/<score>`` for `OWN`."""
    return f"val/{name}/{score}" if name else f"val/{score}"


def _score(
    embedder: SequenceEmbedder, query: Part, gallery: Part, device: torch.device, rank: int, workers: int
) -> dict[str, Estimate]:
    """Return each of `SCORES` of one set."""
    result = retrieve(embedder, query, gallery, device, rank=rank, workers=workers)
    values: dict[str, NDArray[np.float64]] = {
        "rank1": (result.first_rank <= 1).astype(np.float64),
        "rank5": (result.first_rank <= 5).astype(np.float64),
        "mAP": result.average_precision,
        "mINP": result.inverse_negative_penalty,
    }
    identities = query.identities[result.query_index]
    return {
        score: Estimate(float(values[score].mean()), standard_error(values[score], identities))
        for score in SCORES
    }
