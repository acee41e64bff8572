"""What computes attention: each library's forward and backward operations, called apart.

The libraries' own functions would hide the log-sum-exp, without which no backward pass runs from kept results.
Packages are imported when they are used: `sama_kernels.attention.libraries` says beforehand what is missing.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor

from sama_kernels.attention.autograd import Backend
from sama_kernels.attention.reference import attention_reference, reference_backward

Gradients = tuple[Tensor, Tensor, Tensor]
_aten = torch.ops.aten


def _heads_first(*tensors: Tensor) -> list[Tensor]:
    """``[B, S, h, D]`` <-> ``[B, h, S, D]``."""
    return [tensor.transpose(1, 2) for tensor in tensors]


def _tokens_first(gradients: tuple[Tensor, ...]) -> Gradients:
    q, k, v = _heads_first(*gradients[:3])
    return q, k, v


def _torch_forward(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, ...]:
    """FlashAttention for CPU, or on CUDA FlashAttention-2 (the memory-efficient kernel in float32)."""
    on_cpu, heads_first = q.device.type == "cpu", _heads_first(q, k, v)
    if on_cpu:
        output, *rest = _aten._scaled_dot_product_flash_attention_for_cpu(*heads_first)
    elif q.dtype == torch.float32:
        output, *rest = _aten._scaled_dot_product_efficient_attention(*heads_first, None, True)
    else:
        output, log_sum_exp, _, _, _, _, *random_state, _ = _aten._scaled_dot_product_flash_attention(*heads_first)
        rest = [log_sum_exp, *random_state]
    return output.transpose(1, 2), *rest


def _torch_backward(
    gradient: Tensor, q: Tensor, k: Tensor, v: Tensor, output: Tensor, log_sum_exp: Tensor, *random_state: Tensor
) -> Gradients:
    given = *_heads_first(gradient, q, k, v, output), log_sum_exp
    if q.device.type == "cpu":
        return _tokens_first(_aten._scaled_dot_product_flash_attention_for_cpu_backward(*given, 0.0, False))
    if q.dtype == torch.float32:
        before_bias, after_bias = given[:4], given[4:]
        wanted = [True, True, True, False]
        return _tokens_first(
            _aten._scaled_dot_product_efficient_attention_backward(
                *before_bias, None, *after_bias, *random_state, 0.0, wanted
            )
        )
    lengths = (None, None, q.shape[1], k.shape[1])
    return _tokens_first(
        _aten._scaled_dot_product_flash_attention_backward(*given, *lengths, 0.0, False, *random_state)
    )


def _cudnn_forward(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, ...]:
    results = _aten._scaled_dot_product_cudnn_attention(*_heads_first(q, k, v), None, True)
    output, log_sum_exp, _, _, _, _, *random_state, _ = results
    return output.transpose(1, 2), log_sum_exp, *random_state


def _cudnn_backward(
    gradient: Tensor, q: Tensor, k: Tensor, v: Tensor, output: Tensor, log_sum_exp: Tensor, *random_state: Tensor
) -> Gradients:
    given = *_heads_first(gradient, q, k, v, output), log_sum_exp, *random_state
    bias, lengths = None, (None, None, q.shape[1], k.shape[1])
    return _tokens_first(_aten._scaled_dot_product_cudnn_attention_backward(*given, bias, *lengths, 0.0, False))


def _triton_forward(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, ...]:
    from sama_kernels.rope_attention import require_head_dim
    from sama_kernels.rope_attention.launch import attention_forward

    require_head_dim(q.shape[-1])
    return attention_forward(q, k, v)


def _triton_backward(
    gradient: Tensor, q: Tensor, k: Tensor, v: Tensor, output: Tensor, log_sum_exp: Tensor
) -> Gradients:
    from sama_kernels.rope_attention.launch import attention_backward

    return attention_backward(q, k, v, output, log_sum_exp, gradient, None)


def _flash4_forward(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, ...]:
    # The two functions that its own autograd function calls; the version is pinned in pyproject.toml.
    from flash_attn.cute.interface import _flash_attn_fwd

    output, log_sum_exp = _flash_attn_fwd(q, k, v, return_lse=True)[:2]
    return output, log_sum_exp


def _flash4_backward(
    gradient: Tensor, q: Tensor, k: Tensor, v: Tensor, output: Tensor, log_sum_exp: Tensor
) -> Gradients:
    from flash_attn.cute.interface import _flash_attn_bwd

    q_gradient, k_gradient, v_gradient = _flash_attn_bwd(q, k, v, output, gradient, log_sum_exp)[:3]
    return q_gradient, k_gradient, v_gradient


BACKENDS: dict[str, Backend] = {
    "flash4": Backend(_flash4_forward, _flash4_backward),
    "cudnn": Backend(_cudnn_forward, _cudnn_backward),
    "triton": Backend(_triton_forward, _triton_backward),
    "torch": Backend(_torch_forward, _torch_backward),
    "reference": Backend(attention_reference, reference_backward),
}
"""By name; Transformer Engine, which gives no log-sum-exp, stands apart."""


def transformer_engine(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Transformer Engine's attention, differentiable by itself: ``[B, S, h, D]``."""
    attend = _transformer_engine_module(q.shape[2], q.shape[3])
    mixed: Tensor = attend(q, k, v, qkv_format="bshd", attn_mask_type="no_mask")
    return mixed.unflatten(-1, q.shape[2:])


@cache
def _transformer_engine_module(heads: int, head_dim: int) -> Any:
    """Without parameters or state: one for all layers."""
    from transformer_engine.pytorch import DotProductAttention

    return DotProductAttention(heads, head_dim, attention_dropout=0.0, qkv_format="bshd", attn_mask_type="no_mask")
