"""The optimizers and learning-rate schedules."""

import pytest
import torch

from tests.support.recorder import Recorder
from trainables.training.optimizer import FACTOR, OptimizerConfig


@pytest.mark.parametrize(
    ("schedule", "rates"),
    [
        ({"schedule": "constant"}, [1.0] * 10),
        ({"schedule": "step"}, [1.0] * 5 + [0.1] * 5),
        ({"schedule": "step", "step_at": [0.4, 0.8], "step_factor": 0.5}, [1.0] * 4 + [0.5] * 4 + [0.25] * 2),
        ({"schedule": "step", "warmup_epochs": 1}, [0.5, 1.0, 1.0, 1.0, 1.0] + [0.1] * 5),
    ],
)
def test_schedule_gives_the_rate_of_each_step(schedule, rates):
    config = OptimizerConfig(learning_rate=1.0, **schedule)
    assert [config.rate(step, 2, 5) for step in range(10)] == pytest.approx(rates)


def test_cosine_falls_from_the_peak_to_0():
    rates = [OptimizerConfig(learning_rate=1.0).rate(step, 2, 5) for step in range(11)]
    assert (rates[0], rates[5], rates[10]) == pytest.approx((1.0, 0.5, 0.0))


@pytest.mark.parametrize("name", ["adamw", "adam", "sgd"])
def test_encoder_factor_scales_the_rate_of_the_encoder(name, tiny, prepared, tmp_path):
    config = tiny(epochs=1, optimizer={"name": name, "encoder_factor": 0.1, "learning_rate": 0.01})
    training = prepared.training(config, Recorder(tmp_path / "run"))
    training.train_step(next(iter(training.loader.epoch(1))))
    encoder = set(training.method.embedder.encoder.parameters())
    rates = {
        parameter: group["lr"] for group in training.optimizer.param_groups for parameter in group["params"]
    }
    assert rates.keys() == set(training.method.parameters())
    for parameter, rate in rates.items():
        assert rate == pytest.approx(0.001 if parameter in encoder else 0.01)


def test_encoder_factor_0_freezes_the_encoder(tiny, prepared, tmp_path):
    config = tiny(epochs=1, optimizer={"name": "sgd", "encoder_factor": 0})
    training = prepared.training(config, Recorder(tmp_path / "run"))
    before = {name: value.clone() for name, value in training.method.named_parameters()}
    training.train_epoch()
    changed = {
        name for name, value in training.method.named_parameters() if not torch.equal(value, before[name])
    }
    assert changed and not any(name.startswith("embedder.encoder.") for name in changed)


def test_checkpoint_without_factors_is_restored(tiny, prepared, tmp_path):
    """Checkpoints of 0.1 have groups without the key."""
    training = prepared.training(tiny(epochs=1), Recorder(tmp_path / "run"))
    for group in training.optimizer.param_groups:
        del group[FACTOR]
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    training.save(folder)
    later = prepared.training(tiny(epochs=1), Recorder(tmp_path / "run"))
    later.restore(folder)
    later.train_epoch()
    assert later.epoch == 1
