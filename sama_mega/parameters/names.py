"""Our parameter names and the released checkpoint's, one table for both directions.

Two things differ: a few module names, and the fused attention projections, whose rows are ordered head by head
(q, k, v of head 0, then of head 1, ...) so that a tensor-parallel slice is a plain range of rows.
"""

from __future__ import annotations

import re

_RENAMED = {
    "text_embedding.linear_in": "text_embedding.0",
    "text_embedding.linear_out": "text_embedding.2",
    "time_embedding.linear_in": "time_embedding.0",
    "time_embedding.linear_out": "time_embedding.2",
    "time_embedding.projection": "time_projection.1",
    "ffn.linear_in": "ffn.0",
    "ffn.linear_out": "ffn.2",
}
_FUSED = {"self_attn.linear_qkv": ("q", "k", "v"), "cross_attn.linear_kv": ("k", "v")}
_OURS = {released: ours for ours, released in _RENAMED.items()}
_PLACES = {
    f"{ours.partition('.')[0]}.{part}": (ours, index, len(parts))
    for ours, parts in _FUSED.items()
    for index, part in enumerate(parts)
}
_BLOCK = re.compile(r"^(blocks\.\d+\.)(.*)$")


def released_names(name: str) -> tuple[str, ...]:
    """Names in the released checkpoint of one parameter of ours; several for a fused projection.

    Args:
        name: For example ``blocks.3.self_attn.linear_qkv.weight``.

    Returns:
        For example ``("blocks.3.self_attn.q.weight", "...k.weight", "...v.weight")``.

    Source: ``syxbb/SAMA-14B`` and Cynthiazxy123/SAMA@5c6bb5b.
    """
    block = _BLOCK.match(name)
    prefix, inner = (block.group(1), block.group(2)) if block else ("", name)
    module, _, kind = inner.rpartition(".")
    if module in _FUSED:
        attention = module.partition(".")[0]
        return tuple(f"{prefix}{attention}.{part}.{kind}" for part in _FUSED[module])
    return (f"{prefix}{_RENAMED.get(module, module)}.{kind}" if module else name,)


def our_place(released: str) -> tuple[str, int, int]:
    """Undoes `released_names`: where a tensor of the released checkpoint lies in ours.

    Returns:
        Our name, which part of a fused projection it is, and of how many: 0 of 1 where nothing is fused.
    """
    block = _BLOCK.match(released)
    prefix, inner = (block.group(1), block.group(2)) if block else ("", released)
    module, _, kind = inner.rpartition(".")
    if block and module in _PLACES:
        ours, index, num_parts = _PLACES[module]
        return f"{prefix}{ours}.{kind}", index, num_parts
    return (f"{prefix}{_OURS.get(module, module)}.{kind}" if module else released), 0, 1
