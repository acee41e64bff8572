"""Torch's own fused attention, its forward and backward operations called apart.

`scaled_dot_product_attention` would choose among the same operations and hide the log-sum-exp, without which its
backward pass cannot be run from kept results.
"""

from __future__ import annotations

import torch
from torch import Tensor

_aten = torch.ops.aten


def torch_forward(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, ...]:
    """FlashAttention for CPU, or on CUDA FlashAttention-2 (the memory-efficient kernel in float32).

    Returns:
        ``[B, S, h, D]``, the log-sum-exp ``[B, h, S]`` and what else the backward operation takes.
    """
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    if q.device.type == "cpu":
        output, *rest = _aten._scaled_dot_product_flash_attention_for_cpu(q, k, v)
    elif q.dtype == torch.float32:
        output, *rest = _aten._scaled_dot_product_efficient_attention(q, k, v, None, compute_log_sumexp=True)
    else:
        output, log_sum_exp, _, _, _, _, *random_state, _ = _aten._scaled_dot_product_flash_attention(q, k, v)
        rest = [log_sum_exp, *random_state]
    return output.transpose(1, 2), *rest


def torch_backward(
    gradient: Tensor, q: Tensor, k: Tensor, v: Tensor, output: Tensor, log_sum_exp: Tensor, *random_state: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v."""
    gradient, q, k, v, output = (x.transpose(1, 2) for x in (gradient, q, k, v, output))
    if q.device.type == "cpu":
        gradients = _aten._scaled_dot_product_flash_attention_for_cpu_backward(
            gradient, q, k, v, output, log_sum_exp, 0.0, False
        )
    elif q.dtype == torch.float32:
        bias, wanted = None, [True, True, True, False]
        gradients = _aten._scaled_dot_product_efficient_attention_backward(
            gradient, q, k, v, bias, output, log_sum_exp, *random_state, 0.0, wanted
        )
    else:
        whole = (None, None, q.shape[2], k.shape[2])
        gradients = _aten._scaled_dot_product_flash_attention_backward(
            gradient, q, k, v, output, log_sum_exp, *whole, 0.0, False, *random_state
        )
    return tuple(x.transpose(1, 2) for x in gradients[:3])  # type: ignore[return-value]
