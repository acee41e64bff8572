"""Flash attention over turned q and k as one differentiable operation; keeps q, k, v, output and log-sum-exp."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sama_kernels.qk_norm_rope.rope import RopeTables
from sama_kernels.rope_attention.launch import attention_backward, attention_forward, turned
from sama_kernels.rope_attention.packing import Packing


class RopeAttention(torch.autograd.Function):
    """See `sama_kernels.rope_attention.rope_attention`."""

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        query_rope: RopeTables | None,
        key_rope: RopeTables | None,
        packing: Packing | None,
    ) -> tuple[Tensor, Tensor]:
        """Keys are turned once, before; queries once a tile, inside."""
        output, log_sum_exp = attention_forward(
            query, _turned_keys(key, key_rope, packing), value, rope=query_rope, packing=packing
        )
        ctx.save_for_backward(query, key, value, output, log_sum_exp)
        ctx.query_rope, ctx.key_rope, ctx.packing = query_rope, key_rope, packing
        ctx.set_materialize_grads(False)
        return output, log_sum_exp

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        """Turns q and k again, which costs less than keeping them; gradients are turned back as they are written."""
        query, key, value, output, log_sum_exp = ctx.saved_tensors
        output_gradient, lse_gradient = gradients
        if output_gradient is None:
            output_gradient = torch.zeros_like(output)
        packing: Packing | None = ctx.packing
        turned_query = turned(query, ctx.query_rope, packing) if ctx.query_rope else query
        return (
            *attention_backward(
                turned_query,
                _turned_keys(key, ctx.key_rope, packing),
                value,
                output,
                log_sum_exp,
                output_gradient,
                lse_gradient,
                query_rope=ctx.query_rope,
                key_rope=ctx.key_rope,
                packing=packing,
            ),
            None,
            None,
            None,
        )


def _turned_keys(key: Tensor, rope: RopeTables | None, packing: Packing | None) -> Tensor:
    return turned(key, rope, packing and packing.keys_as_queries) if rope else key
