"""Joint training on sequences and on still images that are made into pseudo sequences."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, field_validator
from torch import Tensor, nn
from torch.nn import functional

from trainables.methods.batch import Batch
from trainables.methods.distribution import DistributionConfig, build_distribution
from trainables.methods.gather import gather
from trainables.methods.losses import LossConfig, ModalityLoss
from trainables.methods.method import Method
from trainables.network.embedder import NetworkConfig, SequenceEmbedder
from trainables.network.encoders import Encoder
from trainables.network.normalisation import frozen_statistics


class WeightsConfig(BaseModel):
    """Weights beside the loss on real sequences; a term of weight 0 is not computed."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    pseudo: float = Field(1.0, ge=0, le=100, description="identity losses of pseudo sequences")
    motion: float = Field(0.1, ge=0, le=100, description="generated against real change from frame to frame")
    content: float = Field(
        0.1, ge=0, le=100, description="generated steps against the real sequence's feature"
    )
    distribution: float = Field(0.1, ge=0, le=100, description="pseudo sequence features against real ones")


class CrossModalityConfig(BaseModel):
    """How a still image becomes a pseudo sequence, and how that is learnt."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    level: Literal["feature"] = Field(
        "feature", description="where steps are generated, as drawn in Figure 1"
    )
    length: int = Field(3, ge=3, le=63, description="steps of a pseudo sequence, odd, at most batch.frames")
    mgm: bool = Field(True, description="generate motion; off: an ablation")
    cgm: bool = Field(True, description="generate content; off: an ablation")
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


class OffsetGenerator(nn.Module):
    """A residual per step from what is known of the image and the step's signed offset.

    One hidden layer. The last layer starts at 0, so that training starts from the motionless sequence.
    """

    offsets: Tensor
    code: Tensor

    def __init__(self, inputs: int, features: int, length: int, hidden: int = 128) -> None:
        super().__init__()
        half = length // 2
        offsets = torch.arange(-half, half + 1)
        # Periods in frames, about a step and a stride of a walk; the linear term tells the side and how far.
        phases = 2 * torch.pi * offsets[:, None] / torch.tensor([4.0, 8.0, 16.0])
        code = torch.cat([offsets[:, None] / half, phases.sin(), phases.cos()], dim=1)
        self.register_buffer("offsets", offsets, persistent=False)
        self.register_buffer("code", code, persistent=False)
        self.of_input = nn.Sequential(nn.LayerNorm(inputs), nn.Linear(inputs, hidden))
        self.of_offset = nn.Linear(code.shape[1], hidden, bias=False)
        self.output = nn.Linear(hidden, features)
        nn.init.zeros_(self.output.weight)
        nn.init.zeros_(self.output.bias)

    def forward(self, inputs: Tensor) -> Tensor:
        """Map ``[image, length or 1, inputs]`` to residuals ``[image, length, features]``."""
        residuals: Tensor = self.output(functional.relu(self.of_input(inputs) + self.of_offset(self.code)))
        return residuals


class FeatureAlignment(nn.Module):
    """MGM and CGM on what the CNN hands to the RNN (known: Figure 1); how they work is our reading.

    Seen are the image's feature and its spatial map in 4 x 2 cells, which keeps legs apart from torso. MGM
    adds to each step a displacement that grows with its signed offset, CGM a residual on top of the moved
    step. The middle step stays the image's own feature.
    """

    def __init__(self, config: CrossModalityConfig, features: int, map_channels: int) -> None:
        super().__init__()
        weights = config.weights
        generates = weights.pseudo > 0 or (weights.distribution > 0 and config.distribution.kind != "none")
        context = features + 8 * map_channels
        self.length, self.reach = config.length, config.length // 2
        self.mgm = self.cgm = None
        if config.mgm and (generates or weights.motion > 0):
            self.mgm = OffsetGenerator(context, features, config.length)
        if config.cgm and (generates or weights.content > 0):
            self.cgm = OffsetGenerator(context + features, features, config.length)

    def context(self, maps: Tensor, features: Tensor) -> Tensor:
        """Join ``[image, channel, rows, columns]`` and ``[image, features]``: ``[image, 1, context]``."""
        cells = functional.adaptive_avg_pool2d(maps, (4, 2)).flatten(1)
        return torch.cat([features, cells], dim=1).unsqueeze(1)

    def motion(self, context: Tensor, steps: Tensor) -> Tensor:
        """Displacements of ``steps [image, length, features]``; 0 without MGM and in the middle."""
        if self.mgm is None:
            return torch.zeros_like(steps)
        scale = (self.mgm.offsets / self.reach).unsqueeze(1)
        displacements: Tensor = scale * self.mgm(context)
        return displacements

    def content(self, context: Tensor, steps: Tensor) -> Tensor:
        """Residuals of moved ``steps [image, length, features]``; 0 without CGM and in the middle."""
        if self.cgm is None:
            return torch.zeros_like(steps)
        neighbour = (self.cgm.offsets != 0).unsqueeze(1)
        seen = torch.cat([context.expand(-1, self.length, -1), steps], dim=2)
        residuals: Tensor = neighbour * self.cgm(seen)
        return residuals

    def forward(self, encoder: Encoder, maps: Tensor) -> Tensor:
        """Map ``[image, channel, rows, columns]`` to pseudo sequences ``[image, length, features]``.

        The feature is projected once per step, so that dropout differs between steps as it does between
        frames.
        """
        steps = encoder.project(maps.repeat_interleave(self.length, dim=0))
        steps = steps.view(len(maps), self.length, -1)
        context = self.context(maps, steps[:, self.reach])
        steps = steps + self.motion(context, steps)
        return steps + self.content(context, steps)

    def supervise(self, maps: Tensor, features: Tensor) -> dict[str, Tensor]:
        """Treat each frame as if it were a still image, generate its neighbours, compare with the real ones.

        ``maps [sequence, time, channel, rows, columns]`` and ``features [sequence, time, features]`` of
        real sequences carry no gradient: the encoder is not bent to make motion easy to foresee. Every
        frame with ``length // 2`` neighbours on both sides takes part. Errors are relative to a motionless
        sequence, which scores 1. Raises ValueError when sequences are shorter than ``length``.
        """
        features = features.to(torch.promote_types(features.dtype, torch.float32))
        time = features.shape[1]
        if time < self.length:
            raise ValueError(
                f"alignment.length is {self.length}, but sequences have {time} frames (batch.frames)"
            )
        middle = slice(self.reach, time - self.reach)
        real = features.unfold(1, self.length, 1).transpose(2, 3).flatten(0, 1)
        stills = features[:, middle].flatten(0, 1)
        pooled = features.mean(dim=1, keepdim=True).expand(-1, time - 2 * self.reach, -1).flatten(0, 1)
        context = self.context(maps[:, middle].flatten(0, 1), stills)
        steps = stills.unsqueeze(1).expand(-1, self.length, -1)
        motion = self.motion(context, steps)
        floor = 1e-3 * gather(stills.square().sum(dim=1)).mean()
        terms = {}
        if self.mgm is not None:
            change = real.diff(dim=1)
            terms["motion"] = relative_error(motion.diff(dim=1), change, floor)
        if self.cgm is not None:
            moved = steps + motion.detach()
            generated = (moved + self.content(context, moved)).mean(dim=1)
            terms["content"] = relative_error(generated - stills, pooled - stills, floor)
        return terms


def relative_error(generated: Tensor, real: Tensor, floor: Tensor) -> Tensor:
    """Squared error of ``[item, ...]`` over the global batch, relative to the square of what is real.

    ``floor`` is the least mean square of an item that is divided by: sequences may stand still.
    """
    error = gather((generated - real).square().flatten(1).sum(dim=1)).mean()
    return error / torch.maximum(gather(real.square().flatten(1).sum(dim=1)).mean(), floor)


@contextmanager
def without_dropout(module: nn.Module) -> Iterator[None]:
    """Inside, dropout does nothing; everything else stays in its mode."""
    dropouts = [child for child in module.modules() if isinstance(child, nn.Dropout) and child.training]
    for dropout in dropouts:
        dropout.eval()
    try:
        yield
    finally:
        for dropout in dropouts:
            dropout.train()


class AlignmentMethod(Method):
    """Cross-modality alignment (Song et al., ACM Multimedia 2017) on a shared CNN and RNN.

    Known: each image becomes a pseudo sequence, both branches share CNN and RNN, their losses are computed
    independently and trained jointly. Our reading: everything about the terms beside them, ``video +
    w_pseudo pseudo + w_motion motion + w_content content + w_distribution distribution``; that images use
    batch statistics of their own and leave the running ones to sequences; and that pseudo sequences are
    drawn towards real ones, never the reverse.
    """

    def __init__(
        self,
        network: NetworkConfig,
        loss: LossConfig,
        alignment: CrossModalityConfig,
        identities_sequences: int,
        identities_images: int,
    ) -> None:
        super().__init__()
        self.weights = alignment.weights
        self.embedder = SequenceEmbedder(network)
        self.video = ModalityLoss(self.embedder.dimension, identities_sequences, loss)
        self.alignment = FeatureAlignment(
            alignment, network.encoder.features, self.embedder.encoder.map_channels
        )
        self.pseudo = self.distribution = None
        if self.weights.pseudo > 0:
            self.pseudo = ModalityLoss(self.embedder.dimension, identities_images, loss)
        if self.weights.distribution > 0:
            self.distribution = build_distribution(self.embedder.dimension, alignment.distribution)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return ``video``, the terms that weigh more than 0 and apply, and the total, ``loss``."""
        maps = self.embedder.spatial(batch.sequences.flatten(0, 1))
        shape = batch.sequences.shape[:2]
        steps = self.embedder.encoder.project(maps).view(*shape, -1)
        sequences = gather(self.embedder.aggregate(steps))
        terms = {"video": self.video(sequences, gather(batch.sequence_identities))}
        if self.pseudo is not None or self.distribution is not None:
            terms |= self._of_images(batch, sequences.detach())
        if self.weights.motion > 0 or self.weights.content > 0:
            terms |= self._of_neighbours(maps.detach(), shape)
        loss = terms["video"]
        for name, term in terms.items():
            if name != "video":
                loss = loss + getattr(self.weights, name) * term
        return {"loss": loss, **terms}

    def _of_images(self, batch: Batch, sequences: Tensor) -> dict[str, Tensor]:
        if batch.images is None or batch.image_identities is None:
            raise ValueError("method alignment needs images in every batch, this one has none (data.images)")
        with frozen_statistics(self.embedder):
            steps = self.alignment(self.embedder.encoder, self.embedder.spatial(batch.images))
        pseudo = gather(self.embedder.aggregate(steps))
        terms = {}
        if self.pseudo is not None:
            terms["pseudo"] = self.pseudo(pseudo, gather(batch.image_identities))
        if self.distribution is not None:
            with torch.autocast(pseudo.device.type, enabled=False):
                terms["distribution"] = self.distribution(pseudo, sequences)
        return terms

    def _of_neighbours(self, maps: Tensor, shape: torch.Size) -> dict[str, Tensor]:
        with torch.no_grad(), frozen_statistics(self.embedder), without_dropout(self.embedder):
            features = self.embedder.encoder.project(maps)
        terms = self.alignment.supervise(maps.view(*shape, *maps.shape[1:]), features.view(*shape, -1))
        return {name: term for name, term in terms.items() if getattr(self.weights, name) > 0}
