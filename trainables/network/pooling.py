"""Temporal pooling: the outputs of all steps to one feature. A new pooling is one class, listed below."""

from typing import Literal

from torch import Tensor, nn

PoolingName = Literal["mean", "max"]
"""What ``pooling`` may say; the mean is McLaughlin's choice."""


class MeanPooling(nn.Module):
    """Mean over time."""

    def forward(self, steps: Tensor) -> Tensor:
        """Map ``[batch, time, hidden_size]`` to ``[batch, hidden_size]``."""
        return steps.mean(dim=1)


class MaxPooling(nn.Module):
    """Maximum over time, per element."""

    def forward(self, steps: Tensor) -> Tensor:
        """Map ``[batch, time, hidden_size]`` to ``[batch, hidden_size]``."""
        return steps.amax(dim=1)


POOLINGS: dict[PoolingName, type[nn.Module]] = {"mean": MeanPooling, "max": MaxPooling}
