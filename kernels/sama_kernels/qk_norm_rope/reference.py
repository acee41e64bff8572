"""Plain torch q/k normalisation and rotation, in float32.

Shape legend: S or L tokens, B batch, h local heads, D head dimension.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sama_kernels.qk_norm_rope.rope import RopeTables

SumOverRanks = Callable[[Tensor], object]
"""Sums a tensor over ranks, in place."""


class _SharedSum(torch.autograd.Function):
    """Sum over ranks whose result every rank uses: the gradient is therefore summed over ranks too."""

    @staticmethod
    def forward(ctx: Any, partial: Tensor, sum_over_ranks: SumOverRanks) -> Tensor:
        ctx.sum_over_ranks = sum_over_ranks
        total = partial.clone()
        sum_over_ranks(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        total = gradients[0].clone()
        ctx.sum_over_ranks(total)
        return total, None


def qk_norm_rope_reference(
    q: Tensor,
    k: Tensor,
    q_weight: Tensor,
    k_weight: Tensor,
    rope: RopeTables | None,
    full_width: int,
    eps: float,
    sum_over_ranks: SumOverRanks | None,
) -> tuple[Tensor, Tensor]:
    """See `sama_kernels.qk_norm_rope.qk_norm_rope`."""
    q_float, k_float = q.float(), k.float()
    q_squares = q_float.square().sum(dim=(-2, -1))
    k_squares = k_float.square().sum(dim=(-2, -1))
    if sum_over_ranks is not None:
        # One message for both: q and k may differ in length (cross-attention), so they travel flattened.
        both = _SharedSum.apply(torch.cat([q_squares.flatten(), k_squares.flatten()]), sum_over_ranks)
        q_total, k_total = both.split([q_squares.numel(), k_squares.numel()])
        q_squares, k_squares = q_total.view_as(q_squares), k_total.view_as(k_squares)
    q_normed = _scale(q_float, q_squares, q_weight, full_width, eps)
    k_normed = _scale(k_float, k_squares, k_weight, full_width, eps)
    if rope is not None:
        q_normed, k_normed = _rotate(q_normed, rope), _rotate(k_normed, rope)
    return q_normed.to(q.dtype).transpose(0, 1), k_normed.to(k.dtype).transpose(0, 1)


def _scale(x: Tensor, sum_of_squares: Tensor, weight: Tensor, full_width: int, eps: float) -> Tensor:
    inverse_rms = torch.rsqrt(sum_of_squares / full_width + eps)
    return x * inverse_rms[..., None, None] * weight.float().view(x.shape[-2], x.shape[-1])


def _rotate(x: Tensor, rope: RopeTables) -> Tensor:
    pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous())
    return torch.view_as_real(pairs * rope.factors[:, None, None, :]).flatten(-2)
