"""Batch norm over the global batch on any backend, and control over its running statistics."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class _SumOverWorkers(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        total = values.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        total = gradient.clone()
        dist.all_reduce(total)
        return total


class _GlobalBatchNorm(nn.modules.batchnorm._BatchNorm):
    """Batch norm with the mean and variance of the global batch; `torch.nn.SyncBatchNorm` needs GPUs.

    With one worker, and in evaluation, it is plain batch norm. Workers may hold different numbers of items.
    """

    def forward(self, values: Tensor) -> Tensor:
        """Normalise ``[item, channel, ...]`` per channel."""
        if not self.training or not dist.is_initialized() or dist.get_world_size() == 1:
            return super().forward(values)
        self._check_input_dim(values)  # type: ignore[no-untyped-call]
        precision = values.dtype
        values = values.to(torch.promote_types(precision, torch.float32))
        dims = [dim for dim in range(values.dim()) if dim != 1]
        shape = [1, -1] + [1] * (values.dim() - 2)
        count = values.new_tensor([values.numel() / values.shape[1]])
        sums = _SumOverWorkers.apply(torch.cat([values.sum(dims), count]))  # type: ignore[no-untyped-call]
        mean, count = sums[:-1] / sums[-1], sums[-1]
        # The variance needs a second sum: E[x^2] - E[x]^2 would lose the precision at which workers agree.
        centred = values - mean.view(shape)
        variance = _SumOverWorkers.apply(centred.square().sum(dims)) / count  # type: ignore[no-untyped-call]
        if self.track_running_stats:
            self._update(mean.detach(), variance.detach() * count / (count - 1))
        scale = self.weight * (variance + self.eps).rsqrt()
        normalised: Tensor = centred * scale.view(shape) + self.bias.view(shape)
        return normalised.to(precision)

    @torch.no_grad()
    def _update(self, mean: Tensor, variance: Tensor) -> None:
        assert self.running_mean is not None and self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked += 1
        momentum = 1 / int(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, momentum)
        self.running_var.lerp_(variance, momentum)


class _ActivatedGlobalBatchNorm2d(_GlobalBatchNorm, nn.BatchNorm2d):
    """Batch norm followed by dropout and an activation, as in timm's ``BatchNormAct2d``."""

    drop: nn.Module
    act: nn.Module

    def forward(self, values: Tensor) -> Tensor:
        """Normalise ``[item, channel, row, column]`` per channel, then apply dropout and activation."""
        activated: Tensor = self.act(self.drop(super().forward(values)))
        return activated


class GlobalBatchNorm1d(_GlobalBatchNorm, nn.BatchNorm1d):
    """`torch.nn.BatchNorm1d` over all workers."""


class GlobalBatchNorm2d(_GlobalBatchNorm, nn.BatchNorm2d):
    """`torch.nn.BatchNorm2d` over all workers."""


def convert_batch_norm(module: nn.Module) -> None:
    """Replace every `torch.nn.BatchNorm1d`, ``BatchNorm2d`` and timm ``BatchNormAct2d`` inside ``module``.

    The state dict stays the same.
    """
    for name, child in module.named_children():
        replacement = _replacement(child)
        if replacement is None:
            convert_batch_norm(child)
            continue
        assert isinstance(child, nn.BatchNorm1d | nn.BatchNorm2d)
        norm = replacement(child.num_features, child.eps, child.momentum)
        if isinstance(norm, _ActivatedGlobalBatchNorm2d):
            for part in ("drop", "act"):
                norm.add_module(part, child.get_submodule(part))
        norm.load_state_dict(child.state_dict())
        module.add_module(name, norm.train(child.training))


def _replacement(module: nn.Module) -> type[_GlobalBatchNorm] | None:
    if type(module) is nn.BatchNorm1d:
        return GlobalBatchNorm1d
    if type(module) is nn.BatchNorm2d:
        return GlobalBatchNorm2d
    # Compare names, because timm may not be installed.
    return _ActivatedGlobalBatchNorm2d if type(module).__name__ == "BatchNormAct2d" else None


@contextmanager
def frozen_statistics(module: nn.Module) -> Iterator[None]:
    """Keep batch norm from updating its running statistics inside the context; it still uses the batch's."""
    norms = [child for child in module.modules() if isinstance(child, nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True
