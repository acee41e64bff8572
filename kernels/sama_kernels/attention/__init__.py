"""Non-causal attention behind one function, whatever computes it."""

from __future__ import annotations

from torch import Tensor

from sama_kernels.attention.autograd import Attention
from sama_kernels.attention.backends import BACKENDS, transformer_engine
from sama_kernels.attention.libraries import unavailable
from sama_kernels.dispatch import choose_backend
from sama_kernels.keep import Keep, compute_now

__all__ = ["attention", "unavailable"]


def attention(q: Tensor, k: Tensor, v: Tensor, *, backend: str = "auto", keep: Keep = compute_now) -> Tensor:
    """Softmax attention of every query over every key, without mask or dropout.

    Args:
        q: ``[B, S, h, D]``; S may be 0.
        k: ``[B, L, h, D]``.
        v: ``[B, L, h, D]``.
        backend: ``flash4`` (FlashAttention-4), ``cudnn`` (cuDNN through torch), ``te`` (Transformer Engine), ``triton``
            (`sama_kernels.rope_attention`), ``torch`` (its FlashAttention), ``reference`` (written out, float32), or
            ``auto``: torch; see `sama_kernels.dispatch.choose_backend`.
        keep: Of the result and what the backward pass needs of it, where the forward pass will be repeated. Transformer
            Engine hides that: it attends again.

    Returns:
        ``[B, S, h, D]`` in q's dtype.

    Raises:
        ValueError: The backend cannot run here; says what is missing.
    """
    chosen = choose_backend("attention", backend, q.device.type)
    reason = unavailable(chosen, q.device, q.dtype)
    if reason is not None:
        raise ValueError(reason)
    if q.shape[1] == 0:
        # A context rank may hold nothing but padding; fused kernels divide by the number of queries.
        chosen = "reference"
    if chosen == "te":
        return transformer_engine(q, k, v)
    output: Tensor = Attention.apply(q, k, v, BACKENDS[chosen], keep)
    return output
