"""Tests of timm models as encoders.

timm needs torchvision, which has no build for the pinned CPU build of PyTorch. A fake module with the few
functions in use replaces it; the last test uses the real timm if it is installed.
"""

import importlib.util
import sys
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from trainables.network.encoders import EncoderConfig, build_encoder
from trainables.network.timm_models import as_map


class Maps(nn.Module):
    """A convolutional model."""

    pretrained_cfg: ClassVar = {"mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25), "classifier": "head.fc"}

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(channels, 8, 4, 4)

    def forward(self, frames: Tensor) -> Tensor:
        if frames.shape[-1] < 16:
            raise RuntimeError("frames\nare too small")
        maps: Tensor = self.stem(frames)
        return maps


class Tokens(Maps):
    """A transformer with a class token."""

    patch_embed = SimpleNamespace(grid_size=(8, 4))
    num_prefix_tokens = 1

    def forward(self, frames: Tensor) -> Tensor:
        tokens = super().forward(frames).flatten(2).transpose(1, 2)
        return torch.cat([torch.full_like(tokens[:, :1], 99.0), tokens], dim=1)


@pytest.fixture
def timm(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    kinds = {"maps": Maps, "tokens": Tokens}
    module: Any = ModuleType("timm")
    module.list_models = lambda: list(kinds)

    def create_model(name: str, **options: Any) -> nn.Module:
        size = {"img_size": (32, 16)} if name == "tokens" else {}
        channels = options.pop("in_chans")
        assert options == {"pretrained": False, "num_classes": 0, "global_pool": ""} | size
        return kinds[name](channels)

    published = {"maps": None, "tokens": SimpleNamespace(fixed_input_size=True)}
    module.create_model = create_model
    module.models = SimpleNamespace(get_pretrained_cfg=published.get)
    monkeypatch.setitem(sys.modules, "timm", module)
    fake: ModuleType = module
    return fake


@pytest.mark.parametrize("name", ["maps", "tokens"])
@pytest.mark.parametrize("channels", [3, 5])
def test_timm_model_becomes_an_encoder(timm: ModuleType, name: str, channels: int) -> None:
    encoder = build_encoder(EncoderConfig(name=f"timm/{name}", features=16), channels, 32, 16).eval()
    frames = torch.rand(2, channels, 32, 16)
    maps = encoder.spatial(frames)
    assert maps.shape == (2, 8, 8, 4) and (maps < 99).all()
    normalised = (frames[:, :3] - 0.5) / 0.25
    layers: Any = encoder.layers
    torch.testing.assert_close(maps, layers.stem(torch.cat([normalised, frames[:, 3:]], dim=1)))
    assert encoder(frames).shape == (2, 16)
    assert encoder.heads == ("head.",)


def test_timm_name_misspelt_suggests_the_nearest(timm: ModuleType) -> None:
    with pytest.raises(ValidationError, match=r"timm has no model 'map'; did you mean 'timm/maps'\?"):
        EncoderConfig(name="timm/map")


def test_timm_model_unsuitable_size_gives_one_line_error(timm: ModuleType) -> None:
    config = EncoderConfig(name="timm/maps")
    with pytest.raises(ValueError, match=r"timm/maps outputs no map for frames of 16 x 8 .*: frames are too"):
        build_encoder(config, 3, 16, 8)


def test_as_map_without_rows_raises() -> None:
    with pytest.raises(ValueError, match=r"its output \[2, 5\] has no rows and columns"):
        as_map(nn.Identity(), torch.zeros(2, 5))


def test_timm_missing_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ValidationError, match="models of timm need the package timm; run: pip install timm"):
        EncoderConfig(name="timm/resnet18")


@pytest.mark.skipif(importlib.util.find_spec("timm") is None, reason="timm is not installed")
@pytest.mark.parametrize("name", ["resnet18", "vit_tiny_patch16_224"])
def test_timm_installed_model_becomes_an_encoder(name: str) -> None:
    encoder = build_encoder(EncoderConfig(name=f"timm/{name}", features=16), 3, 64, 32).eval()
    assert encoder(torch.rand(2, 3, 64, 32)).shape == (2, 16)
