"""The reports of a trial survive the flat mappings of Ray Tune."""

import math
from typing import Any

import pytest

from orchestrator.study.trial_report import (
    EpochEnded,
    Failed,
    Halted,
    Scored,
    Started,
    Trained,
    TrialReport,
    WorkersLost,
    WorkersReplaced,
    decode,
    encode,
    trial_name,
)

REPORTS: list[TrialReport] = [
    Started(),
    EpochEnded(3, {"val/score": 0.1, "train/loss": 1e-300}),
    EpochEnded(3, {}, checkpoint="/sweeps/study/checkpoint_3"),
    EpochEnded(1, {"a": math.inf, "b": -math.inf}),
    WorkersLost("its node died"),
    WorkersReplaced("it left 2 threads"),
    Trained("/sweeps/study/checkpoint_3"),
    Scored({"test/walkers/rank1": 0.5, "test/real/mAP": math.inf}),
    Failed("RuntimeError: no", log="the\nlog"),
    Failed("RuntimeError: no"),
    Halted("storage: no space left"),
]


@pytest.mark.parametrize("report", REPORTS, ids=repr)
def test_report_survives_encode_and_decode(report: TrialReport) -> None:
    assert decode(encode(report)) == report


@pytest.mark.parametrize("kind", [EpochEnded, Scored])
def test_report_with_nan_survives_encode_and_decode(kind: Any) -> None:
    values = {"finite": 0.5, "nan": math.nan}
    decoded = decode(encode(EpochEnded(2, values) if kind is EpochEnded else Scored(values)))
    decoded_values = decoded.metrics if isinstance(decoded, EpochEnded) else decoded.scores  # type: ignore[union-attr]
    assert decoded_values["finite"] == 0.5
    assert math.isnan(decoded_values["nan"])


@pytest.mark.parametrize("report", REPORTS, ids=repr)
def test_encoded_report_is_flat(report: TrialReport) -> None:
    assert not any(isinstance(value, dict | list | tuple) for value in encode(report).values())


@pytest.mark.parametrize("report", REPORTS, ids=repr)
def test_report_with_keys_of_ray_tune_is_decoded(report: TrialReport) -> None:
    added = {
        "training_iteration": 3,
        "done": False,
        "config": {"number": 1},
        "trial_id": "a",
        "time_total_s": 1.0,
    }
    assert decode({**added, **encode(report)}) == report


def test_result_without_a_report_decodes_to_none() -> None:
    assert decode({"done": True, "training_iteration": 1}) is None


def test_types_of_reports_have_different_names() -> None:
    names = {type(report): encode(report)["report"] for report in REPORTS}
    assert len(set(names.values())) == len(names) == len(TrialReport.__args__)


@pytest.mark.parametrize(("number", "name"), [(0, "trial-0000"), (12345, "trial-12345")])
def test_trial_name_has_four_digits_at_least(number: int, name: str) -> None:
    assert trial_name(number) == name
