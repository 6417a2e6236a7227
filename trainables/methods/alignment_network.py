"""From a still image to a pseudo sequence: what every way of doing it offers, and its config."""

import math
from abc import ABC, abstractmethod
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator
from torch import Tensor, nn

from trainables.methods.distribution import DistributionConfig
from trainables.network.embedder import SequenceEmbedder


class WeightsConfig(BaseModel):
    """Weights beside the loss on real sequences; a term of weight 0 is not computed."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    pseudo: float = Field(1.0, ge=0, le=100, description="identity losses of pseudo sequences")
    match: float = Field(
        1.0,
        ge=0,
        le=100,
        description="identity losses of real sequences among the pseudo sequences of their own frames",
    )
    motion: float = Field(0.1, ge=0, le=100, description="generated against real change from frame to frame")
    content: float = Field(
        0.1, ge=0, le=100, description="generated steps against the real sequence's feature"
    )
    distribution: float = Field(0.1, ge=0, le=100, description="pseudo sequence features against real ones")


class CrossModalityConfig(BaseModel):
    """How a still image becomes a pseudo sequence, and how that is learnt."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    level: Literal["feature", "pixel"] = Field(
        "feature", description="what is generated: steps behind the CNN (Figure 1), or frames before it"
    )
    length: int = Field(3, ge=3, le=63, description="steps of a pseudo sequence, odd, at most batch.frames")
    mgm: bool = Field(True, description="generate motion; off: an ablation")
    cgm: bool = Field(True, description="generate content; off: an ablation")
    noise: int = Field(16, ge=0, le=256, description="random numbers that a motion is drawn from; 0: none")
    schedule: Literal["constant", "fade"] = Field(
        "constant", description="weight of pseudo sequences over the training; fade: images early"
    )
    distribution: DistributionConfig = Field(
        default_factory=DistributionConfig,
        description="comparison of pseudo sequence features with real ones",
    )
    weights: WeightsConfig = Field(default_factory=WeightsConfig, description="weights of the terms")

    @field_validator("length")
    @classmethod
    def _odd(cls, length: int) -> int:
        if length % 2 == 0:
            raise ValueError(
                f"must be odd, the image is the middle step: {length - 1} or {length + 1}, not {length}"
            )
        return length

    def pseudo_weight(self, progress: float) -> float:
        """Weight of the pseudo sequences' loss when ``progress`` (0..1) of the training is done."""
        faded = (1 + math.cos(math.pi * progress)) / 2 if self.schedule == "fade" else 1.0
        return self.weights.pseudo * faded


class CrossModalityAlignment(nn.Module, ABC):
    """MGM and CGM (known: both stand around the CNN in Figure 1; how they work is our reading)."""

    length: int

    @abstractmethod
    def forward(self, embedder: SequenceEmbedder, images: Tensor) -> Tensor:
        """Map stills ``[image, 3, height, width]`` to pseudo sequences ``[image, length, features]``.

        The middle step is the image's own feature.
        """

    def of_stills(self, embedder: SequenceEmbedder, images: Tensor, maps: Tensor) -> Tensor:
        """Do the same with images whose spatial maps are known."""
        steps: Tensor = self(embedder, images)
        return steps

    def frames(self, images: Tensor) -> Tensor | None:
        """Frames ``[image, length, 3, height, width]`` in 0..1 that the steps are made of, if they are."""
        return None

    @abstractmethod
    def supervise(self, frames: Tensor, maps: Tensor, stills: Tensor, features: Tensor) -> dict[str, Tensor]:
        """Treat each frame as if it were a still image, generate its neighbours, compare with the real ones.

        Args:
            frames: real sequences, ``[sequence, time, 3 or 5, height, width]``.
            maps: spatial maps of each frame as a still image, without optical flow,
                ``[sequence, time, channel, rows, columns]``, without gradient.
            stills: the features that follow from them, ``[sequence, time, features]``.
            features: the features of the real frames, ``[sequence, time, features]``, without gradient.

        Returns:
            Scalars ``motion`` and ``content``, those that apply, over the global batch. Each is relative
            to a motionless sequence, which scores 1.

        Raises:
            ValueError: sequences are shorter than ``length``.
        """
