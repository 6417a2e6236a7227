"""Tests of the distance between stills, their pseudo sequences, and real sequences."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from tests.support.recorder import Recorder
from trainables.data.parts import Part
from trainables.errors import DataError
from trainables.evaluation.pseudo import (
    PSEUDO_METRICS,
    _between_identities,
    _clips,
    measure_pseudo,
    pseudo_metrics,
)
from trainables.methods import MethodConfig, build_method
from trainables.methods.alignment import AlignmentMethod

LENGTHS = (6, 3, 4, 2, 5)
"""Frames of the tracklets; with an ``alignment.length`` of 3, the fourth one is too short."""


def part_of(motion: float, flow: bool = False) -> Part:
    """Return tracklets of two identities; their frames differ by up to ``motion`` of the range of colours."""
    rng = np.random.default_rng(0)
    scene = rng.integers(0, 256, (len(LENGTHS), 1, 32, 16, 3))
    frames = [
        (still * (1 - motion) + motion * rng.integers(0, 256, (length, 32, 16, 3))).astype(np.uint8)
        for still, length in zip(scene, LENGTHS, strict=True)
    ]
    fields = [rng.normal(size=(length, 32, 16, 2)).astype(np.float32) for length in LENGTHS]
    pack = SimpleNamespace(
        has_flow=flow,
        identities=np.array(["a", "a", "b", "b", "b"]),
        lengths=np.array(LENGTHS),
        frames=lambda tracklet, window: frames[tracklet][window],
        flow=lambda tracklet, window: fields[tracklet][window],
    )
    return Part(pack, np.arange(len(LENGTHS)))  # type: ignore[arg-type]


def make(name: str, flow: bool = False, **alignment):
    torch.manual_seed(0)
    network = {
        "encoder": {"name": "mclaughlin2016", "features": 16},
        "rnn": {"hidden_size": 16},
        "height": 32,
        "width": 16,
        "flow": "dis" if flow else "none",
    }
    config = MethodConfig.model_validate({"network": network, "alignment": alignment})
    return build_method(name, config, sequences=3, images=3)


def measure(method, part: Part) -> dict[str, float]:
    return measure_pseudo(method, part, torch.device("cpu"))


def test_motionless_sequences_leave_no_gap():
    measured = measure(make("static"), part_of(motion=0))
    assert measured == {
        "val/still/gap": pytest.approx(0, abs=1e-6),
        "val/pseudo/gap": pytest.approx(0, abs=1e-6),
    }


def test_gap_is_relative_to_the_distance_of_two_identities():
    method, part = make("sequence"), part_of(motion=0.5)
    with torch.no_grad():
        clips = {
            tracklet: torch.from_numpy(part.pack.frames(tracklet, slice(start, start + 3)) / np.float32(255))
            for tracklet, start in ((0, 1), (1, 0), (2, 0), (4, 1))  # the three frames in the middle
        }
        frames = torch.stack(list(clips.values())).movedim(-1, 2)
        method.eval()
        real = normalize(method.embedder(frames))
        still = normalize(method.embedder(frames[:, 1:2].expand(-1, 3, -1, -1, -1)))
    squares = torch.cdist(real, real).square()
    between = squares[:2, 2:].mean()
    gap = (still - real).square().sum(dim=1).mean() / between
    assert measure(method, part) == {"val/still/gap": pytest.approx(float(gap), rel=1e-4)}
    assert gap > 0.01


@pytest.mark.parametrize("level", ["feature", "pixel"])
@pytest.mark.parametrize("flow", [False, True])
def test_new_generators_stand_still(level: str, flow: bool):
    measured = measure(make("alignment", flow=flow, level=level), part_of(0.5, flow))
    assert measured.keys() == set(PSEUDO_METRICS)
    assert measured["val/pseudo/motion"] == pytest.approx(1) == measured["val/pseudo/content"]
    assert measured["val/pseudo/gap"] == pytest.approx(measured["val/still/gap"])


def test_gap_of_sampled_motions_is_that_of_their_mean(monkeypatch: pytest.MonkeyPatch):
    method, part = make("static"), part_of(0.5)
    plain = measure(method, part)["val/pseudo/gap"]
    hold = type(method).pseudo_steps

    def noisy(self, images):
        steps = hold(self, images)
        return steps + 0.01 * torch.randn(len(steps), 1, steps.shape[2])

    monkeypatch.setattr(type(method), "pseudo_steps", noisy)
    gaps, seed_generator = [], torch.manual_seed
    for seed in range(100):
        monkeypatch.setattr(torch, "manual_seed", lambda _, seed=seed: seed_generator(seed))
        gaps.append(measure(method, part)["val/pseudo/gap"])
    error = np.std(gaps) / np.sqrt(len(gaps))
    assert error > 0 and np.mean(gaps) == pytest.approx(plain, abs=4 * error)


def test_switched_off_modules_are_not_measured():
    switches = {"mgm": False, "cgm": False}
    method, part = make("alignment", **switches), part_of(0.5)
    expected = {"val/still/gap", "val/pseudo/gap"}
    assert measure(method, part).keys() == expected == pseudo_metrics(type(method), method.config)


def test_method_whose_losses_vary_can_be_checked():
    class Varying(AlignmentMethod):
        @classmethod
        def terms(cls, config: MethodConfig) -> None:
            return None

    assert pseudo_metrics(Varying, make("alignment").config) == set(PSEUDO_METRICS)


def test_parts_of_one_size_are_measured_together():
    part = part_of(0.5)
    many = Part(part.pack, np.tile([0, 1, 2, 4], 60))
    sizes = [len(clips) for clips in _clips(many, np.arange(240), 3)]
    assert sum(sizes) == 240 and max(sizes) - min(sizes) <= 1 and len(sizes) == 2


def test_measuring_repeats_and_leaves_random_numbers_alone():
    method, part = make("alignment"), part_of(0.5)
    torch.nn.init.normal_(method.alignment.mgm.output.weight)
    torch.manual_seed(5)
    expected = torch.randn(3)
    torch.manual_seed(5)
    first, second = measure(method, part), measure(method, part)
    assert first == second and first["val/pseudo/gap"] != pytest.approx(first["val/still/gap"])
    assert torch.equal(torch.randn(3), expected)


def test_flow_of_stills_is_that_of_the_method():
    part = part_of(0.5, flow=True)
    method = make("static", flow=True, still_flow="mean")
    measured = measure(method, part)
    assert measured["val/pseudo/gap"] == pytest.approx(measured["val/still/gap"])  # nothing is observed yet
    method.still_flow.mean += torch.linspace(-3, 3, 16)  # the network removes what is equal everywhere
    moved = measure(method, part)
    assert moved["val/still/gap"] == measured["val/still/gap"]
    assert moved["val/pseudo/gap"] != pytest.approx(measured["val/pseudo/gap"])


def test_one_identity_is_not_measured():
    part = part_of(0.5)
    assert measure(make("static"), Part(part.pack, part.tracklets[:2])) == {}


def test_distance_between_identities_equals_that_of_all_pairs():
    features = normalize(torch.randn(7, 4, generator=torch.Generator().manual_seed(0)))
    identities = np.array(list("abacbca"))
    different = torch.from_numpy(identities[:, None] != identities)
    expected = torch.cdist(features, features).square()[different].mean()
    assert _between_identities(features, identities) == pytest.approx(float(expected), rel=1e-5)


def test_fit_measures_what_the_job_needs(tiny, prepared, tmp_path):
    plain, needing = Recorder(tmp_path / "plain"), Recorder(tmp_path / "needing", metrics=PSEUDO_METRICS[:1])
    prepared.fit(tiny(), plain)
    prepared.fit(tiny(), needing)
    for before, after in zip(plain.reports, needing.reports, strict=True):
        assert {*after} - {*before} == set(PSEUDO_METRICS)
        assert all(after[name] == before[name] for name in before if name.startswith(("train/", "val/m")))
    assert 0 < needing.reports[-1]["val/still/gap"] < 4


def test_check_metric_that_a_method_does_not_report_is_refused(tiny, prepared):
    prepared.check(tiny(), workers=1, metrics=PSEUDO_METRICS)
    without = tiny(alignment={"weights": {"motion": 0}})
    with pytest.raises(DataError, match=r"^method: 'alignment' does not report val/pseudo/motion with these"):
        prepared.check(without, workers=1, metrics=["val/pseudo/motion"])
    with pytest.raises(DataError, match=r"^method: 'sequence' does not report val/pseudo/gap"):
        prepared.check(tiny(method="sequence"), workers=1, metrics=["val/pseudo/gap"])
    with pytest.raises(DataError, match=r"^data.validation: 0 leaves no .* so val/still/gap is never"):
        prepared.check(tiny(data={"validation": 0}), workers=1, metrics=["val/still/gap"])
