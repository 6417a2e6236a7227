"""Frame encoders: frame to spatial map, map to feature. A new encoder is one class, listed below."""

from abc import ABC, abstractmethod
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn import functional

from .preprocess import FixedNormalisation, McLaughlinNormalisation


class EncoderConfig(BaseModel):
    """What turns one frame into a feature."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Literal["mclaughlin2016", "residual"] = Field("mclaughlin2016", description="which frame encoder")
    features: int = Field(128, ge=8, le=4096, description="length of a frame's feature")
    dropout: float = Field(0.6, ge=0, lt=1, description="dropout before the layer that makes the feature")


class Encoder(nn.Module, ABC):
    """What every frame encoder offers; ``channels`` is 3 (RGB) or 5 (RGB and optical flow)."""

    map_channels: int

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


class ResidualEncoder(Encoder):
    """A small residual network trained from scratch, for a CPU; a reading of ours, from none of the papers.

    Stem of stride 2, four blocks, the last of stride 1 (Luo et al., CVPR Workshops 2019), average plus max
    pooling over space, linear neck with batch norm.
    """

    map_channels = 128

    def __init__(self, config: EncoderConfig, channels: int, height: int, width: int) -> None:
        super().__init__()
        self.normalise = FixedNormalisation()
        stem, widths = 24, ((24, 1), (48, 2), (96, 2), (self.map_channels, 1))
        layers: list[nn.Module] = [
            nn.Conv2d(channels, stem, 3, 2, padding=1, bias=False),
            nn.BatchNorm2d(stem),
            nn.ReLU(),
        ]
        for outputs, stride in widths:
            layers.append(ResidualBlock(stem, outputs, stride))
            stem = outputs
        self.layers = nn.Sequential(*layers)
        self.dropout = nn.Dropout(config.dropout)
        self.linear = nn.Linear(self.map_channels, config.features, bias=False)
        self.norm = nn.BatchNorm1d(config.features)
        # Unrelated features start a distance of 2 apart, where the verification margin can still tell them.
        nn.init.constant_(self.norm.weight, (2 / config.features) ** 0.5)

    def spatial(self, frames: Tensor) -> Tensor:
        """Map frames to maps of an eighth of their rows and columns."""
        maps: Tensor = self.layers(self.normalise(frames))
        return maps

    def project(self, maps: Tensor) -> Tensor:
        """Map maps pooled over space to features."""
        pooled = maps.mean(dim=(-2, -1)) + maps.amax(dim=(-2, -1))
        features: Tensor = self.norm(self.linear(self.dropout(pooled)))
        return features


ENCODERS: dict[str, type[McLaughlinEncoder] | type[ResidualEncoder]] = {
    "mclaughlin2016": McLaughlinEncoder,
    "residual": ResidualEncoder,
}
"""Every encoder that ``encoder.name`` may say; made from ``(config, channels, height, width)``."""
