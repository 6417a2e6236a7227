"""Models of timm as encoders.

timm needs torchvision, of which no build fits the CPU build of PyTorch that is pinned: a stand-in of the few
functions that are called takes its place, and the last test runs on the real one where there is one.
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
        places = super().forward(frames).flatten(2).transpose(1, 2)
        return torch.cat([torch.full_like(places[:, :1], 99.0), places], dim=1)


@pytest.fixture
def timm(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    kinds = {"maps": Maps, "tokens": Tokens}
    module: Any = ModuleType("timm")
    module.list_models = lambda: list(kinds)

    def create_model(name: str, **given: Any) -> nn.Module:
        size = {"img_size": (32, 16)} if name == "tokens" else {}
        channels = given.pop("in_chans")
        assert given == {"pretrained": False, "num_classes": 0, "global_pool": ""} | size
        return kinds[name](channels)

    published = {"maps": None, "tokens": SimpleNamespace(fixed_input_size=True)}
    module.create_model = create_model
    module.models = SimpleNamespace(get_pretrained_cfg=published.get)
    monkeypatch.setitem(sys.modules, "timm", module)
    found: ModuleType = module
    return found


@pytest.mark.parametrize("name", ["maps", "tokens"])
@pytest.mark.parametrize("channels", [3, 5])
def test_a_model_becomes_an_encoder(timm: ModuleType, name: str, channels: int) -> None:
    encoder = build_encoder(EncoderConfig(name=f"timm/{name}", features=16), channels, 32, 16).eval()
    frames = torch.rand(2, channels, 32, 16)
    maps = encoder.spatial(frames)
    assert maps.shape == (2, 8, 8, 4) and (maps < 99).all()
    normalised = (frames[:, :3] - 0.5) / 0.25
    layers: Any = encoder.layers
    torch.testing.assert_close(maps, layers.stem(torch.cat([normalised, frames[:, 3:]], dim=1)))
    assert encoder(frames).shape == (2, 16)
    assert encoder.heads == ("head.",)


def test_a_misspelt_model_has_a_neighbour(timm: ModuleType) -> None:
    with pytest.raises(ValidationError, match=r"timm has no model 'map'; did you mean 'timm/maps'\?"):
        EncoderConfig(name="timm/map")


def test_frames_that_a_model_cannot_take_are_named_in_one_line(timm: ModuleType) -> None:
    config = EncoderConfig(name="timm/maps")
    with pytest.raises(ValueError, match=r"timm/maps gives no map of frames of 16 x 8 .*: frames are too"):
        build_encoder(config, 3, 16, 8)


def test_what_has_no_rows_is_no_map() -> None:
    with pytest.raises(ValueError, match=r"its output \[2, 5\] has no rows and columns"):
        as_map(nn.Identity(), torch.zeros(2, 5))


def test_without_timm_the_line_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ValidationError, match="models of timm need that package"):
        EncoderConfig(name="timm/resnet18")


@pytest.mark.skipif(importlib.util.find_spec("timm") is None, reason="timm is not installed")
@pytest.mark.parametrize("name", ["resnet18", "vit_tiny_patch16_224"])
def test_a_real_model_becomes_an_encoder(name: str) -> None:
    encoder = build_encoder(EncoderConfig(name=f"timm/{name}", features=16), 3, 64, 32).eval()
    assert encoder(torch.rand(2, 3, 64, 32)).shape == (2, 16)
