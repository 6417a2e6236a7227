"""Identity losses of one modality: verification on pairs or triplets, and identification."""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from trainables.network.section import Section


class LossConfig(Section):
    """Config of the identity losses, shared by sequences and pseudo sequences."""

    verification: Literal["hinge", "triplet", "soft_triplet"] = Field(
        "hinge",
        description="hinge on pairs (McLaughlin et al., 2016), or batch-hard triplets (Hermans et al., 2017)",
    )
    margin: float = Field(2.0, gt=0, le=100, description="margin as L2 distance; unused by soft_triplet")
    identity: float = Field(1.0, ge=0, le=100, description="weight of identification; verification weighs 1")
    neck: bool = Field(False, description="batch norm between the feature and the identity classifier")
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="label mass spread over all identities")


def distances(features: Tensor) -> Tensor:
    """Return L2 distances ``[item, item]`` of ``features [item, dimension]``; the gradient at 0 is 0."""
    return torch.cdist(features, features, compute_mode="donot_use_mm_for_euclid_dist")


def hinge_verification(features: Tensor, identities: Tensor, margin: float) -> Tensor:
    """Return the hinge embedding loss over all pairs of ``features [item, dimension]``.

    A positive pair costs its L2 distance d, a negative pair ``max(0, margin - d)``; ``identities`` is
    ``[item]``. The form is that of McLaughlin et al.'s released code (their paper prints halved squares).
    They alternate positive and negative pairs, so here the means of both weigh one half.
    """
    distance = distances(features)
    same = identities[:, None] == identities
    positive = same.triu(1)
    negative = (~same).triu(1)
    pull = (distance * positive).sum() / positive.sum().clamp_min(1)
    push = ((margin - distance).clamp_min(0) * negative).sum() / negative.sum().clamp_min(1)
    return (pull + push) / 2


def triplet_verification(features: Tensor, identities: Tensor, margin: float | None) -> Tensor:
    """Return the batch-hard triplet loss (Hermans et al., "In Defense of the Triplet Loss", 2017, eq. 5).

    ``features [item, dimension]``, ``identities [item]``; a margin of None selects their soft margin. The
    mean is over all anchors that have a positive and a negative.
    """
    distance = distances(features)
    same = identities[:, None] == identities
    positive = same & ~torch.eye(len(same), dtype=torch.bool, device=same.device)
    anchors = positive.any(dim=1) & ~same.all(dim=1)
    farthest = distance.masked_fill(~positive, -torch.inf).amax(dim=1)[anchors]
    nearest = distance.masked_fill(same, torch.inf).amin(dim=1)[anchors]
    gap = farthest - nearest
    losses = functional.softplus(gap) if margin is None else (gap + margin).clamp_min(0)
    return losses.sum() / anchors.sum().clamp_min(1)


class Neck(nn.BatchNorm1d):
    """Batch norm without a shift, so that the classifier's hyperplanes pass through the origin."""

    def __init__(self, dimension: int) -> None:
        super().__init__(dimension)
        self.bias.requires_grad_(False)


class ModalityLoss(nn.Module):
    """Verification plus weighted identification loss of one modality.

    Our interpretation: each modality has its own classifier.

    Identification is the mean over items. McLaughlin et al. add it once per branch of a pair, which is
    ``identity: 2`` here; with a weight of 0 there is no classifier. With ``neck``, verification sees the
    feature and identification its normalised form (BNNeck, Luo et al., CVPR Workshops 2019), because the
    two losses favour different feature distributions. Each modality normalises separately.
    """

    def __init__(self, dimension: int, identities: int, config: LossConfig) -> None:
        super().__init__()
        self.config = config
        self.parts: dict[str, Tensor] = {}
        """``verification`` and ``identification`` of a step's first loss, without weights, if it has both."""
        self.classifier: nn.Module | None = None
        if config.identity > 0:
            linear = nn.Linear(dimension, identities, bias=not config.neck)
            self.classifier = nn.Sequential(Neck(dimension), linear) if config.neck else linear

    def forward(self, features: Tensor, identities: Tensor) -> Tensor:
        """Return the scalar loss of ``features [item, dimension]`` with ``identities [item]``, in float32."""
        with torch.autocast(features.device.type, enabled=False):
            return self._loss(features, identities)

    def _loss(self, features: Tensor, identities: Tensor) -> Tensor:
        config = self.config
        match config.verification:
            case "hinge":
                loss = hinge_verification(features, identities, config.margin)
            case "triplet":
                loss = triplet_verification(features, identities, config.margin)
            case "soft_triplet":
                loss = triplet_verification(features, identities, None)
        if self.classifier is None:
            return loss
        logits = self.classifier(features)
        identification = functional.cross_entropy(logits, identities, label_smoothing=config.label_smoothing)
        if not self.parts:
            self.parts = {"verification": loss.detach(), "identification": identification.detach()}
        return loss + config.identity * identification
