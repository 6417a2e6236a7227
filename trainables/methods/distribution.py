"""How far the features of one modality lie from those of the other; all of them are our reading."""

from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional


class DistributionConfig(BaseModel):
    """What compares pseudo sequences with real ones."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["coral", "mmd", "adversarial", "none"] = Field("coral", description="which comparison")
    bandwidth: float = Field(1.0, gt=0, le=100, description="mmd: middle kernel, in mean squared distances")


class MomentDistance(nn.Module):
    """CORAL (Sun and Saenko, ECCV Workshops 2016), ``||C - C'||^2`` of covariances; and, ours, means.

    Ours too: both are relative, to ``||C'||^2`` and to the trace of C', where CORAL divides by ``4d^2``: a
    weight means the same at any scale and length of features. CORAL alone is blind to a shift.
    """

    def forward(self, features: Tensor, reference: Tensor) -> Tensor:
        """Compare ``[item, dimension]`` with ``[other item, dimension]``; a scalar, 0 when moments agree."""
        covariance, wanted = features.T.cov(correction=0), reference.T.cov(correction=0)
        scale = wanted.detach().square().sum().clamp_min(1e-12)
        spread = wanted.detach().trace().clamp_min(1e-6)
        shift = (features.mean(dim=0) - reference.mean(dim=0)).square().sum()
        return shift / spread + (covariance - wanted).square().sum() / scale


class KernelDistance(nn.Module):
    """Squared maximum mean discrepancy (Gretton et al., 2012), five Gaussian kernels (Long et al., 2015).

    The biased estimate, which is never negative. Kernel widths are powers of 2 around ``bandwidth`` times
    the mean squared distance of the joint sample, taken as a constant.
    """

    def __init__(self, bandwidth: float) -> None:
        super().__init__()
        self.bandwidth = bandwidth

    def forward(self, features: Tensor, reference: Tensor) -> Tensor:
        """Compare ``[item, dimension]`` with ``[other item, dimension]``; a scalar, 0 when samples agree."""
        joint = torch.cat([features, reference])
        squares = (joint[:, None] - joint).square().sum(dim=-1)
        scale = (self.bandwidth * squares.detach().mean()).clamp_min(1e-12)
        kernel = torch.stack([torch.exp(-squares / (scale * 2.0**power)) for power in range(-2, 3)]).mean(
            dim=0
        )
        items = len(features)
        return (
            kernel[:items, :items].mean() + kernel[items:, items:].mean() - 2 * kernel[:items, items:].mean()
        )


class _ReverseGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        return values.view_as(values)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return -gradient


def reverse_gradient(values: Tensor) -> Tensor:
    """Return ``values``; their gradient changes sign (Ganin and Lempitsky, ICML 2015)."""
    reversed_values: Tensor = _ReverseGradient.apply(values)  # type: ignore[no-untyped-call]
    return reversed_values


class ModalityAdversary(nn.Module):
    """A classifier of the modality behind a reversed gradient (Ganin and Lempitsky, ICML 2015).

    It learns to tell the modalities apart while the features learn to be told apart no more.
    """

    def __init__(self, dimension: int, hidden: int = 64) -> None:
        super().__init__()
        self.classifier = nn.Sequential(
            nn.LayerNorm(dimension), nn.Linear(dimension, hidden), nn.ReLU(), nn.Linear(hidden, 1)
        )

    def forward(self, features: Tensor, reference: Tensor) -> Tensor:
        """Cross entropy of telling ``[item, dimension]`` from ``[other item, dimension]``, half each."""
        of_features = self.classifier(reverse_gradient(features))
        of_reference = self.classifier(reverse_gradient(reference))
        return (functional.softplus(-of_features).mean() + functional.softplus(of_reference).mean()) / 2


def build_distribution(dimension: int, config: DistributionConfig) -> nn.Module | None:
    """Build the comparison that ``alignment.distribution.kind`` names; None for ``none``."""
    match config.kind:
        case "coral":
            return MomentDistance()
        case "mmd":
            return KernelDistance(config.bandwidth)
        case "adversarial":
            return ModalityAdversary(dimension)
        case "none":
            return None
