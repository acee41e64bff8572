"""Layer norm and modulation with Triton, differentiable."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sama_kernels.adaln.kernel import norm_backward, norm_forward
from sama_kernels.row_tiles import add_up, plan_rows, sample_stride, with_dense_rows


def adaln_triton(x: Tensor, shift: Tensor, scale: Tensor, eps: float) -> Tensor:
    """See `sama_kernels.adaln.adaln`."""
    modulated: Tensor = _Norm.apply(x, scale, shift, 1.0, eps)
    return modulated


def layer_norm_triton(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """See `sama_kernels.adaln.layer_norm`."""
    normed: Tensor = _Norm.apply(x, weight, bias, 0.0, eps)
    return normed


class _Norm(torch.autograd.Function):
    """n * (added + multiplier) + offset; both ``[B, W]``, or ``[W]`` for all samples, of one dtype."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, multiplier: Tensor, offset: Tensor, added: float, eps: float) -> Tensor:
        x, multiplier, offset = with_dense_rows(x), with_dense_rows(multiplier), with_dense_rows(offset)
        y = x.new_empty(x.shape)
        statistics = x.new_empty(*x.shape[:2], 2, dtype=torch.float32)
        if x.numel():
            plan = plan_rows(x, num_read=1)
            norm_forward[plan.grid](
                x,
                multiplier,
                offset,
                y,
                statistics,
                *x.shape[:2],
                *x.stride()[:2],
                sample_stride(multiplier),
                sample_stride(offset),
                eps,
                ADDED=added,
                **plan.options,
            )
        ctx.save_for_backward(x, multiplier, statistics)
        ctx.added = added
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        x, multiplier, statistics = ctx.saved_tensors
        if not x.numel():
            nothing = torch.zeros_like(multiplier)
            return torch.zeros_like(x), nothing, nothing, None, None
        dy, dx = with_dense_rows(gradients[0]), x.new_empty(x.shape)
        plan = plan_rows(x, num_read=2)
        sums = x.new_empty(plan.batch, plan.programs, 2, x.shape[-1], dtype=torch.float32)
        norm_backward[plan.grid](
            dy,
            x,
            statistics,
            multiplier,
            dx,
            sums,
            *x.shape[:2],
            *dy.stride()[:2],
            *x.stride()[:2],
            sample_stride(multiplier),
            ADDED=ctx.added,
            **plan.options,
        )
        d_offset, d_multiplier = (add_up(part, multiplier) for part in sums.unbind(2))
        return dx, d_multiplier, d_offset, None, None
