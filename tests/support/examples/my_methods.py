"""my_methods.py, for method: my_methods:JitterMethod"""

import torch
from pydantic import Field
from torch import Tensor, nn

from trainables.components import Options
from trainables.methods import MethodConfig
from trainables.methods.joint import StaticMethod


class JitterOptions(Options):
    amplitude: float = Field(0.01, ge=0, le=1, description="amplitude of the noise at the start")


class JitterMethod(StaticMethod):
    """Joint training, each image shown as a sequence of noisy copies of its feature."""

    Options = JitterOptions

    def __init__(self, config: MethodConfig, sequences: int, images: int) -> None:
        super().__init__(config, sequences, images)
        features = config.network.encoder.features
        self.amplitude = nn.Parameter(torch.full((features,), config.options.amplitude))

    def pseudo_steps(self, images: Tensor) -> Tensor:
        """Map stills [image, 3 or 5, height, width] to pseudo sequences [image, length, features]."""
        steps = super().pseudo_steps(images)
        return steps + self.amplitude * torch.randn_like(steps)
