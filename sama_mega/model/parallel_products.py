"""Matrix products split over the tensor-parallel ranks, with their messages and their backward passes.

Shape legend: s this rank's tokens, S its group's tokens (S = s without sequence parallel), B batch.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from sama_kernels.keep import Keep


class ColumnProduct(torch.autograd.Function):
    """``x @ weight^T + bias``, the output features split over the ranks.

    Forward, sequence parallel gathers the ranks' tokens first. Backward gathers them again rather than keeping them,
    beside the product that gives the input's gradient, and sums that over the ranks (each for its own tokens under
    sequence parallel) beside the product that gives the weight's.

    Args of `apply`:
        x: ``[s, B, in]``.
        weight: ``[out / tp, in]``.
        bias: ``[out / tp]``.
        group: The tensor-parallel ranks.
        sequence_parallel: x holds this rank's tokens of the group's.
        sum_input_gradient: Whether the input's gradient is summed over the ranks where it is not sequence parallel.
        keep: Of the result.

    Returns:
        ``[S, B, out / tp]``.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        group: dist.ProcessGroup,
        sequence_parallel: bool,
        sum_input_gradient: bool,
        keep: Keep,
    ) -> Tensor:
        """See the class."""
        ctx.save_for_backward(x, weight)
        ctx.group, ctx.sequence_parallel, ctx.sum_input_gradient = group, sequence_parallel, sum_input_gradient

        def compute() -> tuple[Tensor]:
            tokens = _gather_tokens(x, group)[0] if sequence_parallel else x
            return (torch.matmul(tokens, weight.t()) + bias,)

        (output,) = keep(compute)
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """See the class."""
        (gradient,) = gradients
        x, weight = ctx.saved_tensors
        tokens, arriving = _gather_tokens(x, ctx.group, asynchronous=True) if ctx.sequence_parallel else (x, None)
        x_gradient, leaving = gradient.matmul(weight), None
        if arriving is not None:
            arriving.wait()
        if ctx.sequence_parallel:
            x_gradient, leaving = _scatter_sums(x_gradient, ctx.group, asynchronous=True)
        elif ctx.sum_input_gradient:
            leaving = dist.all_reduce(x_gradient, group=ctx.group, async_op=True)
        weight_gradient, bias_gradient = None, None
        if ctx.needs_input_grad[1]:
            weight_gradient, bias_gradient = _parameter_gradients(gradient, tokens)
        if leaving is not None:
            leaving.wait()
        return x_gradient, weight_gradient, bias_gradient, None, None, None, None


class RowProduct(torch.autograd.Function):
    """``x @ weight^T``, the input features split over the ranks and the result summed over them.

    Args of `apply`:
        x: ``[S, B, in / tp]``.
        weight: ``[out, in / tp]``.
        group: The tensor-parallel ranks.
        sequence_parallel: Each rank gets the sum for its own tokens only.
        keep: Of the result.

    Returns:
        ``[s, B, out]``.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, group: dist.ProcessGroup, sequence_parallel: bool, keep: Keep
    ) -> Tensor:
        """See the class."""
        ctx.save_for_backward(x, weight)
        ctx.group, ctx.sequence_parallel = group, sequence_parallel

        def compute() -> tuple[Tensor]:
            product = torch.matmul(x, weight.t())
            if sequence_parallel:
                return (_scatter_sums(product, group)[0],)
            if group.size() > 1:
                dist.all_reduce(product, group=group)
            return (product,)

        (output,) = keep(compute)
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """See the class."""
        (gradient,) = gradients
        x, weight = ctx.saved_tensors
        if ctx.sequence_parallel:
            gradient, _ = _gather_tokens(gradient, ctx.group)
        weight_gradient = _parameter_gradients(gradient, x, bias=False)[0] if ctx.needs_input_grad[1] else None
        return gradient.matmul(weight), weight_gradient, None, None, None


def _gather_tokens(x: Tensor, group: dist.ProcessGroup, asynchronous: bool = False) -> tuple[Tensor, dist.Work | None]:
    """``[s, ...]`` -> ``[S, ...]``, and what to wait for."""
    gathered = x.new_empty(x.shape[0] * group.size(), *x.shape[1:])
    return gathered, dist.all_gather_into_tensor(gathered, x.contiguous(), group=group, async_op=asynchronous)


def _scatter_sums(x: Tensor, group: dist.ProcessGroup, asynchronous: bool = False) -> tuple[Tensor, dist.Work | None]:
    """``[S, ...]`` -> the sum over the ranks of ``[s, ...]``, and what to wait for."""
    mine = x.new_empty(x.shape[0] // group.size(), *x.shape[1:])
    return mine, dist.reduce_scatter_tensor(mine, x.contiguous(), group=group, async_op=asynchronous)


def _parameter_gradients(gradient: Tensor, x: Tensor, bias: bool = True) -> tuple[Tensor, Tensor | None]:
    rows = gradient.reshape(-1, gradient.shape[-1])
    return rows.t().matmul(x.reshape(-1, x.shape[-1])), rows.sum(dim=0) if bias else None
