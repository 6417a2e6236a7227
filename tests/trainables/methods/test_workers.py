"""Tests of two gloo workers against one on the same global batch."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.multiprocessing.spawn import spawn
from torch.nn.parallel import DistributedDataParallel

from trainables.methods import Batch, MethodConfig, build_method
from trainables.methods.flow_memory import FlowBank, MeanFlow
from trainables.methods.gather import gather
from trainables.network.encoders import ENCODERS
from trainables.network.normalisation import (
    GlobalBatchNorm2d,
    _ActivatedGlobalBatchNorm2d,
    convert_batch_norm,
    frozen_statistics,
)

WORKERS = 2


def share(values: Tensor, rank: int, workers: int) -> Tensor:
    return values.chunk(workers)[rank]


def normalise(rank: int, workers: int) -> dict[str, Tensor]:
    """Return gradients and output of batch norm with a mean far from 0; two workers have uneven shares."""
    torch.manual_seed(0)
    norm = GlobalBatchNorm2d(3).double() if workers > 1 else nn.BatchNorm2d(3).double()
    nn.init.uniform_(norm.weight)
    values, target = torch.randn(2, 7, 3, 4, 2, dtype=torch.float64).unbind()
    part = slice(0, 7) if workers == 1 else (slice(0, 5), slice(5, 7))[rank]
    inputs = (values[part] * 2 + 100).requires_grad_()
    with frozen_statistics(norm):
        norm(inputs + 5)
    outputs = norm(inputs)
    (outputs - target[part]).pow(3).sum().backward()
    assert inputs.grad is not None and norm.weight.grad is not None and norm.bias.grad is not None
    result = {"outputs": outputs, "inputs": inputs.grad, **dict(norm.named_buffers())}
    return {**result, "weight": norm.weight.grad, "bias": norm.bias.grad}


def similarity(rank: int, workers: int) -> Tensor:
    """Return the gradient of a loss over all pairs, as the mean over workers."""
    values = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    inputs = share(values, rank, workers).clone().requires_grad_()
    batch = gather(inputs)
    torch.testing.assert_close(batch, values)
    (batch @ batch.T).tril(-1).pow(2).sum().backward()
    assert inputs.grad is not None
    return inputs.grad / workers


def still_flow(rank: int, workers: int) -> dict[str, Tensor]:
    """Return the mean and the bank of two batches, of which each worker sees its share."""
    mean, bank = MeanFlow(3, 2), FlowBank(2, 3, 2)
    for values in torch.randn(2, 4, 5, 2, 3, 2, generator=torch.Generator().manual_seed(0)):
        mean.observe(share(values, rank, workers))
        bank.observe(share(values, rank, workers))
    return {**mean.state_dict(), **bank.state_dict()}


def train(encoder: str, rank: int, workers: int) -> dict[str, Any]:
    """Losses, gradients and statistics of one step of batch at once, without dropout."""
    torch.manual_seed(0)
    network = {
        "encoder": {"name": encoder, "features": 16, "dropout": 0},
        "rnn": {"hidden_size": 16, "dropout": 0},
        "height": 32,
        "width": 24,
    }
    alignment = {"distribution": {"kind": "adversarial"}, "noise": 0}
    config = MethodConfig.model_validate({"network": network, "alignment": alignment})
    method = build_method("alignment", config, sequences=4, images=5)
    stills, walks = torch.rand(6, 3, 32, 24), torch.rand(4, 4, 3, 32, 24)
    sequence_identities, image_identities = torch.tensor([0, 3, 3, 0]), torch.tensor([0, 1, 4, 4, 1, 0])
    model = DistributedDataParallel(method) if workers > 1 else method
    for _ in range(2):  # DistributedDataParallel complains about an unused parameter in the second step
        model.zero_grad()
        terms = model(
            Batch(
                sequences=share(walks, rank, workers),
                sequence_identities=share(sequence_identities, rank, workers),
                sequence_cameras=share(torch.zeros(4, dtype=torch.long), rank, workers),
                images=share(stills, rank, workers),
                image_identities=share(image_identities, rank, workers),
            )
        )
        terms["loss"].backward()
    gradients = {name: parameter.grad for name, parameter in method.named_parameters()}
    return {"terms": terms, "gradients": gradients, "buffers": dict(method.named_buffers())}


def work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=WORKERS)
    result = {"norm": normalise(rank, WORKERS), "gather": similarity(rank, WORKERS)}
    result["flow"] = still_flow(rank, WORKERS)
    result |= {encoder: train(encoder, rank, WORKERS) for encoder in ENCODERS}
    torch.save(result, Path(folder, f"{rank}.pt"))
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def workers(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("workers")
    spawn(work, args=(str(folder),), nprocs=WORKERS)  # type: ignore[no-untyped-call]
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(WORKERS)]


def test_batch_norm_two_workers_equal_the_global_batch(workers: list[dict[str, Any]]) -> None:
    expected = normalise(0, 1)
    for name in ("outputs", "inputs"):
        torch.testing.assert_close(torch.cat([result["norm"][name] for result in workers]), expected[name])
    for name in ("weight", "bias"):
        torch.testing.assert_close(sum(result["norm"][name] for result in workers), expected[name])
    for result in workers:
        for name in ("running_mean", "running_var", "num_batches_tracked"):
            torch.testing.assert_close(result["norm"][name], expected[name])


def test_gather_two_workers_has_the_global_gradient(workers: list[dict[str, Any]]) -> None:
    torch.testing.assert_close(torch.cat([result["gather"] for result in workers]), similarity(0, 1))


def test_flow_of_stills_is_that_of_the_global_batch(workers: list[dict[str, Any]]) -> None:
    for result in workers:
        torch.testing.assert_close(result["flow"], still_flow(0, 1))


@pytest.mark.parametrize("encoder", sorted(ENCODERS))
def test_method_two_workers_train_like_one(workers: list[dict[str, Any]], encoder: str) -> None:
    expected = train(encoder, 0, 1)
    for result in workers:
        torch.testing.assert_close(result[encoder], expected, atol=2e-5, rtol=1e-3)


class BatchNormAct2d(nn.BatchNorm2d):
    """Stand-in for the class of this name in timm, which is recognised by name."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.drop, self.act = nn.Identity(), nn.ReLU()

    def forward(self, values: Tensor) -> Tensor:
        activated: Tensor = self.act(self.drop(super().forward(values)))
        return activated


def test_convert_batch_norm_keeps_the_activation() -> None:
    torch.manual_seed(0)
    module, values = nn.Sequential(BatchNormAct2d(3)), torch.randn(4, 3, 5, 2)
    before, expected = module[0], module(values)
    convert_batch_norm(module)
    assert isinstance(module[0], _ActivatedGlobalBatchNorm2d) and module[0].act is before.act
    torch.testing.assert_close(module(values), expected)


def test_convert_batch_norm_keeps_values_and_names() -> None:
    inner = nn.Sequential(nn.BatchNorm2d(3), nn.ReLU())
    module = nn.Sequential(inner, nn.BatchNorm1d(4))
    inner(torch.rand(2, 3, 4, 4) + 1)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    convert_batch_norm(module)
    assert isinstance(inner[0], GlobalBatchNorm2d)
    torch.testing.assert_close(dict(module.state_dict()), before)
