"""Thresholds at false-match rates: what they mean, how sure they are, and when they are not stated."""

import numpy as np
import pytest
import torch

from trainables.data import sources
from trainables.data.parts import DataParts
from trainables.evaluation import calibration
from trainables.evaluation.calibration import calibrate_features
from trainables.evaluation.embedding import embed
from trainables.network.embedder import SequenceEmbedder


def on_circle(angles):
    return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)


def calibrated(identities, spread=0.0, seed=0):
    """Calibrate identities at random places of a circle, each seen by two cameras."""
    rng = np.random.default_rng(seed)
    places = rng.uniform(0, np.pi, identities)
    angles = np.concatenate([places, places + rng.normal(0, spread, identities)])
    names = np.tile([f"{number:04}" for number in range(identities)], 2)
    cameras = np.repeat(["a", "b"], identities)
    return calibrate_features(on_circle(angles), names, cameras, "set"), angles, names


def test_threshold_lets_at_most_its_rate_of_impostors_pass():
    result, angles, names = calibrated(60)
    features = on_circle(angles).astype(np.float64)
    distances = np.linalg.norm(features[:, None] - features[None], axis=2)
    impostors = distances[np.triu(names[:, None] != names[None], k=1)]
    assert result.impostor_pairs == len(impostors) == 60 * 59 * 2
    assert [threshold.false_match_rate for threshold in result.thresholds] == [0.01, 0.001]
    for threshold in result.thresholds:
        passed = (impostors <= threshold.distance + 1e-9).mean()
        assert 0.5 * threshold.false_match_rate < passed <= threshold.false_match_rate


def test_threshold_interval_contains_its_rate_and_narrows():
    few, many = (calibrated(count)[0].thresholds[0] for count in (40, 160))
    for threshold in (few, many):
        assert threshold.interval[0] < 0.01 < threshold.interval[1]
    assert many.interval[1] - many.interval[0] < few.interval[1] - few.interval[0]


def test_threshold_missed_counts_one_identity_in_two_cameras():
    exact = calibrated(60)[0]
    assert exact.genuine_pairs == 60 and exact.thresholds[0].missed == 0
    assert calibrated(60, spread=1.0)[0].thresholds[0].missed > 0.5


def test_rate_that_pairs_cannot_support_is_not_stated():
    result = calibrated(20)[0]
    assert result.impostor_pairs == 760
    assert [threshold.false_match_rate for threshold in result.thresholds] == [0.01]
    assert result.not_stated == ("0.1%: needs 3,000 pairs of different identities; there are 760",)


def test_rate_of_collapsed_features_is_not_stated():
    names = np.repeat([f"{number}" for number in range(60)], 2)
    cameras = np.tile(["a", "b"], 60)
    result = calibrate_features(np.ones((120, 1), np.float32), names, cameras, "set")
    assert result.thresholds == ()
    assert "too many pairs of different identities have equal distances" in result.not_stated[0]


def untrained(config):
    torch.manual_seed(0)
    return SequenceEmbedder(config.network).eval()


@pytest.mark.usefixtures("prepared")
def test_calibration_uses_validation_identities_only(tiny, monkeypatch):
    parts = []
    monkeypatch.setattr(calibration, "embed", lambda *args: parts.append(args[1]) or embed(*args))
    config = tiny()
    data = DataParts(config.data, sources.reopen(config.data, ["walkers"]))
    query, gallery = data.validation()
    result = calibration.calibrate(untrained(config), query, gallery, torch.device("cpu"))
    assert result.set == "walkers" and result.identities == 8
    assert parts[0].tracklets.tolist() == sorted({*query.tracklets, *gallery.tracklets})
    assert not {*parts[0].identities} & {*data.train().identities}
    assert not {*parts[0].identities} & {*data.test("walkers")[0].identities}


@pytest.mark.usefixtures("prepared")
def test_calibration_without_validation_says_why(tiny):
    config = tiny(data={"validation": 0})
    data = DataParts(config.data, sources.reopen(config.data, ["walkers"]))
    result = calibration.calibrate(untrained(config), *data.validation(), torch.device("cpu"))
    assert result.thresholds == ()
    assert result.not_stated == ("no identities were held back for validation (data.validation is 0)",)
