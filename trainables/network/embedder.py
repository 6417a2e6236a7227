"""The whole network, from frames to one feature per sequence."""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from .encoders import EncoderConfig, build_encoder
from .pooling import POOLINGS, PoolingName
from .preprocess import resize
from .recurrence import RecurrenceConfig, build_recurrence
from .section import Section


class NetworkConfig(Section):
    """Config of a `SequenceEmbedder`, stored with an exported model.

    All fields determine the network's shape, except ``encoder.weights``: `weights.load_weights` reads that
    file, not the embedder.
    """

    encoder: EncoderConfig = Field(default_factory=EncoderConfig, description="frame encoder")
    rnn: RecurrenceConfig = Field(default_factory=RecurrenceConfig, description="recurrent cell")
    pooling: PoolingName = Field("mean", description="pooling over time")
    height: int = Field(64, ge=16, le=1024, description="height of the encoder's input in pixels")
    width: int = Field(48, ge=16, le=1024, description="width of the encoder's input in pixels")
    flow: Literal["none", "dis"] = Field("none", description="optical flow as two additional channels")

    @property
    def channels(self) -> int:
        """Number of channels: 3, or 5 with optical flow."""
        return 3 if self.flow == "none" else 5


class SequenceEmbedder(nn.Module):
    """CNN on every frame, recurrence over the frames, pooling over time, as in both papers.

    The input is raw RGB in 0..1 of any size. If the config has flow, channels 4 and 5 are optical flow in
    pixels per frame; frames without them count as motionless. Sequences may have length 1.
    """

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.config = config
        self.dimension = config.rnn.hidden_size
        self.encoder = build_encoder(config.encoder, config.channels, config.height, config.width)
        self.recurrence = build_recurrence(config.encoder.features, config.rnn)
        self.pooling = POOLINGS[config.pooling](self.dimension)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # convolutions are faster

    def spatial(self, frames: Tensor) -> Tensor:
        """Map frames ``[frame, channel, height, width]`` to maps ``[frame, channel, rows, columns]``.

        Raises:
            ValueError: the number of channels is neither 3 nor that of the config.
        """
        channels = self.config.channels
        if frames.shape[1] not in (3, channels):
            raise ValueError(
                f"frames have {frames.shape[1]} channels; this network takes 3 (RGB) or {channels}"
            )
        if frames.shape[1] < channels:
            frames = functional.pad(frames, (0, 0, 0, 0, 0, channels - frames.shape[1]))
        return self.encoder.spatial(resize(frames, self.config.height, self.config.width))

    def encode(self, frames: Tensor) -> Tensor:
        """Map frames ``[frame, channel, height, width]`` to features ``[frame, features]``."""
        return self.encoder.project(self.spatial(frames))

    def hold(self, maps: Tensor, length: int) -> Tensor:
        """Repeat maps ``[frame, channel, rows, columns]`` as motionless steps ``[frame, length, features]``.

        Each map is projected once per step, so that dropout differs between steps as it does between frames.
        """
        return self.encoder.project(maps.repeat_interleave(length, dim=0)).view(len(maps), length, -1)

    def aggregate(self, steps: Tensor) -> Tensor:
        """Map frame features ``[batch, time, features]`` to sequence features ``[batch, dimension]``."""
        feature: Tensor = self.pooling(self.recurrence(steps))
        return feature

    def forward(self, frames: Tensor) -> Tensor:
        """Map ``[batch, time, channel, height, width]`` to unnormalised features ``[batch, dimension]``."""
        return self.aggregate(self.encode(frames.flatten(0, 1)).view(*frames.shape[:2], -1))
