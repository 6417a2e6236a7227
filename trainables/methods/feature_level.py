"""Feature-level pseudo sequences: MGM and CGM between CNN and RNN, as drawn in Figure 1 of the paper."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from trainables.methods.alignment_network import CrossModalityAlignment, CrossModalityConfig
from trainables.methods.gather import gather
from trainables.network.embedder import SequenceEmbedder


class OffsetGenerator(nn.Module):
    """Network that maps an image's context, a step's signed offset and noise to a residual for each step.

    It has one hidden layer. The last layer starts at 0, so that training starts from motionless sequences.
    """

    offsets: Tensor
    code: Tensor

    def __init__(self, inputs: int, features: int, length: int, noise: int = 0, hidden: int = 128) -> None:
        super().__init__()
        half = length // 2
        offsets = torch.arange(-half, half + 1)
        # Periods in frames, about a step and a stride of a walk; the linear term gives sign and distance.
        phases = 2 * torch.pi * offsets[:, None] / torch.tensor([4.0, 8.0, 16.0])
        code = torch.cat([offsets[:, None] / half, phases.sin(), phases.cos()], dim=1)
        self.register_buffer("offsets", offsets, persistent=False)
        self.register_buffer("code", code, persistent=False)
        self.noise = noise
        self.of_input = nn.Sequential(nn.LayerNorm(inputs), nn.Linear(inputs, hidden))
        self.of_offset = nn.Linear(code.shape[1] + noise, hidden, bias=False)
        self.output = nn.Linear(hidden, features)
        nn.init.zeros_(self.output.weight)
        nn.init.zeros_(self.output.bias)

    def forward(self, inputs: Tensor) -> Tensor:
        """Map ``[image, length or 1, inputs]`` to residuals ``[image, length, features]``.

        Each call draws new noise, once per pseudo sequence.
        """
        code = self.code.expand(len(inputs), -1, -1)
        if self.noise:
            noise = torch.randn(len(inputs), 1, self.noise, device=inputs.device)
            code = torch.cat([code, noise.expand(-1, code.shape[1], -1)], dim=2)
        residuals: Tensor = self.output(functional.relu(self.of_input(inputs) + self.of_offset(code)))
        return residuals


class FeatureAlignment(CrossModalityAlignment):
    """MGM and CGM on frame features, between CNN and RNN.

    From the paper (Figure 1): their position. Our interpretation: how they work.

    Both see the image's feature and its spatial map in 4 x 2 cells, which separate legs from torso. MGM adds
    to each step a displacement that grows with the step's signed offset; CGM adds a residual to the displaced
    step. The middle step is the image's own feature.

    A still image does not determine the motion that follows, and the best single prediction is no motion.
    MGM therefore samples a motion (``noise`` random numbers per sequence) instead of predicting the mean.

    Both modules learn only from real sequences; a module whose term weighs 0 is not built. The other losses
    treat what they generate as data: their gradient would teach MGM and CGM to mark each identity.
    """

    def __init__(self, config: CrossModalityConfig, features: int, map_channels: int) -> None:
        super().__init__()
        context = features + 8 * map_channels
        self.length, self.reach = config.length, config.length // 2
        self.mgm = self.cgm = None
        if config.mgm and config.weights.motion > 0:
            self.mgm = OffsetGenerator(context, features, config.length, config.noise)
        if config.cgm and config.weights.content > 0:
            self.cgm = OffsetGenerator(context + features, features, config.length)

    def context(self, maps: Tensor, features: Tensor) -> Tensor:
        """Join ``[image, channel, rows, columns]`` and ``[image, features]`` into ``[image, 1, context]``."""
        cells = functional.adaptive_avg_pool2d(maps, (4, 2)).flatten(1)
        return torch.cat([features, cells], dim=1).unsqueeze(1)

    def motion(self, context: Tensor, steps: Tensor) -> Tensor:
        """Return displacements of ``steps [image, length, features]``; 0 without MGM and in the middle."""
        if self.mgm is None:
            return torch.zeros_like(steps)
        scale = (self.mgm.offsets / self.reach).unsqueeze(1)
        displacements: Tensor = scale * self.mgm(context)
        return displacements

    def content(self, context: Tensor, steps: Tensor) -> Tensor:
        """Return residuals of displaced ``steps [image, length, features]``.

        They are 0 without CGM and in the middle.
        """
        if self.cgm is None:
            return torch.zeros_like(steps)
        neighbour = (self.cgm.offsets != 0).unsqueeze(1)
        seen = torch.cat([context.expand(-1, self.length, -1), steps], dim=2)
        residuals: Tensor = neighbour * self.cgm(seen)
        return residuals

    def forward(self, embedder: SequenceEmbedder, images: Tensor) -> Tensor:
        """Map stills ``[image, 3 or 5, height, width]`` to pseudo sequences ``[image, length, features]``."""
        return self.of_stills(embedder, images, embedder.spatial(images))

    def of_stills(self, embedder: SequenceEmbedder, images: Tensor, maps: Tensor) -> Tensor:
        """Return the pseudo sequences of ``images`` from their spatial ``maps``, without encoding again."""
        steps = embedder.hold(maps, self.length)
        with torch.no_grad():
            context = self.context(maps, steps[:, self.reach])
            motion = self.motion(context, steps)
            content = self.content(context, steps + motion)
        return steps + motion + content

    def supervise(self, frames: Tensor, maps: Tensor, stills: Tensor, features: Tensor) -> dict[str, Tensor]:
        """Compare the steps generated from a frame with its real neighbours; see `CrossModalityAlignment`.

        Every frame with ``length // 2`` neighbours on both sides is used. ``motion`` is the energy score
        (Gneiting and Raftery, 2007) of the changes from step to step, ``content`` the squared error of the
        pooled sequence.
        """
        precision = torch.promote_types(features.dtype, torch.float32)
        features, stills = features.to(precision), stills.to(precision)
        time = features.shape[1]
        if time < self.length:
            raise ValueError(
                f"alignment.length is {self.length}, but sequences have {time} frames (batch.frames)"
            )
        middle = slice(self.reach, time - self.reach)
        real = features.unfold(1, self.length, 1).transpose(2, 3).flatten(0, 1)
        stills = stills[:, middle].flatten(0, 1)
        pooled = features.mean(dim=1, keepdim=True).expand(-1, time - 2 * self.reach, -1).flatten(0, 1)
        context = self.context(maps[:, middle].flatten(0, 1), stills)
        steps = stills.unsqueeze(1).expand(-1, self.length, -1)
        motion = self.motion(context, steps)
        floor = 1e-3 * gather(stills.square().sum(dim=1)).mean()
        terms = {}
        if self.mgm is not None:
            other = self.motion(context, steps)
            terms["motion"] = energy_score(motion.diff(dim=1), other.diff(dim=1), real.diff(dim=1), floor)
        if self.cgm is not None:
            moved = steps + motion.detach()
            generated = (moved + self.content(context, moved)).mean(dim=1)
            terms["content"] = relative_error(generated - stills, pooled - stills, floor)
        return terms


def energy_score(draw: Tensor, other: Tensor, real: Tensor, floor: Tensor) -> Tensor:
    """Return the energy score of two draws ``[item, ...]`` against ``real``, relative to the score of zeros.

    It is minimal if the draws have the distribution of the real values (Gneiting and Raftery, "Strictly
    Proper Scoring Rules, Prediction, and Estimation", 2007). It covers the global batch; ``floor`` is the
    square of the least value to divide by.
    """

    def length(values: Tensor) -> Tensor:
        lengths: Tensor = torch.linalg.vector_norm(values.flatten(1), dim=1)
        return lengths

    score = (length(draw - real) + length(other - real) - length(draw - other)) / 2
    return gather(score).mean() / torch.maximum(gather(length(real)).mean(), floor.sqrt())


def relative_error(generated: Tensor, real: Tensor, floor: Tensor) -> Tensor:
    """Return the squared error of ``[item, ...]`` over the global batch, relative to the square of ``real``.

    ``floor`` is the least squared norm of an item to divide by: real sequences may be motionless.
    """
    error = gather((generated - real).square().flatten(1).sum(dim=1)).mean()
    return error / torch.maximum(gather(real.square().flatten(1).sum(dim=1)).mean(), floor)
