"""The standard error of a validation score."""

import numpy as np
import pytest

from trainables.evaluation.validation import Estimate, mean_of_folds, mean_of_sets, standard_error


def test_standard_error_of_single_queries_is_that_of_a_mean():
    values = np.random.default_rng(0).random(30)
    assert standard_error(values, np.arange(30)) == pytest.approx(values.std(ddof=1) / np.sqrt(30))


def test_standard_error_does_not_shrink_with_equal_queries():
    values = np.random.default_rng(1).random(12)
    repeated = standard_error(np.repeat(values, 5), np.repeat(np.arange(12), 5))
    assert repeated == pytest.approx(standard_error(values, np.arange(12)))


def test_standard_error_of_one_identity_is_unknown():
    assert standard_error([0.1, 0.9], ["a", "a"]) is None


def test_standard_error_is_the_spread_over_identities():
    """Over many draws of 18 of many identities, it is near the spread of the mean that it estimates."""
    rng = np.random.default_rng(2)
    means, errors = [], []
    for _ in range(2000):
        sizes = rng.integers(1, 6, 18)
        groups = np.repeat(np.arange(18), sizes)
        values = np.clip(rng.normal(0.6, 0.3, 18)[groups] + rng.normal(0, 0.1, len(groups)), 0, 1)
        means.append(values.mean())
        errors.append(standard_error(values, groups))
    assert np.mean(errors) == pytest.approx(np.std(means), rel=0.1)


def test_mean_of_sets_adds_their_variances():
    mean = mean_of_sets([Estimate(0.2, 0.03), Estimate(0.6, 0.04)])
    assert (mean.value, mean.error) == (pytest.approx(0.4), pytest.approx(0.025))
    assert mean_of_sets([Estimate(0.2, None), Estimate(0.6, 0.04)]).error is None


def test_mean_of_folds_adds_the_variances_of_disjoint_identities():
    first = {"val/mAP": 0.2, "val/mAP/error": 0.03, "val/b/mAP": 0.5, "val/b/mAP/error": 0.02}
    second = {"val/mAP": 0.6, "val/mAP/error": 0.04, "val/b/mAP": 0.7, "val/b/mAP/error": 0.04}
    assert mean_of_folds([first, second]) == pytest.approx(
        {"val/mAP": 0.4, "val/mAP/error": 0.025, "val/b/mAP": 0.6, "val/b/mAP/error": 0.03}
    )
    assert mean_of_folds([first]) == first
    assert "val/mAP/error" not in mean_of_folds([first, {"val/mAP": 0.6}])
