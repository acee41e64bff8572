"""Attention that turns its queries and keys itself, with the log-sum-exp."""

from __future__ import annotations

from torch import Tensor

from sama_kernels.dispatch import choose_backend
from sama_kernels.qk_norm_rope.rope import RopeTables
from sama_kernels.rope_attention.packing import Packing
from sama_kernels.rope_attention.reference import rope_attention_reference

__all__ = ["LARGEST_HEAD_DIM", "Packing", "rope_attention"]

LARGEST_HEAD_DIM = 128
"""Of the fused kernels; a tile of more does not fit the registers."""


def rope_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    query_rope: RopeTables | None,
    key_rope: RopeTables | None,
    packing: Packing | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Softmax attention of every query over every key, after both were turned by their tokens' angles.

    Padding at the end of a sequence is left out by passing the real tokens only: any strides are taken. Outputs and
    log-sum-exps of parts of the keys can be put together again, and gradients pass through both.

    Args:
        query: ``[B, S, h, D]``, D at most 128 for triton; with ``packing`` ``[1, all samples' queries, h, D]``.
        key: ``[B, L, h, D]``, likewise.
        value: ``[B, L, h, D]``, likewise.
        query_rope: Rotary tables whose first S tokens are the queries, or None: not turned.
        key_rope: Tables of the keys. With ``packing`` both tables count from each sample's first token.
        packing: Where samples begin that lie one after the other.
        backend: ``auto``, ``triton`` or ``reference``.

    Returns:
        ``[B, S, h, D]`` in the query's dtype, and the log-sum-exp of the scaled scores, ``[B, h, S]`` float32.

    Raises:
        ValueError: The backend does not run here, or the head is too wide for it.
    """
    if choose_backend("rope_attention", backend, query.device.type) == "triton":
        # Imported here: defining a kernel takes triton, and decides whether it is interpreted.
        from sama_kernels.rope_attention.autograd import RopeAttention

        require_head_dim(query.shape[-1])
        attended: tuple[Tensor, Tensor] = RopeAttention.apply(query, key, value, query_rope, key_rope, packing)
        return attended
    return rope_attention_reference(query, key, value, query_rope, key_rope, packing)


def require_head_dim(head_dim: int) -> None:
    """Refuses a head that the fused kernels cannot hold.

    Raises:
        ValueError: It is too wide.
    """
    if head_dim > LARGEST_HEAD_DIM:
        raise ValueError(
            f"head_dim ({head_dim}) must be at most {LARGEST_HEAD_DIM} for triton's attention: use another backend"
        )
