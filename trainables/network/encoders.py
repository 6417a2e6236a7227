"""Frame encoders: from a frame to a spatial map, and from the map to a feature."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import Field, SerializeAsAny, field_validator
from torch import Tensor, nn
from torch.nn import functional

from . import components, timm_models
from .preprocess import FixedNormalisation, McLaughlinNormalisation
from .resnet import RESNETS, ResNet
from .section import Section


class EncoderConfig(Section):
    """Config of the frame encoder."""

    name: Annotated[str, components.component_name(lambda name: find_encoder(name))] = Field(
        "mclaughlin2016",
        description="frame encoder: mclaughlin2016, residual, resnet18, resnet50, timm/<model of timm>, or"
        " package.module:Class",
    )
    weights: components.AbsolutePath | None = Field(
        None, description="safetensors file of initial weights, for example from ImageNet"
    )
    features: int = Field(128, ge=8, le=4096, description="length of a frame's feature")
    dropout: float = Field(0.6, ge=0, lt=1, description="dropout before the last layer of the encoder")
    options: Annotated[
        SerializeAsAny[components.Options],
        components.options_of("name", lambda name: find_encoder(name)),
    ] = Field(default_factory=components.Options, validate_default=True, description="options of the encoder")

    @field_validator("weights")
    @classmethod
    def _without_pickle(cls, weights: Path | None) -> Path | None:
        if weights is not None and weights.suffix != ".safetensors":
            raise ValueError(
                f'{str(weights)!r} is not a .safetensors file; convert a PyTorch file once: python -c "'
                "import torch, safetensors.torch as s; s.save_file("
                f"torch.load('{weights}', weights_only=True), '{weights.with_suffix('.safetensors')}')\""
            )
        return weights


class Encoder(nn.Module, ABC):
    """Base class of frame encoders.

    A config names an encoder as ``encoder.name`` and its options as ``encoder.options``. Encoders are built
    from ``(config, channels, height, width)``: the `EncoderConfig`, whose ``options`` are an instance of
    ``Options``; 3 channels (RGB) or 5 (RGB and optical flow); and the size of the frames in pixels.
    `trainables.testing.check_encoder` checks an encoder.

    An exported model contains the module of its encoder as one file, so that module may import installed
    packages and ``trainables.network``, and nothing else of this project.
    """

    Options: ClassVar[type[components.Options]] = components.Options
    """Model of ``encoder.options``."""
    map_channels: int
    """Channels of the spatial map."""
    layers: nn.Module
    """Layers from a normalised frame to a map; a file of weights holds their tensors."""
    heads: tuple[str, ...] = ()
    """Name prefixes of a classifier's tensors, which a file of weights may hold as well."""

    @abstractmethod
    def spatial(self, frames: Tensor) -> Tensor:
        """Map ``[frame, channels, height, width]`` to ``[frame, map_channels, rows, columns]``.

        RGB is in 0..1, of the height and width that the encoder was built for.
        """

    @abstractmethod
    def project(self, maps: Tensor) -> Tensor:
        """Map the result of `spatial` to features ``[frame, features]``."""

    def forward(self, frames: Tensor) -> Tensor:
        """Map frames ``[frame, channels, height, width]`` to features ``[frame, features]``."""
        features: Tensor = self.project(self.spatial(frames))
        return features


class McLaughlinEncoder(Encoder):
    """Encoder of McLaughlin et al., CVPR 2016, layer for layer as in their released code.

    Three blocks of zero-pad 4, 5x5 convolution with 32 filters, tanh and 2x2 max-pool; then dropout and a
    linear layer, which is the input weight W_i of their recurrence. The flattened size depends on height and
    width: it is 2,560 for their 40x56 crops.
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
        """Map frames to maps with an eighth of their rows and columns; see `Encoder`."""
        maps: Tensor = self.layers(self.normalise(frames))
        return maps

    def project(self, maps: Tensor) -> Tensor:
        """Map maps to features; see `Encoder`."""
        features: Tensor = self.linear(self.dropout(maps.flatten(1)))
        return features


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with batch norm and a shortcut (the basic block of He et al., CVPR 2016)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()
        )
        last_norm = nn.BatchNorm2d(outputs)
        nn.init.zeros_(last_norm.weight)  # a block starts as its shortcut: no warm-up needed
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
    """Encoder of any layers, average plus max pooling over space, dropout, and a linear neck with batch norm.

    The batch norm on the feature is that of Luo et al. (CVPR Workshops 2019); the rest is our interpretation.
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
        # Unrelated features start at a distance of 2, which is the default margin of verification.
        nn.init.constant_(self.norm.weight, (2 / config.features) ** 0.5)

    def spatial(self, frames: Tensor) -> Tensor:
        """Map frames to the maps of ``layers``; see `Encoder`."""
        maps: Tensor = self.layers(self.normalise(frames))
        return maps

    def project(self, maps: Tensor) -> Tensor:
        """Pool maps over space and map them to features; see `Encoder`."""
        pooled = maps.mean(dim=(-2, -1)) + maps.amax(dim=(-2, -1))
        features: Tensor = self.norm(self.linear(self.dropout(pooled)))
        return features


class ResidualOptions(components.Options):
    """Options of `ResidualEncoder`."""

    channels: tuple[Annotated[int, Field(ge=4, le=2048)], ...] = Field(
        (24, 48, 96, 128), min_length=4, max_length=4, description="channels of the four blocks"
    )


class ResidualEncoder(NeckEncoder):
    """Small residual network for training from scratch on a CPU; our own design, not from a paper.

    It has a stem of stride 2 and four blocks, the last of stride 1 (Luo et al., CVPR Workshops 2019). Maps
    have an eighth of a frame's rows and columns.
    """

    Options = ResidualOptions

    def __init__(self, config: EncoderConfig, channels: int, height: int, width: int) -> None:
        assert isinstance(config.options, ResidualOptions)
        inputs = config.options.channels[0]
        layers: list[nn.Module] = [
            nn.Conv2d(channels, inputs, 3, 2, padding=1, bias=False),
            nn.BatchNorm2d(inputs),
            nn.ReLU(),
        ]
        for outputs, stride in zip(config.options.channels, (1, 2, 2, 1), strict=True):
            layers.append(ResidualBlock(inputs, outputs, stride))
            inputs = outputs
        super().__init__(config, nn.Sequential(*layers), map_channels=inputs)


class ResNetEncoder(NeckEncoder):
    """ResNet with a last stride of 1; maps have a sixteenth of a frame's rows and columns."""

    heads = ("fc.",)

    def __init__(self, config: EncoderConfig, channels: int, height: int, width: int) -> None:
        layers = ResNet(config.name, channels)
        super().__init__(config, layers, layers.map_channels)


class TimmEncoder(NeckEncoder):
    """Encoder of any timm model that outputs a map or a grid of tokens.

    Raises:
        ValueError: the model outputs neither.
    """

    def __init__(self, config: EncoderConfig, channels: int, height: int, width: int) -> None:
        name = config.name.removeprefix(_TIMM)
        layers, map_channels = timm_models.create(name, channels, height, width)
        super().__init__(config, layers, map_channels, FixedNormalisation(*timm_models.colours(layers)))
        self.heads = timm_models.heads(layers)

    def spatial(self, frames: Tensor) -> Tensor:
        """Map frames to the model's maps, or to a map of its tokens; see `Encoder`."""
        return timm_models.as_map(self.layers, super().spatial(frames))


ENCODERS: Mapping[str, type[Encoder]] = {
    "mclaughlin2016": McLaughlinEncoder,
    "residual": ResidualEncoder,
    **dict.fromkeys(RESNETS, ResNetEncoder),
}
"""Encoders by their ``encoder.name``, besides the models of timm."""
_TIMM = "timm/"


def find_encoder(name: str) -> type[Encoder]:
    """Return the encoder class that ``name`` refers to.

    ``name`` is a key of `ENCODERS`, ``timm/<model>`` or ``package.module:Class``.

    Raises:
        ValueError: there is no such encoder, or timm is not installed.
    """
    if name.startswith(_TIMM):
        timm_models.check_name(name.removeprefix(_TIMM))
        return TimmEncoder
    return components.find("encoder", name, ENCODERS, Encoder, also=f"{_TIMM}<model of timm>")


def build_encoder(config: EncoderConfig, channels: int, height: int, width: int) -> Encoder:
    """Build the encoder with random weights.

    Raises:
        ValueError: a timm model outputs no map for frames of this size.
    """
    return find_encoder(config.name)(config, channels, height, width)


def check_shapes(encoder: Encoder, frames: Tensor, features: int) -> Tensor:
    """Return the features ``[frame, features]`` of frames ``[frame, channels, height, width]``.

    Raises:
        ValueError: `Encoder.spatial` or `Encoder.project` returns another shape.
    """
    count, maps = len(frames), encoder.spatial(frames)
    if maps.ndim != 4 or maps.shape[:2] != (count, encoder.map_channels):
        expected = f"[{count}, {encoder.map_channels}, rows, columns]"
        raise ValueError(f"spatial() returns {list(maps.shape)}; expected {expected}")
    projected = encoder.project(maps)
    if projected.shape != (count, features):
        raise ValueError(
            f"project() returns {list(projected.shape)}; expected {[count, features]}: encoder.features"
        )
    return projected
