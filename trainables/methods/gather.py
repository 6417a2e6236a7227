"""Differentiable gathering of a batch from all workers."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        ctx.items = len(values)
        shares = [torch.empty_like(values) for _ in range(dist.get_world_size())]
        dist.all_gather(shares, values)
        return torch.cat(shares)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        total = gradient.clone()
        dist.all_reduce(total)
        first = dist.get_rank() * ctx.items
        return total[first : first + ctx.items]


def gather(values: Tensor) -> Tensor:
    """Concatenate all workers' ``[item, ...]`` in order of rank to ``[workers * item, ...]``, differentiably.

    Every worker must hold the same number of items. The gradient of an item is the sum over all workers'
    losses, so that the mean over workers taken by DistributedDataParallel is the gradient on the global
    batch. Lower precision becomes float32, because losses take differences of these values.
    """
    if values.is_floating_point():
        values = values.to(torch.promote_types(values.dtype, torch.float32))
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return values
    gathered: Tensor = _Gather.apply(values.contiguous())  # type: ignore[no-untyped-call]
    return gathered
