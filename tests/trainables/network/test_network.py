"""Tests of the embedder: shapes, parameter counts, recurrence, preprocessing, independence."""

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from pydantic import ValidationError
from torch.nn import functional

from trainables.network import embedder as embedder_module
from trainables.network.embedder import NetworkConfig, SequenceEmbedder
from trainables.network.encoders import ENCODERS
from trainables.network.pooling import POOLINGS, AttentionPooling, MeanPooling
from trainables.network.preprocess import FixedNormalisation, McLaughlinNormalisation, resize
from trainables.network.recurrence import McLaughlinLayer, RecurrenceConfig, build_recurrence

CELLS = get_args(RecurrenceConfig.model_fields["cell"].annotation)


def test_pooling_names_of_the_config_are_all_registered() -> None:
    assert set(get_args(NetworkConfig.model_fields["pooling"].annotation)) == set(POOLINGS)


@pytest.mark.parametrize(
    "wrong, expected",
    [
        ({"encoder": {"name": "vgg"}}, "expected mclaughlin2016, residual, resnet18, resnet50, timm/"),
        ({"encoder": {"name": "resnett18"}}, "no encoder 'resnett18'; did you mean 'resnet18'?"),
        ({"rnn": {"cell": "elman"}}, "'rnn', 'gru' or 'lstm'"),
        ({"rnn": {"direction": "backward"}}, "'forward' or 'both'"),
        ({"pooling": "median"}, "'mean', 'max' or 'attention'"),
    ],
)
def test_config_unknown_name_lists_the_choices(wrong: dict[str, object], expected: str) -> None:
    with pytest.raises(ValidationError, match=re.escape(expected)):
        NetworkConfig.model_validate(wrong)


def test_mclaughlin_has_the_published_parameter_count() -> None:
    network = SequenceEmbedder(NetworkConfig(height=56, width=40, flow="dis"))
    counts = {name: parameter.numel() for name, parameter in network.named_parameters()}
    start = counts.pop("recurrence.0.start")
    assert start == 128
    assert sum(counts.values()) == 399_616
    assert network.encoder.linear.in_features == 2560


@pytest.mark.parametrize("channels", [(24, 48, 96, 128), (8, 16, 24, 40)])
def test_residual_encoder_has_the_channels_of_its_options(channels: tuple[int, ...]) -> None:
    config = {"encoder": {"name": "residual", "options": {"channels": channels}}, "height": 64, "width": 48}
    encoder = SequenceEmbedder(NetworkConfig.model_validate(config)).encoder
    assert encoder.spatial(torch.zeros(2, 3, 64, 48)).shape == (2, channels[-1], 8, 6)
    blocks = list(encoder.layers)[3:]
    assert [block.second[0].out_channels for block in blocks] == list(channels)


def test_residual_encoder_needs_the_channels_of_four_blocks() -> None:
    config = {"encoder": {"name": "residual", "options": {"channels": [24, 48]}}}
    with pytest.raises(ValidationError, match="at least 4 items"):
        NetworkConfig.model_validate(config)


@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("direction", ["forward", "both"])
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("pooling", sorted(POOLINGS))
def test_recurrence_has_expected_shapes_and_gradients(
    cell: str, direction: str, layers: int, pooling: str
) -> None:
    check_shapes_and_gradients(
        "mclaughlin2016", {"cell": cell, "direction": direction, "layers": layers}, pooling
    )


@pytest.mark.parametrize("name", sorted(ENCODERS))
def test_encoder_has_expected_shapes_and_gradients(name: str) -> None:
    check_shapes_and_gradients(name, {}, "mean")


def check_shapes_and_gradients(name: str, rnn: dict[str, Any], pooling: str) -> None:
    config = NetworkConfig.model_validate(
        {
            "encoder": {"name": name, "features": 24},
            "rnn": {"hidden_size": 16, **rnn},
            "pooling": pooling,
            "height": 32,
            "width": 24,
        }
    )
    network = SequenceEmbedder(config)
    features = network(torch.rand(2, 3, 3, 40, 20))
    assert features.shape == (2, network.dimension) == (2, 16)
    features.square().sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())
    assert network.eval()(torch.rand(1, 1, 3, 32, 24)).shape == (1, 16)


@pytest.mark.parametrize("name", sorted(ENCODERS))
def test_embedder_in_evaluation_keeps_sequences_independent(name: str) -> None:
    network = SequenceEmbedder(NetworkConfig.model_validate({"encoder": {"name": name}})).eval()
    frames = torch.rand(3, 2, 3, 64, 48)
    torch.testing.assert_close(network(frames)[1:2], network(frames[1:2]), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("features", [6, 4])
def test_mclaughlin_layer_equals_the_published_recurrence(features: int) -> None:
    layer = McLaughlinLayer(features, 4, dropout=0.5, project=features != 4).double().eval()
    steps = torch.randn(2, 5, features, dtype=torch.float64)
    outputs = layer(steps)
    for item in range(2):
        inputs = [layer.input(step) for step in steps[item]]
        output = inputs[0] + layer.start
        torch.testing.assert_close(outputs[item, 0], output)
        for time in range(1, 5):
            output = inputs[time] + layer.feedback.weight @ torch.tanh(output) + layer.feedback.bias
            torch.testing.assert_close(outputs[item, time], output)


def test_mclaughlin_layer_applies_dropout_to_feedback_only() -> None:
    layer = McLaughlinLayer(4, 4, dropout=0.999999, project=False)
    steps = torch.randn(2, 3, 4)
    torch.testing.assert_close(layer(steps)[:, 1:], steps[:, 1:] + layer.feedback.bias)


@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_gated_recurrence_adds_to_the_frame_feature(cell: str) -> None:
    recurrence = build_recurrence(8, RecurrenceConfig.model_validate({"cell": cell, "hidden_size": 8}))
    steps = (100 * torch.randn(2, 3, 8)).round()  # integers, so that rounding the sum cannot exceed 1
    assert (recurrence(steps) - steps).abs().max() <= 1


@pytest.mark.parametrize("features", [8, 12])
@pytest.mark.parametrize("cell", CELLS)
def test_both_directions_equal_the_mean_of_two_recurrences(cell: str, features: int) -> None:
    config = RecurrenceConfig.model_validate({"cell": cell, "hidden_size": 8, "layers": 2})
    both = build_recurrence(features, config.model_copy(update={"direction": "both"})).eval()
    forwards, backwards = (build_recurrence(features, config).eval() for _ in range(2))
    state = both.state_dict()
    assert len(state) == 2 * len(forwards.state_dict())
    for name, one in (("forwards.", forwards), ("backwards.", backwards)):
        parts = {key.removeprefix(name): value for key, value in state.items() if key.startswith(name)}
        one.load_state_dict(parts)
    steps = torch.randn(3, 5, features)
    output = both(steps)
    assert output.shape == (3, 5, 8)
    for time in range(5):  # the backward recurrence reads this step and all later ones
        backward = backwards(steps[:, time:].flip(1))[:, -1]
        torch.testing.assert_close(output[:, time], (forwards(steps[:, : time + 1])[:, -1] + backward) / 2)


def test_attention_starts_as_mean_and_learns_weights() -> None:
    pooling, steps, best = AttentionPooling(4), torch.randn(3, 6, 4), torch.tensor([0, 3, 5])
    steps[..., 2] = torch.nn.functional.one_hot(best, 6)
    torch.testing.assert_close(pooling(steps), MeanPooling(4)(steps))
    torch.testing.assert_close(pooling(steps[:, :1]), steps[:, 0])
    assert sum(parameter.numel() for parameter in pooling.parameters()) == 4
    optimizer = torch.optim.SGD(pooling.parameters(), lr=5.0)
    for _ in range(300):
        optimizer.zero_grad()
        (-pooling(steps)[:, 2].mean()).backward()
        optimizer.step()
    torch.testing.assert_close(pooling(steps), steps[torch.arange(3), best], atol=0.02, rtol=0)


def test_mclaughlin_normalisation_divides_by_root_of_deviation() -> None:
    frames = torch.rand(2, 5, 8, 6)
    output = McLaughlinNormalisation()(frames)
    luma = 0.299 * frames[1, 0] + 0.587 * frames[1, 1] + 0.114 * frames[1, 2]
    torch.testing.assert_close(output[1, 0], (luma - luma.mean()) / luma.std().sqrt(), atol=1e-5, rtol=1e-4)
    flow = frames[0, 4]
    torch.testing.assert_close(output[0, 4], (flow - flow.mean()) / flow.std().sqrt(), atol=1e-5, rtol=1e-4)
    still = McLaughlinNormalisation()(torch.full((1, 3, 8, 6), 0.5))
    torch.testing.assert_close(still, torch.zeros_like(still), atol=1e-3, rtol=0)


def test_fixed_normalisation_leaves_flow_unchanged() -> None:
    frames = torch.rand(2, 5, 8, 6)
    output = FixedNormalisation()(frames)
    torch.testing.assert_close(output[:, 3:], frames[:, 3:])
    torch.testing.assert_close(output[:, 0], (frames[:, 0] - 0.485) / 0.229)


def test_resize_with_flow_scales_it_with_the_frame() -> None:
    frames = torch.ones(1, 5, 32, 12)
    output = resize(frames, 64, 48)
    assert output.shape == (1, 5, 64, 48)
    torch.testing.assert_close(output.mean(dim=(0, 2, 3)), torch.tensor([1.0, 1.0, 1.0, 4.0, 2.0]))
    assert resize(frames, 32, 12) is frames


def test_resize_to_smaller_size_does_not_alias() -> None:
    stripes = torch.arange(64).remainder(2).float().expand(1, 3, 64, 64)
    assert resize(stripes, 16, 16).std() < 0.1 < functional.interpolate(stripes, (16, 13)).std()


def test_embedder_frames_without_flow_are_motionless() -> None:
    network = SequenceEmbedder(NetworkConfig(flow="dis")).eval()
    frames = torch.rand(1, 2, 3, 64, 48)
    still = torch.cat([frames, torch.zeros(1, 2, 2, 64, 48)], dim=2)
    torch.testing.assert_close(network(frames), network(still))
    with pytest.raises(ValueError, match=r"4 channels; this network takes 3 \(RGB\) or 5"):
        network(torch.rand(1, 2, 4, 64, 48))


def test_network_folder_under_another_name_imports_alone(tmp_path: Path) -> None:
    shutil.copytree(Path(embedder_module.__file__).parent, tmp_path / "carried")
    program = (
        "import sys, pkgutil, importlib; sys.path.insert(0, sys.argv[1]); import carried\n"
        "for module in pkgutil.iter_modules(carried.__path__):\n"
        "    importlib.import_module('carried.' + module.name)\n"
        "assert not [name for name in sys.modules if name.split('.')[0] in ('trainables', 'orchestrator')]\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path)]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
