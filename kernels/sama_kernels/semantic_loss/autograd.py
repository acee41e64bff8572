"""The semantic head and its L1 error: norm and error with Triton, the projection by torch, differentiable."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

from sama_kernels.adaln.autograd import layer_norm_triton
from sama_kernels.row_tiles import plan_rows, with_dense_rows
from sama_kernels.semantic_loss.kernel import absolute_error_forward


def semantic_head_triton(
    hidden: Tensor, norm_weight: Tensor, norm_bias: Tensor, weight: Tensor, bias: Tensor, eps: float
) -> Tensor:
    """See `sama_kernels.semantic_loss.semantic_head`."""
    return linear(layer_norm_triton(hidden, norm_weight, norm_bias, eps), weight, bias)


def absolute_error_triton(predicted: Tensor, target: Tensor) -> Tensor:
    """Sums of absolute errors ``[B]`` float32 of ``[M, B, F]`` predictions in any dtype."""
    sums: Tensor = _AbsoluteError.apply(predicted, target)
    return sums


class _AbsoluteError(torch.autograd.Function):
    """Keeps one byte an error: its sign is all that the gradient needs."""

    @staticmethod
    def forward(ctx: Any, predicted: Tensor, target: Tensor) -> Tensor:
        predicted, target = with_dense_rows(predicted), with_dense_rows(target)
        signs = predicted.new_empty(predicted.shape, dtype=torch.int8)
        ctx.save_for_backward(signs)
        ctx.dtypes = predicted.dtype, target.dtype
        if not predicted.numel():
            return predicted.new_zeros(predicted.shape[1], dtype=torch.float32)
        plan = plan_rows(predicted, num_read=2)
        partial_sums = predicted.new_empty(plan.batch, plan.programs, dtype=torch.float32)
        absolute_error_forward[plan.grid](
            predicted,
            target,
            signs,
            partial_sums,
            *predicted.shape[:2],
            *predicted.stride()[:2],
            *target.stride()[:2],
            **plan.options,
        )
        return partial_sums.sum(1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None]:
        (signs,) = ctx.saved_tensors
        wanted, dtypes = ctx.needs_input_grad, ctx.dtypes
        upstream = gradients[0][:, None]
        d_predicted = signs * upstream.to(dtypes[0]) if wanted[0] else None
        d_target = -signs * upstream.to(dtypes[1]) if wanted[1] else None
        return d_predicted, d_target
