"""Batch norm over the coupling group: all rows of a micro step, whichever rank holds them.

torch's SyncBatchNorm refuses CPU tensors; this one runs on gloo and nccl alike. Running statistics
come out equal on all ranks.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from pretrain.collectives.gather import gather_constant, world_size


class GroupBatchNorm(_BatchNorm):
    """Drop-in for BatchNorm1d and 2d; same parameters, buffers and names."""

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"want (B, C, ...), got {[*input.shape]}")

    def forward(self, input: Tensor) -> Tensor:
        """Normalise each channel of (B, C, ...) over rows, places and ranks."""
        self._check_input_dim(input)
        if not self.training or world_size() == 1:
            return self._alone(input)
        output, mean, variance, count = _Normalize.apply(input, self.weight, self.bias, self.eps)
        self._update(mean, variance, count)
        return output

    def _alone(self, input: Tensor) -> Tensor:
        """torch's own batch norm, in fp32: running statistics stay so beside weights that ZeRO keeps in bf16."""
        by_batch = self.training or self.running_mean is None
        if self.training and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
        share = self._share() if by_batch and self.running_mean is not None else 0.0
        weight, bias = (None if each is None else each.float() for each in (self.weight, self.bias))
        output = F.batch_norm(
            input.float(), self.running_mean, self.running_var, weight, bias, by_batch, share, self.eps
        )
        return output.to(input.dtype)

    def _share(self) -> float:
        """Weight of the newest batch in the running statistics."""
        if self.momentum is not None:
            return self.momentum
        assert self.num_batches_tracked is not None
        return 1 / int(self.num_batches_tracked)

    @torch.no_grad()
    def _update(self, mean: Tensor, variance: Tensor, count: Tensor) -> None:
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked.add_(1)
        share = self._share()
        unbiased = variance * (count / (count - 1))
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), share)
        self.running_var.lerp_(unbiased.to(self.running_var.dtype), share)


def couple_batch_norms(module: nn.Module) -> nn.Module:
    """Replace every batch norm inside `module` by one over all ranks, parameters and buffers kept."""
    if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
        coupled = GroupBatchNorm(module.num_features, module.eps, module.momentum, module.affine)
        coupled.__dict__.update(module.__dict__)
        return coupled
    for name, child in module.named_children():
        module.add_module(name, couple_batch_norms(child))
    return module


class _Normalize(torch.autograd.Function):
    """Saves input, mean and scale only; both directions make one exchange of O(C) numbers."""

    @staticmethod
    def forward(
        ctx: Any, input: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        mean, variance, count = _statistics(input)
        inverse_std = (variance + eps).rsqrt()
        ctx.save_for_backward(input, weight, mean, inverse_std, count)
        ctx.mark_non_differentiable(mean, variance, count)
        output = (input.float() - _wide(mean, input)) * _wide(inverse_std, input)
        if weight is not None and bias is not None:
            output = output * _wide(weight.float(), input) + _wide(bias.float(), input)
        return output.to(input.dtype), mean, variance, count

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None, None]:
        input, weight, mean, inverse_std, count = ctx.saved_tensors
        gradient = gradients[0].float()
        normalised = (input.float() - _wide(mean, input)) * _wide(inverse_std, input)
        own_sums = torch.stack([gradient.sum(_others(input)), (gradient * normalised).sum(_others(input))])
        sums = own_sums.clone()
        dist.all_reduce(sums)
        mean_gradient, mean_product = sums / count
        centred = gradient - _wide(mean_gradient, input) - normalised * _wide(mean_product, input)
        scale = inverse_std if weight is None else inverse_std * weight.float()
        into_input = (centred * _wide(scale, input)).to(input.dtype)
        if weight is None:
            return into_input, None, None, None
        # parameter gradients stay this rank's: the engine averages those itself
        return into_input, own_sums[1].to(weight.dtype), own_sums[0].to(weight.dtype), None


def _statistics(input: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean (C,), biased variance (C,) and count () over all ranks, by Chan's pairwise formula."""
    own_variance, own_mean = torch.var_mean(input.float(), dim=_others(input), correction=0)
    own_count = own_mean.new_full((1, 1), input.numel() / input.shape[1])
    rows = torch.cat([own_mean[None], own_variance[None], own_count.expand(1, len(own_mean))])
    means, variances, counts = gather_constant(rows[None]).unbind(dim=1)  # (W, C) each
    count = counts[:, 0].sum()
    mean = (means * counts).sum(0) / count
    variance = ((variances + (means - mean).square()) * counts).sum(0) / count
    return mean, variance, count


def _others(input: Tensor) -> list[int]:
    """All axes but the channels'."""
    return [axis for axis in range(input.dim()) if axis != 1]


def _wide(vector: Tensor, like: Tensor) -> Tensor:
    """(C,) as (1, C, 1, ...)."""
    return vector.view(1, -1, *([1] * (like.dim() - 2)))
