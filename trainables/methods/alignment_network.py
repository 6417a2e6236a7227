"""Interface and config of the networks that generate a pseudo sequence from a still image."""

import math
from abc import ABC, abstractmethod
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator
from torch import Tensor, nn

from trainables.methods.distribution import DistributionConfig
from trainables.network.embedder import SequenceEmbedder


class WeightsConfig(BaseModel):
    """Weights of loss terms relative to the loss on real sequences; a term of weight 0 is not computed."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    pseudo: float = Field(1.0, ge=0, le=100, description="identity losses of pseudo sequences")
    match: float = Field(
        1.0,
        ge=0,
        le=100,
        description="identity losses of real sequences together with pseudo sequences of their own frames",
    )
    motion: float = Field(
        0.1, ge=0, le=100, description="difference between generated and real change from frame to frame"
    )
    content: float = Field(
        0.1,
        ge=0,
        le=100,
        description="difference between generated steps and the feature of the real sequence",
    )
    distribution: float = Field(
        0.1, ge=0, le=100, description="distance between features of pseudo and real sequences"
    )


class CrossModalityConfig(BaseModel):
    """Config of the generation of pseudo sequences and of its training."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    level: Literal["feature", "pixel"] = Field(
        "feature", description="generate features behind the CNN (Figure 1), or frames (pixels) before it"
    )
    length: int = Field(3, ge=3, le=63, description="steps of a pseudo sequence, odd, at most batch.frames")
    mgm: bool = Field(True, description="generate motion; false for an ablation")
    cgm: bool = Field(True, description="generate content; false for an ablation")
    noise: int = Field(16, ge=0, le=256, description="random numbers per sampled motion; 0: deterministic")
    still_flow: Literal["zero", "mean", "borrowed"] = Field(
        "zero",
        description="optical flow of a still image, for networks that take flow: none, the mean of the"
        " training sequences, or that of a random one of them",
    )
    schedule: Literal["constant", "fade"] = Field(
        "constant", description="weight of pseudo sequences during training; fade: decreases to 0"
    )
    distribution: DistributionConfig = Field(
        default_factory=DistributionConfig,
        description="distance between the features of pseudo and real sequences",
    )
    weights: WeightsConfig = Field(default_factory=WeightsConfig, description="weights of the terms")

    @field_validator("length")
    @classmethod
    def _odd(cls, length: int) -> int:
        if length % 2 == 0:
            raise ValueError(
                f"must be odd, with the image as the middle step: {length - 1} or {length + 1}, not {length}"
            )
        return length

    def pseudo_weight(self, progress: float) -> float:
        """Return the weight of the pseudo sequences' loss at ``progress`` (0..1) of the training."""
        factor = (1 + math.cos(math.pi * progress)) / 2 if self.schedule == "fade" else 1.0
        return self.weights.pseudo * factor


class CrossModalityAlignment(nn.Module, ABC):
    """Base class of the networks that contain MGM and CGM and generate pseudo sequences.

    From the paper (Figure 1): MGM and CGM are on both sides of the CNN. Our interpretation: how they work.
    """

    length: int

    @abstractmethod
    def forward(self, embedder: SequenceEmbedder, images: Tensor) -> Tensor:
        """Map stills to pseudo sequences ``[image, length, features]``.

        Stills are ``[image, 3 or 5, height, width]``. The middle step is the image's own feature.
        """

    def of_stills(self, embedder: SequenceEmbedder, images: Tensor, maps: Tensor) -> Tensor:
        """Return the same as `forward`; subclasses may reuse the images' spatial ``maps``."""
        steps: Tensor = self(embedder, images)
        return steps

    def generate(self, images: Tensor) -> tuple[Tensor, Tensor] | None:
        """Map stills ``[image, 3, height, width]`` to frames and their optical flow, if these are generated.

        Frames are ``[image, length, 3, height, width]`` in 0..1, their flow is
        ``[image, length, 2, height, width]`` in pixels per frame, (right, down).
        """
        return None

    @abstractmethod
    def supervise(self, frames: Tensor, maps: Tensor, stills: Tensor, features: Tensor) -> dict[str, Tensor]:
        """Generate the neighbours of frames taken as still images, and compare them with the real neighbours.

        Args:
            frames: real sequences, ``[sequence, time, 3 or 5, height, width]``.
            maps: spatial maps of each frame as a still image (without optical flow),
                ``[sequence, time, channel, rows, columns]``, without gradient.
            stills: features computed from ``maps``, ``[sequence, time, features]``.
            features: features of the real frames, ``[sequence, time, features]``, without gradient.

        Returns:
            Scalars ``motion`` and ``content`` of the global batch, without those that do not apply. Each is
            relative to a motionless sequence, which scores 1.

        Raises:
            ValueError: sequences are shorter than ``length``.
        """
