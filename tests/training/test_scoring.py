"""The streamed scorer against a naive one, in every situation the protocols know."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainables.data.tracklet import DISTRACTOR, JUNK, DataError
from trainables.scoring import RANKS, score


def naive(query, gallery, query_labels, labels, query_views, views):
    """The protocol word by word, one query at a time: CMC, mAP, trapezoid mAP, queries that counted."""
    hits, precisions, areas = [], [], []
    for feature, label, view in zip(query, query_labels, query_views, strict=True):
        if label in (JUNK, DISTRACTOR):
            continue
        ranking = []
        for item, other, camera in zip(gallery, labels, views, strict=True):
            if other == JUNK or (other == label and camera == view):
                continue
            distance = sum((float(a) - float(b)) ** 2 for a, b in zip(feature, item, strict=True))
            ranking.append((distance, other == label))
        if not any(match for _, match in ranking):
            continue
        ranking.sort()  # at equal distance the wrong item (False) stands first
        correct, precision, area, previous = 0, 0.0, 0.0, 1.0
        matches = sum(match for _, match in ranking)
        for rank, (_, match) in enumerate(ranking, 1):
            correct += match
            if match:
                precision += correct / rank / matches
                area += (previous + correct / rank) / 2 / matches
            previous = correct / rank
        first = next(rank for rank, (_, match) in enumerate(ranking, 1) if match)
        hits.append([first <= k for k in RANKS])
        precisions.append(precision)
        areas.append(area)
    if not hits:
        return None
    return np.mean(hits, axis=0), np.mean(precisions), np.mean(areas), len(hits)


@st.composite
def retrievals(draw):
    """Small sets with few distinct features, so that ties, junk and missing matches occur."""
    labels = st.sampled_from(["1", "2", "3", "4", JUNK, DISTRACTOR])
    views = st.sampled_from(["a", "b", "c"][: draw(st.integers(1, 3))])
    reach = draw(st.sampled_from([1, 3, 1000]))  # whole numbers: distances are exact, so ties are ties
    values = st.integers(-reach, reach)

    def side(smallest, largest):
        size = draw(st.integers(smallest, largest))
        features = draw(st.lists(st.tuples(values, values), min_size=size, max_size=size))
        sides = draw(st.lists(st.tuples(labels, views), min_size=size, max_size=size))
        names, cameras = [side[0] for side in sides], [side[1] for side in sides]
        return np.asarray(features, np.float64).reshape(size, 2), names, cameras

    return side(1, 8), side(0, 40), draw(st.integers(1, 5))


@settings(max_examples=400, deadline=None)
@given(retrievals())
def test_equals_naive_scorer(case):
    (query, query_labels, query_views), (gallery, labels, views), block = case
    expected = naive(query, gallery, query_labels, labels, query_views, views)
    arguments = (query, gallery, query_labels, labels, query_views, views)
    if expected is None:
        with pytest.raises(DataError, match="has a match in another camera"):
            score(*arguments, block=block)
        return
    found = score(*arguments, block=block)
    np.testing.assert_allclose([found.cmc[k] for k in RANKS], expected[0])
    assert found.mean_average_precision == pytest.approx(expected[1])
    assert found.trapezoid == pytest.approx(expected[2])
    assert (found.queries, found.unmatched) == (expected[3], len(query) - expected[3])


def test_equals_naive_scorer_on_dense_random_features():
    rng = np.random.default_rng(0)
    query, gallery = rng.normal(size=(40, 8)), rng.normal(size=(300, 8))
    sides = rng.integers(0, 20, 40).astype(str), rng.integers(0, 20, 300).astype(str)
    cameras = rng.integers(0, 3, 40).astype(str), rng.integers(0, 3, 300).astype(str)
    expected = naive(query, gallery, *sides, *cameras)
    found = score(query, gallery, *sides, *cameras, block=7)
    np.testing.assert_allclose([found.cmc[k] for k in RANKS], expected[0])
    assert (found.mean_average_precision, found.trapezoid) == pytest.approx(expected[1:3])


def test_perfect_features_score_one_and_collapsed_features_score_nothing():
    labels, eye = np.arange(30).astype(str), np.eye(30)
    perfect = score(eye, eye, labels, labels, ["a"] * 30, ["b"] * 30)
    assert perfect.metrics("val/") == {f"val/rank{k}": 1.0 for k in RANKS} | {"val/mAP": 1.0}
    collapsed = score(eye * 0, eye * 0, labels, labels, ["a"] * 30, ["b"] * 30)
    assert collapsed.cmc == dict.fromkeys(RANKS, 0.0)


def test_score_does_not_depend_on_the_order_of_the_gallery():
    rng = np.random.default_rng(1)
    query, gallery = rng.integers(0, 3, (20, 2)), rng.integers(0, 3, (50, 2))
    ours, theirs = rng.integers(0, 5, 20).astype(str), rng.integers(0, 5, 50).astype(str)
    order = rng.permutation(50)
    views = np.repeat("b", 50)
    assert score(query, gallery, ours, theirs, ["a"] * 20, views) == score(
        query, gallery[order], ours, theirs[order], ["a"] * 20, views
    )


def test_features_that_are_not_finite_are_refused():
    with pytest.raises(ValueError, match="NaN or infinity"):
        score([[np.nan]], [[0.0]], ["1"], ["1"], ["a"], ["b"])
