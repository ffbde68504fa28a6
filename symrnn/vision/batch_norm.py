"""Batch norm in several processes: over their joint batch, or each over its own part of it."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from symrnn.deployment import MAKE_PLAIN


class JointBatchNorm2d(nn.BatchNorm2d):
    """``nn.BatchNorm2d`` with the mean and variance of the joint batch of all processes.

    Each process is to have as many pictures as any other. Works on every device and, unlike
    ``nn.SyncBatchNorm``, over gloo; the same arithmetic, in float32 at least.
    """

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return super().forward(input)
        world = dist.get_world_size()
        x = input.to(torch.promote_types(input.dtype, torch.float32))
        mean = _Sum.apply(x.mean((0, 2, 3))) / world
        x = x - mean.view(1, -1, 1, 1)
        variance = _Sum.apply(x.square().mean((0, 2, 3))) / world
        count = world * x.numel() // x.size(1)
        self._update_statistics(mean.detach(), variance.detach() * (count / max(count - 1, 1)))
        scale = torch.rsqrt(variance + self.eps) * self.weight
        return torch.addcmul(self.bias.view(-1, 1, 1), x, scale.view(-1, 1, 1)).to(input.dtype)

    def _update_statistics(self, mean: Tensor, variance: Tensor) -> None:
        assert self.momentum is not None
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked += 1
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum)
        self.running_var.lerp_(variance.to(self.running_var.dtype), self.momentum)


def _make_plain(part: JointBatchNorm2d) -> None:
    part.__class__ = nn.BatchNorm2d  # type: ignore[assignment]


MAKE_PLAIN[JointBatchNorm2d] = _make_plain


class _Sum(torch.autograd.Function):
    """The sum of a tensor over all processes; its gradient too, as all losses hang on the sum."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        total = tensor.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        total = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total


def synchronize_batch_norm(model: nn.Module) -> nn.Module:
    """``model`` with the batch norms of the joint batch, in place; parameters and names stay.

    On GPUs they are ``nn.SyncBatchNorm``, which is faster there; elsewhere
    :class:`JointBatchNorm2d`.
    """
    if next(model.parameters()).is_cuda:
        return nn.SyncBatchNorm.convert_sync_batchnorm(model)
    for part in model.modules():
        if type(part) is nn.BatchNorm2d:
            part.__class__ = JointBatchNorm2d
    return model


def running_statistics(model: nn.Module) -> list[Tensor]:
    """The running means and variances of a model's batch norms."""
    return [
        tensor
        for part in model.modules()
        if isinstance(part, nn.modules.batchnorm._BatchNorm)
        for tensor in (part.running_mean, part.running_var)
        if tensor is not None
    ]
