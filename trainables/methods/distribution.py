"""Distances between the feature distributions of both modalities; all are our interpretation."""

from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from trainables.network.section import Section


class DistributionConfig(Section):
    """Config of the distance between pseudo and real sequences."""

    kind: Literal["coral", "mmd", "adversarial", "none"] = Field("coral", description="kind of distance")
    bandwidth: float = Field(1.0, gt=0, le=100, description="mmd: middle kernel in mean squared distances")


class MomentDistance(nn.Module):
    """CORAL (Sun and Saenko, ECCV Workshops 2016), ``||C - C'||^2`` of covariances, plus a distance of means.

    The distance of means is our addition: CORAL alone is blind to a shift. Also ours: covariances are
    relative to ``||C'||^2`` and means to the trace of C', where CORAL divides by ``4d^2``. A weight thus has
    the same meaning at any scale and dimension of the features.
    """

    def forward(self, features: Tensor, reference: Tensor) -> Tensor:
        """Compare ``[item, dimension]`` with ``[other item, dimension]``; a scalar, 0 if moments agree."""
        covariance, target = features.T.cov(correction=0), reference.T.cov(correction=0)
        scale = target.detach().square().sum().clamp_min(1e-12)
        spread = target.detach().trace().clamp_min(1e-6)
        shift = (features.mean(dim=0) - reference.mean(dim=0)).square().sum()
        return shift / spread + (covariance - target).square().sum() / scale


class KernelDistance(nn.Module):
    """Squared maximum mean discrepancy (Gretton et al., 2012), five Gaussian kernels (Long et al., 2015).

    This is the biased estimate, which is never negative. Kernel widths are powers of 2 around ``bandwidth``
    times the mean squared distance of the joint sample, which gets no gradient.
    """

    def __init__(self, bandwidth: float) -> None:
        super().__init__()
        self.bandwidth = bandwidth

    def forward(self, features: Tensor, reference: Tensor) -> Tensor:
        """Compare ``[item, dimension]`` with ``[other item, dimension]``; a scalar, 0 if samples agree."""
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
    """Return ``values`` unchanged, and negate their gradient (Ganin and Lempitsky, ICML 2015)."""
    reversed_values: Tensor = _ReverseGradient.apply(values)  # type: ignore[no-untyped-call]
    return reversed_values


class ModalityAdversary(nn.Module):
    """Classifier of the modality behind a reversed gradient (Ganin and Lempitsky, ICML 2015).

    It learns to tell the modalities apart, while the features learn to make them indistinguishable.
    """

    def __init__(self, dimension: int, hidden: int = 64) -> None:
        super().__init__()
        self.classifier = nn.Sequential(
            nn.LayerNorm(dimension), nn.Linear(dimension, hidden), nn.ReLU(), nn.Linear(hidden, 1)
        )

    def forward(self, features: Tensor, reference: Tensor) -> Tensor:
        """Return the mean of both modalities' cross entropy.

        ``features`` is ``[item, dimension]``, ``reference`` is ``[other item, dimension]``.
        """
        of_features = self.classifier(reverse_gradient(features))
        of_reference = self.classifier(reverse_gradient(reference))
        return (functional.softplus(-of_features).mean() + functional.softplus(of_reference).mean()) / 2


def build_distribution(dimension: int, config: DistributionConfig) -> nn.Module | None:
    """Build the distance that ``alignment.distribution.kind`` names; None for ``none``."""
    match config.kind:
        case "coral":
            return MomentDistance()
        case "mmd":
            return KernelDistance(config.bandwidth)
        case "adversarial":
            return ModalityAdversary(dimension)
        case "none":
            return None
