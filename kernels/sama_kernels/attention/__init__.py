"""Non-causal attention behind one function, whatever computes it."""

from __future__ import annotations

from torch import Tensor

from sama_kernels.attention.autograd import Attention, Backend
from sama_kernels.attention.reference import reference_backward, reference_forward
from sama_kernels.attention.torch_backend import torch_backward, torch_forward
from sama_kernels.dispatch import choose_backend
from sama_kernels.keep import Keep, compute_now

__all__ = ["Backend", "attention"]

_BACKENDS = {
    "reference": Backend(reference_forward, reference_backward),
    "torch": Backend(torch_forward, torch_backward),
}


def attention(q: Tensor, k: Tensor, v: Tensor, *, backend: str = "auto", keep: Keep = compute_now) -> Tensor:
    """Softmax attention of every query over every key, without mask or dropout.

    Args:
        q: ``[B, S, h, D]``; S may be 0.
        k: ``[B, L, h, D]``.
        v: ``[B, L, h, D]``.
        backend: ``auto``, ``torch`` (its fused kernels) or ``reference`` (written out, float32).
        keep: Of the result and what the backward pass needs of it, where the forward pass will be repeated.

    Returns:
        ``[B, S, h, D]`` in q's dtype.
    """
    chosen = choose_backend("attention", backend, q.device.type)
    if q.shape[1] == 0:
        # A context rank may hold nothing but padding; fused kernels divide by the number of queries.
        chosen = "reference"
    output: Tensor = Attention.apply(q, k, v, _BACKENDS[chosen], keep)
    return output
