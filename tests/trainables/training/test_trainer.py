"""Tests of the training loop: resume, equality of one and two workers, and values that are not finite."""

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch.multiprocessing.spawn import spawn

from tests.support.recorder import InterruptedTrialError, Recorder
from trainables.alignment import AlignmentTrainable
from trainables.data.loading import Loader
from trainables.evaluation.pseudo import PSEUDO_METRICS
from trainables.network.encoders import ENCODERS
from trainables.training.trainer import WEIGHTS, prefers_bfloat16

GOLDEN = Path(__file__).with_name("golden_curve.json")
"""Losses of `tiny()`; store new ones after an intended change of the losses."""

VARIANTS = {
    "alignment-residual-adamw": {},
    "images-first": {"pretrain_epochs": 1},
    "alignment-bfloat16": {"precision": "bfloat16"},
    "sequence-mclaughlin-sgd": {
        "method": "sequence",
        "encoder": {"name": "mclaughlin2016"},
        "optimizer": {"name": "sgd", "warmup_epochs": 1},
    },
}


IMAGES_FIRST = ("pretrain", "static", "alignment")


def fit(config, folder, **context):
    recorder = Recorder(folder, **context)
    AlignmentTrainable().fit(config, recorder)
    return recorder


@pytest.mark.parametrize("variant", VARIANTS)
def test_resume_equals_the_uninterrupted_run_bit_for_bit(variant, tiny, prepared, tmp_path):
    config = tiny(**VARIANTS[variant])
    whole = fit(config, tmp_path / "whole")
    with pytest.raises(InterruptedTrialError):
        fit(config, tmp_path / "parts", stop_after=1)
    torch.manual_seed(99)  # the process may have drawn random numbers in between
    rest = fit(config, tmp_path / "parts")
    assert [report["epoch"] for report in whole.reports] == [1, 2, 3]
    assert rest.curve() == whole.curve()[1:]
    weights, others = (load_file(tmp_path / run / "0003" / WEIGHTS) for run in ("whole", "parts"))
    assert weights.keys() == others.keys()
    assert all(torch.equal(weights[name], others[name]) for name in weights)


def test_folds_train_each_model_as_it_would_be_alone(tiny, prepared, tmp_path):
    alone = [fit(tiny(epochs=2, data={"fold": fold}), tmp_path / f"{fold}") for fold in (0, 1)]
    with pytest.raises(InterruptedTrialError):
        fit(tiny(epochs=2, data={"folds": 2}), tmp_path / "both", stop_after=1)
    both = fit(tiny(epochs=2, data={"folds": 2}), tmp_path / "both")
    for number in range(2):
        folder = tmp_path / "both" / "0002" / (f"fold-{number}" if number else "")
        weights = load_file(folder / WEIGHTS)
        expected = load_file(tmp_path / str(number) / "0002" / WEIGHTS)
        assert all(torch.equal(weights[name], value) for name, value in expected.items())
    (report,), curves = both.curve(), [single.curve()[1] for single in alone]
    for metric in ("val/mAP", "train/loss"):
        assert report[metric] == pytest.approx(sum(curve[metric] for curve in curves) / 2)


def test_encoder_compiled_computes_the_same(tiny, prepared, tmp_path):
    small = {"epochs": 1, "encoder": {"name": "mclaughlin2016"}, "alignment": {"noise": 0}}
    layers = prepared.training(tiny(**small, compile=True), Recorder(tmp_path)).method.embedder.encoder.layers
    assert layers._compiled_call_impl is not None
    plain, compiled = (fit(tiny(**small, compile=on), tmp_path / str(on)).reports[0] for on in (False, True))
    losses, expected = (
        [value for name, value in report.items() if name.startswith("train/")] for report in (compiled, plain)
    )
    assert losses == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [({"amx_bf16": True}, True), ({"amx_bf16": False}, False), ({"neon": True}, False)],
)
def test_precision_auto_follows_the_processor(capabilities, expected, tiny, prepared, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert prefers_bfloat16(torch.device("cpu")) is expected
    reduced = {
        precision: prepared.training(tiny(precision=precision), Recorder(tmp_path)).reduced
        for precision in ("auto", "float32", "bfloat16")
    }
    assert reduced == {"auto": expected, "float32": False, "bfloat16": True}


def test_bfloat16_learns_as_float32(tiny, prepared, tmp_path):
    curves = [
        [report["train/loss"] for report in fit(tiny(precision=precision), tmp_path / precision).reports]
        for precision in ("bfloat16", "float32")
    ]
    assert curves[0] == pytest.approx(curves[1], rel=0.05)
    assert curves[0] != curves[1]


def test_phase_start_resets_the_optimizer(tiny, prepared, tmp_path):
    training = prepared.training(tiny(epochs=2, pretrain_epochs=1), Recorder(tmp_path))
    training.train_epoch()
    steps = training.batches.per_epoch
    assert {int(state["step"]) for state in training.optimizer.state.values()} == {steps}
    training.train_epoch()
    assert {int(state["step"]) for state in training.optimizer.state.values()} == {steps}


def test_loss_curve_equals_the_stored_one(tiny, prepared, tmp_path):
    curve = [
        {name: value for name, value in report.items() if name.startswith("train/") and name.count("/") == 1}
        for report in fit(tiny(), tmp_path / "run").reports
    ]
    expected = json.loads(GOLDEN.read_text())
    assert len(curve) == len(expected)
    for report, golden in zip(curve, expected, strict=True):
        assert report == pytest.approx(golden, rel=0.02, abs=1e-4)


def test_report_has_all_metrics_of_the_trainable(tiny, prepared, tmp_path):
    reports = fit(tiny(epochs=1), tmp_path / "run", metrics=("model/milliseconds", *PSEUDO_METRICS)).reports
    assert set(AlignmentTrainable.metrics) | {"epoch", "learning_rate", "train/pseudo"} <= set(reports[0])
    assert all(isinstance(value, int | float) for value in reports[0].values())


def test_report_has_the_parts_of_each_loss(tiny, prepared, tmp_path):
    config = tiny(epochs=2, pretrain_epochs=1, loss={"identity": 0.5})
    images_alone, both = fit(config, tmp_path / "run").reports
    assert "train/pseudo/verification" in images_alone and "train/video/verification" not in images_alone
    for modality in ("train/video", "train/pseudo"):
        total = both[f"{modality}/verification"] + 0.5 * both[f"{modality}/identification"]
        assert both[modality] == pytest.approx(total, rel=1e-4)
    alone = fit(tiny(epochs=1, loss={"identity": 0}), tmp_path / "verification").reports
    assert "train/video/verification" not in alone[0]


def test_sequence_method_learns_to_identify(tiny, prepared, tmp_path):
    config = tiny(
        epochs=6,
        method="sequence",
        encoder={"dropout": 0},
        rnn={"dropout": 0},
        batch={"identities": 8, "passes": 6},
        loss={"verification": "soft_triplet"},
        optimizer={"learning_rate": 5e-3},
    )
    reports = fit(config, tmp_path / "run").reports
    assert reports[-1]["train/loss"] < 0.6 * reports[0]["train/loss"]
    assert max(report["val/mAP"] for report in reports) > 0.6  # by chance 0.34 with 8 identities


def share_of_a_training(rank, workers, configs, folder):
    """Train every config on one worker, then one whose loss is NaN on the last worker only."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=workers)
    for number, config in enumerate(configs):
        recorder = fit(config, folder / f"run{number}", rank=rank, world_size=workers)
        (folder / f"{number}-{rank}.json").write_text(json.dumps(recorder.curve()))
    training = AlignmentTrainable().training(
        configs[0], Recorder(folder / "broken", rank=rank, world_size=workers)
    )
    if rank == workers - 1:
        training.method.embedder.recurrence[0].feedback.register_forward_hook(
            lambda module, inputs, output: output * torch.nan
        )
    before = {name: value.clone() for name, value in training.method.named_parameters()}
    try:
        training.run()
    except FloatingPointError as error:
        equal = all(torch.equal(before[name], value) for name, value in training.method.named_parameters())
        (folder / f"broken-{rank}.json").write_text(json.dumps([str(error), equal]))
    # Destroying a group that either side still uses may end the process.
    del training
    dist.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def two_workers(tiny, prepared, tmp_path_factory):
    folder = tmp_path_factory.mktemp("workers")
    # AdamW would amplify rounding errors of gradients near 0.
    optimizer = {"name": "sgd", "learning_rate": 1e-3}
    still = {"rnn": {"dropout": 0.0}, "alignment": {"noise": 0}, "optimizer": optimizer}
    configs = [tiny(epochs=2, encoder={"name": name, "dropout": 0.0}, **still) for name in ENCODERS]
    first = {"epochs": 2, "pretrain_epochs": 1, "encoder": {"dropout": 0.0}}
    configs += [tiny(method=name, **first, **still) for name in IMAGES_FIRST]
    spawn(share_of_a_training, (2, configs, folder), nprocs=2)
    return configs, folder


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(ENCODERS) + len(IMAGES_FIRST)), ids=[*ENCODERS, *IMAGES_FIRST])
def test_two_workers_equal_one_at_the_same_global_batch(number, two_workers, tmp_path):
    configs, folder = two_workers
    expected = fit(configs[number], tmp_path / "alone").curve()
    first, second = (json.loads((folder / f"{number}-{rank}.json").read_text()) for rank in (0, 1))
    assert first == second
    for report, alone in zip(first, expected, strict=True):
        assert report == pytest.approx(alone, rel=1e-4)


@pytest.mark.slow
def test_loss_not_finite_stops_all_workers_before_the_update(two_workers):
    for rank in (0, 1):
        message, parameters_equal = json.loads((two_workers[1] / f"broken-{rank}.json").read_text())
        assert message.startswith("epoch 1, step 0: loss nan")
        assert parameters_equal


def test_method_without_a_total_loss_is_named(tiny, prepared, tmp_path, monkeypatch):
    training = AlignmentTrainable().training(tiny(), Recorder(tmp_path / "run"))
    monkeypatch.setattr(type(training.method), "forward", lambda self, batch: {"video": torch.zeros(())})
    with pytest.raises(ValueError, match=r"Method: a step has to return 'loss'; got video$"):
        training.run()


def test_gradient_not_finite_stops_training(tiny, prepared, tmp_path):
    training = AlignmentTrainable().training(tiny(), Recorder(tmp_path / "run"))
    next(iter(training.method.parameters())).register_hook(lambda gradient: gradient * torch.inf)
    with pytest.raises(FloatingPointError, match="gradient norm"):
        training.run()


def test_loader_batches_are_equal_for_any_number_of_processes(tiny, prepared, tmp_path):
    batches = prepared.training(tiny(), Recorder(tmp_path)).batches
    one, two = (Loader(batches, torch.device("cpu"), processes) for processes in (0, 2))
    for epoch in (1, 2):
        for ours, theirs in zip(one.epoch(epoch), two.epoch(epoch), strict=True):
            assert torch.equal(ours.sequences, theirs.sequences)
            assert torch.equal(ours.images, theirs.images)
            assert torch.equal(ours.image_identities, theirs.image_identities)


def test_learning_rate_warms_up_and_decays_to_zero(tiny):
    config = tiny(optimizer={"warmup_epochs": 2, "learning_rate": 1.0}).optimizer
    rates = [config.rate(step, 5, 6) for step in range(30)]
    assert rates[:10] == pytest.approx(np.arange(1, 11) / 10)
    assert all(before > after for before, after in pairwise(rates[10:]))
    assert 0 < rates[-1] < 0.02
