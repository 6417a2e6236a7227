"""Temporal pooling of the outputs of all steps into one feature.

To add a pooling, write one class and list it in `PoolingName` and `POOLINGS`.
"""

from abc import ABC, abstractmethod
from typing import Literal

from torch import Tensor, nn

PoolingName = Literal["mean", "max", "attention"]
"""Values of ``pooling``; McLaughlin et al. use the mean."""


class Pooling(nn.Module, ABC):
    """Base class of poolings over time, built for steps of length ``hidden_size``."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()

    @abstractmethod
    def forward(self, steps: Tensor) -> Tensor:
        """Map ``[batch, time, hidden_size]`` to ``[batch, hidden_size]``; time may be 1."""


class MeanPooling(Pooling):
    """Mean over time."""

    def forward(self, steps: Tensor) -> Tensor:
        """Map ``[batch, time, hidden_size]`` to ``[batch, hidden_size]``."""
        return steps.mean(dim=1)


class MaxPooling(Pooling):
    """Elementwise maximum over time."""

    def forward(self, steps: Tensor) -> Tensor:
        """Map ``[batch, time, hidden_size]`` to ``[batch, hidden_size]``."""
        return steps.amax(dim=1)


class AttentionPooling(Pooling):
    """Mean over time, weighted by the softmax of a linear score of each step. Our interpretation.

    All scores start at 0, so it starts as the plain mean.
    """

    def __init__(self, hidden_size: int) -> None:
        super().__init__(hidden_size)
        self.score = nn.Linear(hidden_size, 1, bias=False)  # a bias would not change the softmax
        nn.init.zeros_(self.score.weight)

    def forward(self, steps: Tensor) -> Tensor:
        """Map ``[batch, time, hidden_size]`` to ``[batch, hidden_size]``."""
        weights: Tensor = self.score(steps).float().softmax(dim=1)
        return (weights * steps).sum(dim=1)


POOLINGS: dict[PoolingName, type[Pooling]] = {
    "mean": MeanPooling,
    "max": MaxPooling,
    "attention": AttentionPooling,
}
