"""Tests of initial weights: suitable files, error messages, and that nothing is unpickled."""

from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import save_file

from trainables.network.encoders import Encoder, EncoderConfig, build_encoder
from trainables.network.weights import check_weights, load_weights


def encoder(channels: int = 3, seed: int = 0) -> Encoder:
    torch.manual_seed(seed)
    return build_encoder(EncoderConfig(name="resnet18", features=16), channels, 64, 32)


def tensors(source: Encoder) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in source.layers.state_dict().items()}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A file of weights with torchvision's names, including a classifier."""
    path = tmp_path / "resnet18.safetensors"
    save_file(tensors(encoder(seed=1)) | {"fc.weight": torch.ones(5, 512), "fc.bias": torch.ones(5)}, path)
    return path


def test_load_weights_fills_layers_and_ignores_classifier(file: Path) -> None:
    target = encoder()
    neck = target.get_submodule("linear").state_dict()["weight"].clone()
    load_weights(target, file)
    torch.testing.assert_close(tensors(target), tensors(encoder(seed=1)))
    assert torch.equal(target.get_submodule("linear").state_dict()["weight"], neck)


def test_load_weights_of_tensors_named_as_in_an_exported_model_reads_all(tmp_path: Path) -> None:
    target, path = encoder(), tmp_path / "own.safetensors"
    inner = torch.nn.ModuleDict({"layers": torch.nn.Linear(2, 2)})
    target.layers = torch.nn.ModuleDict({"encoder": inner, "last": torch.nn.Linear(2, 1)})
    weights = {name: torch.full_like(value, 7) for name, value in tensors(target).items()}
    assert "encoder.layers.weight" in weights
    save_file(weights, path)
    load_weights(target, path)
    torch.testing.assert_close(tensors(target), weights)


def test_load_weights_of_rgb_leaves_flow_at_zero(file: Path) -> None:
    target = encoder(channels=5)
    load_weights(target, file)
    stem, expected = tensors(target)["conv1.weight"], tensors(encoder(seed=1))["conv1.weight"]
    assert torch.equal(stem[:, :3], expected) and not stem[:, 3:].any()


def test_check_weights_without_batch_count_passes(tmp_path: Path) -> None:
    path = tmp_path / "old.safetensors"
    weights = tensors(encoder())
    save_file({name: value for name, value in weights.items() if "num_batches" not in name}, path)
    check_weights(encoder(), path)


def test_load_weights_mismatch_names_every_tensor(tmp_path: Path) -> None:
    weights = tensors(encoder())
    del weights["bn1.weight"]
    weights["layer1.0.conv1.weight"] = torch.zeros(64, 64, 5, 5)
    weights["head.weight"] = torch.zeros(2)
    path = tmp_path / "wrong.safetensors"
    save_file(weights, path)
    with pytest.raises(ValueError, match="does not hold the tensors of the encoder") as caught:
        load_weights(encoder(), path)
    message = str(caught.value)
    assert "lacks bn1.weight [64]" in message
    assert "has layer1.0.conv1.weight [64, 64, 5, 5] instead of [64, 64, 3, 3]" in message
    assert "has the unexpected head.weight [2]" in message
    assert "\n" not in message


def test_check_weights_missing_file_suggests_the_nearest(file: Path) -> None:
    with pytest.raises(ValueError, match=r"no such file; did you mean 'resnet18.safetensors'\?"):
        check_weights(encoder(), file.with_name("resnet81.safetensors"))


def test_check_weights_of_other_format_raises(tmp_path: Path) -> None:
    path = tmp_path / "text.safetensors"
    path.write_text("no tensors here")
    with pytest.raises(ValueError, match="is not a safetensors file"):
        check_weights(encoder(), path)


def test_config_weights_as_pickle_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match=r"is not a \.safetensors file; convert a PyTorch file once"):
        EncoderConfig(name="resnet18", weights=tmp_path / "resnet18.pth")
