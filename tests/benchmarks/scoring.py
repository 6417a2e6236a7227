"""Retrieval scores at the sizes of published test sets, against torchreid's Cython evaluator and an oracle.

Features are made: an appearance for each identity, a shift for each camera, and noise for each item, in 64
dimensions; then, as after a network's pooling, 512 dimensions of which none is negative, and unit length.
"""

import importlib.util
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial.distance import cdist

from tests.benchmarks.table import Row, alternate, seconds, seconds_list
from trainables.data.tracklet import DISTRACTOR, JUNK
from trainables.evaluation.scoring import score, score_by_protocol, score_single_gallery_shot

DIMENSION = 512
PEER = "fastreid==1.4.0"
"""Its wheel holds the evaluator of torchreid."""


@dataclass(frozen=True, slots=True)
class Size:
    """Numbers of a test set."""

    identities: int
    cameras: int
    queries: int
    gallery: int
    """Items, distractors included, junk not."""
    distractors: int = 0
    junk: int = 0

    def tenth(self) -> "Size":
        """Return a tenth of the set."""
        return Size(*(getattr(self, name) // (1 if name == "cameras" else 10) for name in self.__slots__))


MARKET = Size(750, 6, 3368, 15_913, distractors=2793, junk=3819)
MSMT = Size(3060, 15, 11_659, 82_161)
MARS = Size(636, 6, 1980, 12_180, distractors=3248, junk=870)
CUHK03 = Size(100, 2, 480, 480)

Sides = tuple[NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any]]
"""Features of query and gallery, their identities, their cameras."""


def rows(quick: bool) -> list[Row]:
    """Return a row for each set, two for Market-1501."""
    repetitions = 2 if quick else 5
    sizes = (size.tenth() if quick else size for size in (MARKET, MSMT, MARS, CUHK03))
    market, msmt, mars, cuhk03 = sizes
    with tempfile.TemporaryDirectory() as folder:
        evaluator = build_evaluator(Path(folder))
        return [
            against_evaluator("trained", market, 0.8, evaluator, repetitions),
            against_evaluator("poor", market, 3.0, evaluator, repetitions),
            largest_set(msmt, Path(folder), min(repetitions, 3)),
            mars_conventions(mars, repetitions),
            single_gallery_shot(cuhk03, repetitions),
        ]


def make(size: Size, noise: float, seed: int = 0) -> Sides:
    """Return a test set; more ``noise`` makes retrieval worse."""
    rng = np.random.default_rng(seed)
    basis, shifts = rng.normal(size=(64, DIMENSION)), 0.35 * rng.normal(size=(size.cameras, 64))
    looks = rng.normal(size=(size.identities + size.distractors + size.junk, 64))

    def features(looked: NDArray[Any], cameras: NDArray[Any]) -> NDArray[np.float32]:
        spread = noise * rng.lognormal(0, 0.35, (len(looked), 1))
        points = looks[looked] + shifts[cameras] + spread * rng.normal(size=(len(looked), 64))
        pooled = np.maximum(points @ basis, 0)
        unit: NDArray[np.float32] = pooled / np.linalg.norm(pooled, axis=1, keepdims=True)
        return unit.astype(np.float32)

    named = size.gallery - size.distractors
    identities = rng.permutation(np.arange(named) % size.identities)
    looked = np.concatenate([identities, np.arange(size.identities, len(looks))])
    cameras = rng.integers(0, size.cameras, len(looked))
    distractors, junk = np.repeat(DISTRACTOR, size.distractors), np.repeat(JUNK, size.junk)
    pairs = np.unique(identities * size.cameras + cameras[:named])  # one query per identity and camera
    queried, query_cameras = np.divmod(np.resize(rng.permutation(pairs), size.queries), size.cameras)
    return (
        features(queried, query_cameras),
        features(looked, cameras),
        queried.astype(str),
        np.concatenate([identities.astype(str), distractors, junk]),
        query_cameras.astype(str),
        cameras.astype(str),
    )


def build_evaluator(folder: Path) -> Callable[..., Any]:
    """Fetch the peer's evaluator, compile it in ``folder``, and return its function ``evaluate_cy``."""
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "install", "--no-deps"]
    subprocess.run([*pip, "--target", str(folder), PEER, "cython", "setuptools"], check=True)
    source = folder / "fastreid" / "evaluation" / "rank_cylib" / "rank_cy.pyx"
    environment = {**os.environ, "PYTHONPATH": str(folder), "C_INCLUDE_PATH": np.get_include()}
    command = [sys.executable, "-m", "Cython.Build.Cythonize", "--inplace", "--quiet", source.name]
    subprocess.run(command, cwd=source.parent, env=environment, check=True, capture_output=True)
    (library,) = source.parent.glob("rank_cy.*.so")
    spec = importlib.util.spec_from_file_location("rank_cy", library)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    evaluate: Callable[..., Any] = module.evaluate_cy
    return evaluate


def against_evaluator(
    quality: str, size: Size, noise: float, evaluate: Callable[..., Any], repetitions: int
) -> Row:
    """Compare with torchreid: distances by its ``euclidean_squared_distance``, then its evaluator."""
    sides = make(size, noise)
    query, gallery, *names = sides
    kept = names[1] != JUNK  # torchreid's reader leaves junk out, ours is given it
    numbers = [
        np.unique(np.concatenate(pair), return_inverse=True)[1]
        for pair in ((names[0], names[1][kept]), (names[2], names[3][kept]))
    ]
    codes = [part for number in numbers for part in np.split(number, [len(query)])]
    left, right = torch.from_numpy(query), torch.from_numpy(gallery[kept])

    def peer() -> Any:
        shape = len(left), len(right)
        squares = left.pow(2).sum(dim=1, keepdim=True).expand(shape)
        distances = squares + right.pow(2).sum(dim=1, keepdim=True).expand(shape[::-1]).t()
        distances.addmm_(left, right.t(), beta=1, alpha=-2)
        return evaluate(distances.numpy(), *codes, 50)

    ours, (curve, precision, penalty) = score(*sides), peer()
    comparison = alternate(lambda: score(*sides), peer, repetitions)
    figures = (*ours.curve, ours.mean_average_precision, ours.mean_inverse_negative_penalty)
    difference = np.abs(np.subtract(figures, (*curve, precision.mean(), penalty.mean()))).max()
    return Row(
        f"CMC + mAP, Market-1501 size, {quality} features: {len(left):,} x {len(right):,} x {DIMENSION}",
        f"{statistics.median(comparison.ours):.2f} s; rank-1 {ours.curve[0]:.1%}, mAP {figures[-2]:.1%}",
        f"torchreid's Cython evaluator: {statistics.median(comparison.peer):.2f} s;"
        f" figures differ by at most {difference:.0e}",
        f"{comparison.ratio:.2f}",
        "at most 0.5, same figures",
        comparison.raw,
    )


def largest_set(size: Size, folder: Path, repetitions: int) -> Row:
    """Score in a new process, of which the memory is that of scoring."""
    sides = make(size, 0.8)
    file = folder / "sides.npz"
    np.savez(file, *sides)
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        times, memory = pool.submit(score_file, file, repetitions).result()
    return Row(
        f"CMC + mAP, MSMT17 size: {size.queries:,} x {size.gallery:,} x {DIMENSION}",
        f"{statistics.median(times):.1f} s, {memory:,.0f} MiB",
        "fast-reid: out of memory at 64 GB (not run here)",
        aim="under 30 s on two cores, under 2 GB",
        raw=seconds_list(times),
    )


def score_file(file: Path, repetitions: int) -> tuple[list[float], float]:
    """Return the times of scoring a file, and the peak memory of this process in MiB."""
    with np.load(file) as archive:
        query, gallery, *names = archive.values()
    times = [seconds(lambda: score(query, gallery, *names)) for _ in range(repetitions)]
    status = Path("/proc/self/status").read_text()
    return times, int(status.partition("VmHWM:")[2].split()[0]) / 1024


def mars_conventions(size: Size, repetitions: int) -> Row:
    """Score with the queries in the gallery, as in MARS, by both conventions."""
    gallery_sides = make(size, 0.8)
    _, gallery, _, identities, _, cameras = gallery_sides
    named = np.flatnonzero(~np.isin(identities, (DISTRACTOR, JUNK)))
    chosen = np.sort(np.random.default_rng(0).choice(named, size.queries, replace=False))
    queried = np.isin(np.arange(len(gallery)), chosen)
    sides = (gallery[chosen], gallery, identities[chosen], identities, cameras[chosen], cameras)
    rest = (sides[0], gallery[~queried], sides[2], identities[~queried], sides[4], cameras[~queried])

    def both() -> Any:
        return score_by_protocol("mars", *sides, queried=queried)

    expected: list[float] = []
    naive_time = seconds(lambda: expected.extend([naive(*sides)[1], naive(*rest)[0]]))
    scores = both()
    times = [seconds(both) for _ in range(repetitions)]
    figures = [scores[key].mean_average_precision for key in ("", "common/")]
    return oracle_row(
        f"MARS size, both conventions: {size.queries:,} x {len(gallery):,} x {DIMENSION}",
        times, naive_time, figures, expected,
    )  # fmt: skip


def naive(
    query: NDArray[Any], gallery: NDArray[Any], labels: NDArray[Any], others: NDArray[Any],
    views: NDArray[Any], other_views: NDArray[Any],
) -> tuple[float, float]:  # fmt: skip
    """Return mAP at the hits and by trapezoids in float64, one query at a time."""
    hits, areas = [], []
    query, gallery = query.astype(float), gallery.astype(float)
    for row, label, view in zip(query, labels, views, strict=True):
        kept = (others != JUNK) & ((others != label) | (other_views != view))
        match = (others == label)[kept]
        distances = cdist(row[None], gallery, "sqeuclidean")[0][kept]
        ranks = np.flatnonzero(match[np.lexsort((match, distances))]) + 1
        if len(ranks) > 0:
            count = np.arange(1, len(ranks) + 1)
            before = np.where(ranks > 1, (count - 1) / np.maximum(ranks - 1, 1), 1.0)
            hits.append((count / ranks).mean())
            areas.append((count / ranks + before).mean() / 2)
    return float(np.mean(hits)), float(np.mean(areas))


def single_gallery_shot(size: Size, repetitions: int) -> Row:
    """Score one testset of CUHK03: queries in one view, 100 draws of the gallery in the other."""
    query, gallery, labels, others, *_ = make(size, 0.8)
    views, other_views = np.repeat("1", len(query)), np.repeat("2", len(gallery))
    sides = (query, gallery, labels, others, views, other_views)
    expected: list[float] = []
    naive_time = seconds(lambda: expected.extend(naive_shots(query, gallery, labels, others)))
    times = [seconds(lambda: score_single_gallery_shot(*sides)) for _ in range(repetitions)]
    curve = score_single_gallery_shot(*sides).curve
    return oracle_row(
        f"CUHK03 size, 100 draws: {len(query):,} x {len(gallery):,} x {DIMENSION}",
        times, naive_time, [curve[0], curve[4]], expected,
    )  # fmt: skip


def naive_shots(
    query: NDArray[Any], gallery: NDArray[Any], labels: NDArray[Any], others: NDArray[Any]
) -> tuple[float, float]:
    """Return CMC at ranks 1 and 5 over 100 draws in float64, one query and draw at a time."""
    rng = np.random.default_rng([0, 0])  # the generator of the first camera
    ranks = []
    for _ in range(100):
        order = rng.permutation(len(gallery))
        draw = order[np.unique(others[order], return_index=True)[1]]
        for row, label in zip(query.astype(float), labels, strict=True):
            match = others[draw] == label
            if match.any():
                distances = cdist(row[None], gallery[draw], "sqeuclidean")[0]
                ranks.append((distances <= distances[match]).sum())
    return float(np.mean(np.array(ranks) <= 1)), float(np.mean(np.array(ranks) <= 5))


def oracle_row(
    what: str, times: list[float], naive_time: float, figures: list[float], expected: list[float]
) -> Row:
    """Return the row of a comparison with a naive oracle, which runs once."""
    difference = np.abs(np.subtract(figures, expected)).max()
    time = statistics.median(times)
    return Row(
        what,
        f"{time:.2f} s; {', '.join(f'{figure:.2%}' for figure in figures)}",
        f"naive float64 oracle: {naive_time:.1f} s; figures differ by at most {difference:.0e}",
        f"{time / naive_time:.3f}",
        raw=seconds_list(times),
    )
