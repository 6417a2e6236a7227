"""Temporal pooling: the outputs of all steps to one feature. A new pooling is one class, listed below."""

from abc import ABC, abstractmethod
from typing import Literal

from torch import Tensor, nn

PoolingName = Literal["mean", "max", "attention"]
"""What ``pooling`` may say; the mean is McLaughlin's choice."""


class Pooling(nn.Module, ABC):
    """Pools steps of length ``hidden_size``."""

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
    """Maximum over time, per element."""

    def forward(self, steps: Tensor) -> Tensor:
        """Map ``[batch, time, hidden_size]`` to ``[batch, hidden_size]``."""
        return steps.amax(dim=1)


class AttentionPooling(Pooling):
    """Weighted mean over time: softmax of a score that is linear in a step's output. Our reading.

    Starts as the mean, every score being 0.
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
