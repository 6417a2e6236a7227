"""Tests of the losses against plain loops in double precision."""

import math

import pytest
import torch
from torch import Tensor

from trainables.methods.distribution import (
    DistributionConfig,
    KernelDistance,
    ModalityAdversary,
    MomentDistance,
    build_distribution,
    reverse_gradient,
)
from trainables.methods.losses import LossConfig, ModalityLoss, hinge_verification, triplet_verification


@pytest.fixture
def features() -> Tensor:
    return torch.randn(7, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


IDENTITIES = torch.tensor([0, 0, 1, 1, 1, 2, 3])


def distance(first: Tensor, second: Tensor) -> float:
    return math.sqrt(sum((a - b) ** 2 for a, b in zip(first.tolist(), second.tolist(), strict=True)))


def test_hinge_is_the_mean_over_both_kinds_of_pairs(features: Tensor) -> None:
    pull, push = [], []
    for i in range(7):
        for j in range(i):
            d = distance(features[i], features[j])
            if IDENTITIES[i] == IDENTITIES[j]:
                pull.append(d)
            else:
                push.append(max(0.0, 3.0 - d))
    expected = (sum(pull) / len(pull) + sum(push) / len(push)) / 2
    assert hinge_verification(features, IDENTITIES, 3.0).item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("margin", [0.5, None])
def test_triplet_loss_is_batch_hard(features: Tensor, margin: float | None) -> None:
    losses = []
    for i in range(5):  # identities 2 and 3 have no positive
        positives = [
            distance(features[i], features[j]) for j in range(7) if j != i and IDENTITIES[j] == IDENTITIES[i]
        ]
        negatives = [distance(features[i], features[j]) for j in range(7) if IDENTITIES[j] != IDENTITIES[i]]
        gap = max(positives) - min(negatives)
        losses.append(math.log1p(math.exp(gap)) if margin is None else max(0.0, gap + margin))
    loss = triplet_verification(features, IDENTITIES, margin)
    assert loss.item() == pytest.approx(sum(losses) / len(losses), rel=1e-9)


@pytest.mark.parametrize("identities", [torch.zeros(4, dtype=torch.long), torch.arange(4)])
@pytest.mark.parametrize("verification", ["hinge", "triplet", "soft_triplet"])
def test_loss_degenerate_batch_stays_finite(identities: Tensor, verification: str) -> None:
    features = torch.ones(4, 8, requires_grad=True)
    loss = ModalityLoss(8, 4, LossConfig.model_validate({"verification": verification}))(features, identities)
    loss.backward()
    assert loss.isfinite() and features.grad is not None and features.grad.isfinite().all()


def test_modality_loss_adds_weighted_smoothed_cross_entropy(features: Tensor) -> None:
    config = LossConfig(identity=0.5, label_smoothing=0.1, margin=3.0)
    loss = ModalityLoss(5, 4, config).double()
    assert loss.classifier is not None
    entropies = []
    for feature, identity in zip(features, IDENTITIES.tolist(), strict=True):
        logits = (loss.classifier.weight @ feature + loss.classifier.bias).tolist()
        normaliser = math.log(sum(math.exp(logit) for logit in logits))
        target = [0.1 / 4 + (0.9 if k == identity else 0.0) for k in range(4)]
        entropies.append(-sum(t * (logit - normaliser) for t, logit in zip(target, logits, strict=True)))
    expected = hinge_verification(features, IDENTITIES, 3.0).item() + 0.5 * sum(entropies) / 7
    assert loss(features, IDENTITIES).item() == pytest.approx(expected, rel=1e-9)


def test_modality_loss_identity_weight_0_has_no_classifier() -> None:
    assert not list(ModalityLoss(5, 4, LossConfig(identity=0)).parameters())


@pytest.mark.parametrize("measure", [MomentDistance(), KernelDistance(1.0)])
def test_distance_is_0_only_between_equal_samples(features: Tensor, measure: torch.nn.Module) -> None:
    assert measure(features, features.flip(0)).item() == pytest.approx(0, abs=1e-9)
    shifted, wider = measure(features + 1, features).item(), measure(2 * features, features).item()
    assert shifted > 0.01 and wider > 0.01
    assert measure(features + 2, features).item() > shifted


def test_moment_distance_equal_means_is_relative_coral(features: Tensor) -> None:
    centred = features - features.mean(dim=0)
    first = (2 * centred).T @ (2 * centred) / 7
    second = centred.T @ centred / 7
    expected = (first - second).square().sum() / second.square().sum()
    torch.testing.assert_close(MomentDistance()(2 * centred, centred), expected)
    torch.testing.assert_close(MomentDistance()(20 * centred, 10 * centred), expected)
    shift = MomentDistance()(centred + 3, centred)
    torch.testing.assert_close(shift, 5 * 9 / second.trace())


def test_kernel_distance_is_the_biased_estimate(features: Tensor) -> None:
    other = features[:4] * 1.5 + 0.3
    rows = [*features, *other]
    squares = [[distance(a, b) ** 2 for b in rows] for a in rows]
    scale = 0.7 * sum(map(sum, squares)) / len(rows) ** 2
    kernel = [
        [sum(math.exp(-s / (scale * f)) for f in (0.25, 0.5, 1, 2, 4)) / 5 for s in row] for row in squares
    ]
    own = sum(kernel[i][j] for i in range(7) for j in range(7)) / 49
    theirs = sum(kernel[i][j] for i in range(7, 11) for j in range(7, 11)) / 16
    cross = sum(kernel[i][j] for i in range(7) for j in range(7, 11)) / 28
    assert KernelDistance(0.7)(features, other).item() == pytest.approx(own + theirs - 2 * cross, rel=1e-9)


def test_reverse_gradient_negates_the_gradient(features: Tensor) -> None:
    values = features.clone().requires_grad_()
    (3 * reverse_gradient(values)).sum().backward()
    torch.testing.assert_close(values.grad, torch.full_like(values, -3))


def test_adversary_gradient_makes_features_harder_to_tell() -> None:
    torch.manual_seed(0)
    adversary = ModalityAdversary(6)
    features = (torch.randn(32, 6) + 1).requires_grad_()
    reference = torch.randn(32, 6)
    optimizer = torch.optim.Adam(adversary.parameters(), 0.01)
    first = adversary(features.detach(), reference).item()
    for _ in range(60):
        optimizer.zero_grad()
        adversary(features.detach(), reference).backward()
        optimizer.step()
    loss = adversary(features, reference)
    assert loss.item() < 0.5 * first
    loss.backward()
    assert features.grad is not None
    moved = features.detach() - 10 * features.grad
    assert adversary(moved, reference).item() > loss.item()


def test_build_distribution_none_gives_none() -> None:
    assert build_distribution(8, DistributionConfig(kind="none")) is None
