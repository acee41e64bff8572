"""Non-causal attention behind one function, whatever computes it."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from sama_kernels.attention.reference import attention_reference
from sama_kernels.dispatch import choose_backend


def attention(q: Tensor, k: Tensor, v: Tensor, *, backend: str = "auto") -> Tensor:
    """Softmax attention of every query over every key, without mask or dropout.

    Args:
        q: ``[B, S, h, D]``.
        k: ``[B, L, h, D]``.
        v: ``[B, L, h, D]``.
        backend: ``auto``, ``torch`` (scaled_dot_product_attention) or ``reference`` (written out, float32).

    Returns:
        ``[B, S, h, D]`` in q's dtype.
    """
    if choose_backend("attention", backend, q.device.type) == "reference":
        return attention_reference(q, k, v)[0]
    return scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)).transpose(1, 2)
