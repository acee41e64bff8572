"""Non-causal attention behind one function, whatever computes it."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from sama_kernels.attention.libraries import unavailable
from sama_kernels.attention.reference import attention_reference
from sama_kernels.dispatch import choose_backend

__all__ = ["attention", "attention_with_lse", "unavailable"]


def attention(q: Tensor, k: Tensor, v: Tensor, *, backend: str = "auto") -> Tensor:
    """Softmax attention of every query over every key, without mask or dropout.

    Args:
        q: ``[B, S, h, D]``.
        k: ``[B, L, h, D]``.
        v: ``[B, L, h, D]``.
        backend: ``flash4`` (FlashAttention-4), ``cudnn`` (cuDNN through torch), ``te`` (Transformer Engine), ``triton``
            (`sama_kernels.rope_attention`), ``torch`` (scaled_dot_product_attention, which chooses for itself),
            ``reference`` (written out, float32), or ``auto``: torch; see `sama_kernels.dispatch.choose_backend`.

    Returns:
        ``[B, S, h, D]`` in q's dtype.

    Raises:
        ValueError: The backend cannot run here; says what is missing.
    """
    chosen = _available(backend, q)
    if chosen == "reference":
        return attention_reference(q, k, v)[0]
    if chosen in ("triton", "flash4"):
        return _flash_attention(q, k, v, chosen)[0]
    if chosen == "te":
        return _transformer_engine(q, k, v)
    if chosen == "cudnn":
        with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
            return _scaled_dot_product(q, k, v)
    return _scaled_dot_product(q, k, v)


def attention_with_lse(q: Tensor, k: Tensor, v: Tensor, *, backend: str = "auto") -> tuple[Tensor, Tensor]:
    """`attention` with the log-sum-exp of each query's scores, which parts of the keys are put together by.

    Args:
        q: ``[B, S, h, D]``.
        k: ``[B, L, h, D]``.
        v: ``[B, L, h, D]``.
        backend: As for `attention`, but ``te``, which returns none. Through the log-sum-exp of ``flash4``, ``triton``
            and ``reference`` gradients pass; that of ``cudnn`` and ``torch`` is a number.

    Returns:
        ``[B, S, h, D]`` in q's dtype, and ``[B, h, S]`` float32.

    Raises:
        ValueError: The backend cannot run here, or returns no log-sum-exp.
    """
    chosen = _available(backend, q)
    if chosen == "te":
        raise ValueError("'te' returns no log-sum-exp: use flash4, cudnn, triton, torch or reference")
    if chosen == "reference":
        return attention_reference(q, k, v)
    if chosen in ("triton", "flash4"):
        return _flash_attention(q, k, v, chosen)
    heads_first = [x.transpose(1, 2) for x in (q, k, v)]
    if chosen == "cudnn":
        results = torch.ops.aten._scaled_dot_product_cudnn_attention(*heads_first, None, True)
    elif q.is_cuda:
        results = torch.ops.aten._scaled_dot_product_flash_attention(*heads_first)
    else:
        results = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(*heads_first)
    lse = results[1].detach().float()
    return results[0].transpose(1, 2), lse.reshape(lse.shape[:3])


def _available(backend: str, q: Tensor) -> str:
    chosen = choose_backend("attention", backend, q.device.type)
    reason = unavailable(chosen, q.device, q.dtype)
    if reason is not None:
        raise ValueError(reason)
    return chosen


def _scaled_dot_product(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)).transpose(1, 2)


def _flash_attention(q: Tensor, k: Tensor, v: Tensor, library: str) -> tuple[Tensor, Tensor]:
    # Imported here: registers an operation, and triton's kernels with it.
    from sama_kernels.attention.operation import flash_attention

    if library == "triton":
        from sama_kernels.rope_attention import require_head_dim

        require_head_dim(q.shape[-1])
    results: tuple[Tensor, Tensor] = flash_attention(q, k, v, library)
    return results


def _transformer_engine(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    attend = _transformer_engine_module(q.shape[2], q.shape[3])
    mixed: Tensor = attend(q, k, v, qkv_format="bshd", attn_mask_type="no_mask")
    return mixed.unflatten(-1, q.shape[2:])


@cache
def _transformer_engine_module(heads: int, head_dim: int) -> Any:
    """Without parameters or state: one for all layers."""
    from transformer_engine.pytorch import DotProductAttention

    return DotProductAttention(heads, head_dim, attention_dropout=0.0, qkv_format="bshd", attn_mask_type="no_mask")
