"""Frame encoders: frame to spatial map, map to feature. A new encoder is one class, listed below."""

import difflib
from abc import ABC, abstractmethod
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, field_validator
from torch import Tensor, nn
from torch.nn import functional

from . import timm_models
from .preprocess import FixedNormalisation, McLaughlinNormalisation
from .resnet import RESNETS, ResNet


class EncoderConfig(BaseModel):
    """What turns one frame into a feature."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(
        "mclaughlin2016",
        description="frame encoder: mclaughlin2016, residual, resnet18, resnet50, or timm/<model of timm>",
    )
    weights: Path | None = Field(
        None, description="safetensors file that a training starts from, such as one for ImageNet"
    )
    features: int = Field(128, ge=8, le=4096, description="length of a frame's feature")
    dropout: float = Field(0.6, ge=0, lt=1, description="dropout before the layer that makes the feature")

    @field_validator("name")
    @classmethod
    def _known_name(cls, name: str) -> str:
        find_encoder(name)
        return name

    @field_validator("weights")
    @classmethod
    def _without_pickle(cls, weights: Path | None) -> Path | None:
        if weights is not None and weights.suffix != ".safetensors":
            raise ValueError(
                f'{str(weights)!r} is no .safetensors file; convert one of PyTorch once, with: python -c "'
                "import torch, safetensors.torch as s; s.save_file("
                f"torch.load('{weights}', weights_only=True), '{weights.with_suffix('.safetensors')}')\""
            )
        return weights


class Encoder(nn.Module, ABC):
    """What every frame encoder offers, made from ``(config, channels, height, width)``.

    ``channels`` is 3 (RGB) or 5 (RGB and optical flow).
    """

    map_channels: int
    layers: nn.Module
    """From normalised frame to map; what a file of weights fills."""
    heads: tuple[str, ...] = ()
    """How names of a classifier's tensors begin, which such a file may hold as well."""

    @abstractmethod
    def spatial(self, frames: Tensor) -> Tensor:
        """Map ``[frame, channels, height, width]`` to ``[frame, map_channels, rows, columns]``.

        RGB is in 0..1, of the height and width that the encoder was made for."""

    @abstractmethod
    def project(self, maps: Tensor) -> Tensor:
        """Map the result of `spatial` to features ``[frame, features]``."""

    def forward(self, frames: Tensor) -> Tensor:
        """Map frames ``[frame, channels, height, width]`` to features ``[frame, features]``."""
        features: Tensor = self.project(self.spatial(frames))
        return features


class McLaughlinEncoder(Encoder):
    """The encoder of McLaughlin et al., CVPR 2016, layer for layer as in their released code (known).

    Three times zero-pad 4, 5x5 convolution, tanh, 2x2 max-pool, all with 32 filters; dropout; linear. That
    last layer is the input weight W_i of their recurrence. The flattened size follows from height and
    width: 2,560 at their 40x56 crops.
    """

    map_channels = 32

    def __init__(self, config: EncoderConfig, channels: int, height: int, width: int) -> None:
        super().__init__()
        self.normalise = McLaughlinNormalisation()
        layers: list[nn.Module] = []
        for inputs in (channels, 32, 32):
            layers += [nn.Conv2d(inputs, 32, 5, padding=4), nn.Tanh(), nn.MaxPool2d(2)]
            height, width = (height + 4) // 2, (width + 4) // 2
        self.layers = nn.Sequential(*layers)
        self.dropout = nn.Dropout(config.dropout)
        self.linear = nn.Linear(32 * height * width, config.features)

    def spatial(self, frames: Tensor) -> Tensor:
        """Map frames to maps of an eighth of their rows and columns."""
        maps: Tensor = self.layers(self.normalise(frames))
        return maps

    def project(self, maps: Tensor) -> Tensor:
        """Map flattened maps to features."""
        features: Tensor = self.linear(self.dropout(maps.flatten(1)))
        return features


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with batch norm and a shortcut (He et al., CVPR 2016, the basic block)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()
        )
        last_norm = nn.BatchNorm2d(outputs)
        nn.init.zeros_(last_norm.weight)  # every block starts as its shortcut: trains without warm-up
        self.second = nn.Sequential(nn.Conv2d(outputs, outputs, 3, padding=1, bias=False), last_norm)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, maps: Tensor) -> Tensor:
        """Map ``[frame, inputs, rows, columns]`` to ``[frame, outputs, rows / stride, columns / stride]``."""
        return functional.relu(self.shortcut(maps) + self.second(self.first(maps)))


class NeckEncoder(Encoder):
    """Any layers to a map, then average plus max pooling over space, dropout, linear neck with batch norm.

    The batch norm on the feature is that of Luo et al. (CVPR Workshops 2019); the rest is our reading.
    """

    def __init__(
        self, config: EncoderConfig, layers: nn.Module, map_channels: int, normalise: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.normalise = normalise or FixedNormalisation()
        self.layers = layers
        self.map_channels = map_channels
        self.dropout = nn.Dropout(config.dropout)
        self.linear = nn.Linear(map_channels, config.features, bias=False)
        self.norm = nn.BatchNorm1d(config.features)
        # Unrelated features start a distance of 2 apart, where the verification margin can still tell them.
        nn.init.constant_(self.norm.weight, (2 / config.features) ** 0.5)

    def spatial(self, frames: Tensor) -> Tensor:
        """Map frames to the maps of ``layers``."""
        maps: Tensor = self.layers(self.normalise(frames))
        return maps

    def project(self, maps: Tensor) -> Tensor:
        """Map maps pooled over space to features."""
        pooled = maps.mean(dim=(-2, -1)) + maps.amax(dim=(-2, -1))
        features: Tensor = self.norm(self.linear(self.dropout(pooled)))
        return features


class ResidualEncoder(NeckEncoder):
    """A small residual network trained from scratch, for a CPU; a reading of ours, from none of the papers.

    Stem of stride 2, four blocks, the last of stride 1 (Luo et al., CVPR Workshops 2019): maps of an eighth
    of a frame's rows and columns.
    """

    def __init__(self, config: EncoderConfig, channels: int, height: int, width: int) -> None:
        stem, widths = 24, ((24, 1), (48, 2), (96, 2), (128, 1))
        layers: list[nn.Module] = [
            nn.Conv2d(channels, stem, 3, 2, padding=1, bias=False),
            nn.BatchNorm2d(stem),
            nn.ReLU(),
        ]
        for outputs, stride in widths:
            layers.append(ResidualBlock(stem, outputs, stride))
            stem = outputs
        super().__init__(config, nn.Sequential(*layers), map_channels=stem)


class ResNetEncoder(NeckEncoder):
    """ResNet of last stride 1: maps of a sixteenth of a frame's rows and columns."""

    heads = ("fc.",)

    def __init__(self, config: EncoderConfig, channels: int, height: int, width: int) -> None:
        layers = ResNet(config.name, channels)
        super().__init__(config, layers, layers.map_channels)


class TimmEncoder(NeckEncoder):
    """Any model of timm that gives a map, or tokens in a grid; ValueError where one does not."""

    def __init__(self, config: EncoderConfig, channels: int, height: int, width: int) -> None:
        name = config.name.removeprefix(_TIMM)
        layers, map_channels = timm_models.create(name, channels, height, width)
        super().__init__(config, layers, map_channels, FixedNormalisation(*timm_models.colours(layers)))
        self.heads = timm_models.heads(layers)

    def spatial(self, frames: Tensor) -> Tensor:
        """Map frames to the model's maps, or to its tokens as a map."""
        return timm_models.as_map(self.layers, super().spatial(frames))


ENCODERS: dict[str, type[Encoder]] = {
    "mclaughlin2016": McLaughlinEncoder,
    "residual": ResidualEncoder,
    **dict.fromkeys(RESNETS, ResNetEncoder),
}
"""Every encoder that ``encoder.name`` may say, beside models of timm."""
_TIMM = "timm/"


def find_encoder(name: str) -> type[Encoder]:
    """The class of an encoder in `ENCODERS`, or named ``timm/<model>``; ValueError says what is wrong."""
    if name in ENCODERS:
        return ENCODERS[name]
    if name.startswith(_TIMM):
        timm_models.check_name(name.removeprefix(_TIMM))
        return TimmEncoder
    nearest = difflib.get_close_matches(name, ENCODERS, n=1)
    hint = f"did you mean {nearest[0]!r}? " if nearest else ""
    raise ValueError(f"no encoder {name!r}; {hint}expected {', '.join(ENCODERS)}, or timm/<model of timm>")


def build_encoder(config: EncoderConfig, channels: int, height: int, width: int) -> Encoder:
    """The encoder with random weights; ValueError when a model of timm gives no map of this size."""
    return find_encoder(config.name)(config, channels, height, width)
