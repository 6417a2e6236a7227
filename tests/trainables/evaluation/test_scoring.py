"""Tests of the streamed scorer against a naive one, in every situation of the protocols."""

import numpy as np
import pytest

from trainables.data.tracklet import DISTRACTOR, JUNK
from trainables.errors import DataError
from trainables.evaluation.scoring import (
    LONGEST_RANK,
    RANKS,
    ranking,
    score,
    score_by_protocol,
    score_single_gallery_shot,
)

CASES = 4000


def naive_ranking(feature, label, view, gallery, labels, views):
    """Return (is a match, index) of each ranked item, nearest first; in ties wrong items come first."""
    order = []
    for index, (item, other, camera) in enumerate(zip(gallery, labels, views, strict=True)):
        match = other == label and label not in (JUNK, DISTRACTOR)
        if other == JUNK or (match and camera == view):
            continue
        distance = sum((float(a) - float(b)) ** 2 for a, b in zip(feature, item, strict=True))
        order.append((distance, match, index))
    return [(match, index) for _, match, index in sorted(order)]


def naive(query, gallery, query_labels, labels, query_views, views):
    """Score literally by the protocol, one query at a time.

    Return for each query with a match: its index, the rank of its first match, average precision at the hits
    and by trapezoids, inverse negative penalty.
    """
    result = []
    for number, (feature, label, view) in enumerate(zip(query, query_labels, query_views, strict=True)):
        matches = [match for match, _ in naive_ranking(feature, label, view, gallery, labels, views)]
        total, correct, first, last = sum(matches), 0, None, 0
        precision, area, previous = 0.0, 0.0, 1.0
        if total == 0:
            continue
        for rank, match in enumerate(matches, 1):
            correct += match
            if match:
                first, last = first or rank, rank
                precision += correct / rank / total
                area += (previous + correct / rank) / 2 / total
            previous = correct / rank
        result.append((number, first, precision, area, total / last))
    return result


def case(number):
    """Return a small random retrieval: query and gallery features, identities, cameras."""
    rng = np.random.default_rng(number)
    size, items, dimension = rng.integers(1, 8), rng.integers(0, 40), rng.integers(1, 5)
    names = np.array(["1", "2", "3", "4", JUNK, DISTRACTOR])
    cameras = np.array(["a", "b", "c"])[: rng.integers(1, 4)]
    total = size + items
    kind = number % 4
    if kind == 0:  # whole numbers: distances are exact, so ties are ties
        features = rng.integers(-2, 3, (total, dimension)).astype(float)
    elif kind == 1:  # some features are equal, as of repeated frames
        features = rng.normal(size=(5, dimension))[rng.integers(0, 5, total)]
    elif kind == 2:  # all but collapsed into one point
        features = rng.normal(size=dimension) + 1e-7 * rng.normal(size=(total, dimension))
    else:
        features = rng.normal(size=(total, dimension))
    labels, views = rng.choice(names, total), rng.choice(cameras, total)
    if items and rng.random() < 0.3:  # queries are in the gallery, as in MARS
        position = size + rng.integers(0, items, size)
        features[:size], labels[:size], views[:size] = features[position], labels[position], views[position]
    sides = slice(size), slice(size, None)
    arguments = [part[side] for part in (features, labels, views) for side in sides]
    return arguments, int(rng.integers(1, 6))


def same_curve(curve, first):
    expected = [np.mean([rank <= k for rank in first]) for k in range(1, LONGEST_RANK + 1)]
    np.testing.assert_allclose(curve, expected, rtol=1e-12)


def test_score_equals_the_naive_scorer():
    cases = 0
    for number in range(CASES):
        arguments, block = case(number)
        expected = naive(*arguments)
        if not expected:
            with pytest.raises(DataError, match="has a match in another camera"):
                score(*arguments, block=block)
            continue
        cases += 1
        index, first, precision, area, penalty = (np.array(values) for values in zip(*expected, strict=True))
        result = score(*arguments, block=block)
        np.testing.assert_array_equal(result.query_index, index, err_msg=f"case {number}")
        np.testing.assert_array_equal(result.first_rank, first, err_msg=f"case {number}")
        np.testing.assert_allclose(result.average_precision, precision, rtol=1e-12)
        np.testing.assert_allclose(result.inverse_negative_penalty, penalty, rtol=1e-12)
        same_curve(result.curve, first)
        assert result.mean_average_precision == pytest.approx(precision.mean(), rel=1e-12)
        assert result.mean_inverse_negative_penalty == pytest.approx(penalty.mean(), rel=1e-12)
        assert (result.queries, result.unmatched) == (len(index), len(arguments[0]) - len(index))
        official = score(*arguments, average_precision="trapezoid", block=block)
        np.testing.assert_allclose(official.average_precision, area, rtol=1e-12)
    assert cases > CASES / 2


def close_case(number):
    """Return a retrieval in 16 to 64 dimensions with exact ties, near-ties and queries without a match.

    Near-ties differ by as little as the rounding of a float32 product, and by less.
    """
    rng = np.random.default_rng([1, number])
    size, items, dimension = 6, 40, int(rng.integers(16, 65))
    names = np.array(["1", "2", "3", "4", JUNK, DISTRACTOR])
    total = size + items
    features = rng.normal(size=(4, dimension))[rng.integers(0, 4, total)]  # four points, so most items tie
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    moved = rng.integers(0, 2, (total, 1))
    features += 10.0 ** rng.integers(-9, -3) * moved * rng.normal(size=features.shape)
    features = features + (0, 0, 1, 1000)[number % 4]  # far from the origin, float32 products lose digits
    features *= (1, 1, 1, 1, 1e-3, 1e12, 1e-18, 1e18 if number % 2 else 1e140)[number // 4 % 8]
    if number % 2:
        features = features.astype(np.float32)
    labels, views = rng.choice(names, total), rng.choice(["a", "b", "c"], total)
    labels[:2] = "5", "1"
    sides = slice(size), slice(size, None)
    return [part[side] for part in (features, labels, views) for side in sides]


def in_float32(arguments):
    """Return the ranking of the first query's gallery by float32 products."""
    with np.errstate(over="ignore", invalid="ignore"):
        query, gallery = (np.asarray(side, np.float32) for side in arguments[:2])
        return np.argsort((gallery**2).sum(axis=1) / 2 - gallery @ query[0], kind="stable").tolist()


def test_score_near_ties_equals_the_naive_scorer():
    cases = 400
    misranked = 0
    for number in range(cases):
        arguments = close_case(number)
        exact = [sum((arguments[0][0].astype(float) - item) ** 2) for item in arguments[1].astype(float)]
        misranked += np.argsort(exact, kind="stable").tolist() != in_float32(arguments)
        expected = naive(*arguments)
        index, first, precision, _, penalty = (np.array(values) for values in zip(*expected, strict=True))
        result = score(*arguments)
        np.testing.assert_array_equal(result.query_index, index, err_msg=f"case {number}")
        np.testing.assert_array_equal(result.first_rank, first, err_msg=f"case {number}")
        np.testing.assert_allclose(result.average_precision, precision, rtol=1e-12)
        np.testing.assert_allclose(result.inverse_negative_penalty, penalty, rtol=1e-12)
        assert result.unmatched == len(arguments[0]) - len(index) > 0
    assert misranked > cases / 2


def test_score_mixed_types_equals_float64():
    for number in range(1, 40, 2):
        query, gallery, *names = close_case(number)
        expected = score(query, gallery, *names).metrics("")
        assert score(query.astype(float), gallery, *names).metrics("") == expected
        assert score(query.tolist(), gallery.astype(float), *names).metrics("") == expected


def naive_single_shots(query, gallery, query_labels, labels, query_views, views, repeats, seed):
    """Return the first ranks of each query with a match, one per draw, by query."""
    result = {}
    for number, view in enumerate(sorted(set(query_views))):
        indices = [i for i in range(len(query)) if query_views[i] == view]
        others = [i for i in range(len(gallery)) if views[i] != view and labels[i] != DISTRACTOR]
        distractors = [i for i in range(len(gallery)) if views[i] != view and labels[i] == DISTRACTOR]
        rng = np.random.default_rng([seed, number])
        for _ in range(repeats):
            first_items = {}
            for position in rng.permutation(len(others)):
                first_items.setdefault(labels[others[position]], others[position])
            draw = [*first_items.values(), *distractors]
            shot = naive(query[indices], gallery[draw], query_labels[indices], labels[draw],
                         query_views[indices], views[draw])  # fmt: skip
            for position, first, *_ in shot:
                result.setdefault(indices[position], []).append(first)
    return result


def test_single_gallery_shot_equals_the_naive_scorer():
    cases = 0
    for number in range(0, CASES, 8):
        arguments, _ = case(number + number // 8 % 4)
        expected = naive_single_shots(*arguments, repeats=3, seed=number)
        if not expected:
            with pytest.raises(DataError, match="has a match in another camera"):
                score_single_gallery_shot(*arguments, repeats=3, seed=number)
            continue
        cases += 1
        result = score_single_gallery_shot(*arguments, repeats=3, seed=number)
        assert result.query_index.tolist() == sorted(expected)
        ranks = np.array([expected[index] for index in sorted(expected)])
        np.testing.assert_allclose(result.first_rank, ranks.mean(axis=1))
        np.testing.assert_allclose(result.average_precision, (1 / ranks).mean(axis=1))
        same_curve(result.curve, ranks.ravel())
    assert cases > CASES / 20


def test_single_gallery_shot_draws_items_equally_often():
    """One match is nearer than the wrong item and one farther, so that half of the draws have rank 1."""
    arguments = [[0.0]], [[1.0], [2.0], [3.0]], ["1"], ["1", "2", "1"], ["a"], ["b"] * 3
    result = score_single_gallery_shot(*arguments, repeats=4000)
    assert result.curve[0] == pytest.approx(0.5, abs=0.03) and result.curve[1] == 1
    assert result.metrics("test/") == {f"test/rank{rank}": result.curve[rank - 1] for rank in RANKS}


def test_ranking_has_the_order_of_score():
    for number in range(0, CASES, 8):
        arguments, _ = case(number + number // 8 % 4)
        query, gallery, query_labels, labels, query_views, views = arguments
        indices = list(range(len(query)))[::-1]
        result = ranking(*arguments, indices, 7)
        for index, order in zip(indices, result, strict=True):
            expected = naive_ranking(
                query[index], query_labels[index], query_views[index], gallery, labels, views
            )
            assert order.tolist() == [item for _, item in expected[:7]]


def test_score_by_protocol_mars_uses_both_conventions():
    """Identity 1 is in camera b only as a query, so its other query counts only officially."""
    labels = np.array(["1", "1", "2", "2", "2", "3", "3", "3", JUNK, DISTRACTOR])
    views = np.array(["a", "b", "a", "b", "b", "a", "a", "b", "a", "c"])
    gallery = np.random.default_rng(0).normal(size=(10, 3))
    queried = np.isin(np.arange(10), [0, 1, 2, 3, 5, 7])
    query = gallery[queried], labels[queried], views[queried]
    sides = query[0], gallery, query[1], labels, query[2], views
    result = score_by_protocol("mars", *sides, queried=queried)

    def mean(column, *arguments):
        return np.mean([row[column] for row in naive(*arguments)])

    official, common = result[""], result["common/"]
    assert len(result) == 2
    assert (official.queries, common.queries) == (6, 2)
    assert official.mean_average_precision == pytest.approx(mean(3, *sides))
    rest = ~queried
    dropped = query[0], gallery[rest], query[1], labels[rest], query[2], views[rest]
    assert common.mean_average_precision == pytest.approx(mean(2, *dropped))
    assert common.mean_inverse_negative_penalty == pytest.approx(mean(4, *dropped))

    all_items = np.ones(10, bool)
    assert set(score_by_protocol("mars", *sides, queried=all_items)) == {""}


def test_score_by_protocol_others_have_one_convention():
    arguments, _ = case(7)
    queried = np.zeros(len(arguments[1]), bool)
    whole = score_by_protocol("whole-gallery", *arguments, queried=queried)
    single = score_by_protocol("single-gallery-shot", *arguments, queried=queried)
    assert [list(result) for result in (whole, single)] == [[""], [""]]
    assert whole[""].metrics("") == score(*arguments).metrics("")
    assert single[""].metrics("") == score_single_gallery_shot(*arguments).metrics("")


def test_score_trapezoid_equals_code_released_with_mars():
    """Two matches are at ranks 2 and 4, and recall rises by a half at each."""
    gallery, labels = [[1.0], [2.0], [3.0], [4.0]], ["2", "1", "3", "1"]
    sides = [[0.0]], gallery, ["1"], labels, ["a"], ["b"] * 4
    result = score(*sides, average_precision="trapezoid")
    assert result.mean_average_precision == pytest.approx((0 + 1 / 2) / 4 + (1 / 3 + 2 / 4) / 4)
    assert score(*sides).mean_average_precision == pytest.approx((1 / 2 + 2 / 4) / 2)
    assert result.mean_inverse_negative_penalty == 2 / 4


def test_score_perfect_features_is_one():
    labels, eye = np.arange(30).astype(str), np.eye(30)
    perfect = score(eye, eye, labels, labels, ["a"] * 30, ["b"] * 30)
    names = (*(f"val/rank{rank}" for rank in RANKS), "val/mAP", "val/mINP")
    assert perfect.metrics("val/") == dict.fromkeys(names, 1.0)
    assert list(perfect.metrics("", ranks=(1,))) == ["rank1", "mAP", "mINP"]


def test_score_collapsed_features_is_zero():
    """Equal features tie exactly for any values and dimension."""
    for size in range(21, 80):
        point = np.random.default_rng(size).normal(size=size)
        labels, features = np.arange(size).astype(str), np.tile(point, (size, 1)).astype(np.float32)
        collapsed = score(features, features, labels, labels, ["a"] * size, ["b"] * size)
        assert set(collapsed.first_rank.tolist()) == {size}
        assert not any(collapsed.curve[rank - 1] for rank in RANKS)


def test_score_does_not_depend_on_gallery_order():
    rng = np.random.default_rng(1)
    query, gallery = rng.integers(0, 3, (20, 2)), rng.integers(0, 3, (50, 2))
    ours, theirs = rng.integers(0, 5, 20).astype(str), rng.integers(0, 5, 50).astype(str)
    order = rng.permutation(50)
    views = np.repeat("b", 50)
    assert score(query, gallery, ours, theirs, ["a"] * 20, views).metrics("") == score(
        query, gallery[order], ours, theirs[order], ["a"] * 20, views
    ).metrics("")


def test_score_features_not_finite_are_refused():
    for scorer in score, score_single_gallery_shot:
        with pytest.raises(ValueError, match="NaN or infinity"):
            scorer([[np.nan]], [[0.0]], ["1"], ["1"], ["a"], ["b"])
