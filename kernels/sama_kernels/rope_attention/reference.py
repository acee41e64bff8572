"""Rotation and attention written out, in float32."""

from __future__ import annotations

import torch
from torch import Tensor

from sama_kernels.attention.reference import attention_reference
from sama_kernels.qk_norm_rope.rope import RopeTables
from sama_kernels.rope_attention.packing import Packing


def rope_attention_reference(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    query_rope: RopeTables | None,
    key_rope: RopeTables | None,
    packing: Packing | None,
) -> tuple[Tensor, Tensor]:
    """See `sama_kernels.rope_attention.rope_attention`; materialises the scores."""
    if packing is None:
        return attention_reference(_turned(query, query_rope), _turned(key, key_rope), value)
    queries = _samples(query, packing.query_starts)
    keys, values = _samples(key, packing.key_starts), _samples(value, packing.key_starts)
    results = [
        attention_reference(_turned(q, query_rope), _turned(k, key_rope), v)
        for q, k, v in zip(queries, keys, values, strict=True)
    ]
    outputs, sums = zip(*results, strict=True)
    return torch.cat(outputs, dim=1), torch.cat(sums, dim=2)


def _samples(x: Tensor, starts: Tensor) -> tuple[Tensor, ...]:
    return x.split(starts.diff().tolist(), dim=1)


def _turned(x: Tensor, rope: RopeTables | None) -> Tensor:
    """``[B, S, h, D]``; rounded to x's dtype, as what the matrix products take."""
    if rope is None:
        return x
    pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)).contiguous())
    factors = rope.factors[: x.shape[1], None]
    return torch.view_as_real(pairs * factors).flatten(-2).to(x.dtype)
