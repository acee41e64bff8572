"""Attention of libraries that torch does not know, as one operation that it does: `sama_kernels::flash_attention`.

As an operation of torch's, selective recomputation sees it and can keep its output and log-sum-exp.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


@torch.library.custom_op("sama_kernels::flash_attention", mutates_args=())
def flash_attention(query: Tensor, key: Tensor, value: Tensor, library: str) -> tuple[Tensor, Tensor]:
    """Runs a library's attention.

    Args:
        query: ``[B, S, h, D]``.
        key: ``[B, L, h, D]``.
        value: ``[B, L, h, D]``.
        library: ``triton`` or ``flash4``, available.

    Returns:
        ``[B, S, h, D]`` and the log-sum-exp ``[B, h, S]`` float32.
    """
    if library == "triton":
        from sama_kernels.rope_attention.launch import attention_forward

        return attention_forward(query, key, value)
    # The two functions that its own autograd function calls; the version is pinned in pyproject.toml.
    from flash_attn.cute.interface import _flash_attn_fwd

    output, log_sum_exp = _flash_attn_fwd(query, key, value, return_lse=True)[:2]
    return output, log_sum_exp


@flash_attention.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, library: str) -> tuple[Tensor, Tensor]:
    batch, queries, heads, _ = query.shape
    return query.new_empty(query.shape), query.new_empty((batch, heads, queries), dtype=torch.float32)


def _keep(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor, str], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs[:3], *output)
    ctx.library = inputs[3]
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, gradient: Tensor | None, lse_gradient: Tensor | None) -> tuple[Tensor | None, ...]:
    query, key, value, output, log_sum_exp = ctx.saved_tensors
    if gradient is None:
        gradient = torch.zeros_like(output)
    if ctx.library == "triton":
        from sama_kernels.rope_attention.launch import attention_backward

        return *attention_backward(query, key, value, output, log_sum_exp, gradient, lse_gradient), None
    from flash_attn.cute.interface import _flash_attn_bwd

    dq, dk, dv = _flash_attn_bwd(query, key, value, output, gradient, log_sum_exp, dlse=lse_gradient)[:3]
    return dq, dk, dv, None


flash_attention.register_autograd(_backward, setup_context=_keep)
