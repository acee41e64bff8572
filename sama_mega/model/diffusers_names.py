"""The released checkpoint's names and those of diffusers' `WanTransformer3DModel`, one table for both directions.

Wan2.1's own files use the released names without SAMA's parts; diffusers knows the same tensors, with the same shapes,
under names of its own. SAMA's parts have no name there.
"""

from __future__ import annotations

import re

_OUTSIDE_BLOCKS = {
    "patch_embedding": "patch_embedding",
    "text_embedding.0": "condition_embedder.text_embedder.linear_1",
    "text_embedding.2": "condition_embedder.text_embedder.linear_2",
    "time_embedding.0": "condition_embedder.time_embedder.linear_1",
    "time_embedding.2": "condition_embedder.time_embedder.linear_2",
    "time_projection.1": "condition_embedder.time_proj",
    "head.head": "proj_out",
}
_INSIDE_BLOCKS = {
    **{f"self_attn.{part}": f"attn1.to_{part}" for part in "qkv"},
    "self_attn.o": "attn1.to_out.0",
    "self_attn.norm_q": "attn1.norm_q",
    "self_attn.norm_k": "attn1.norm_k",
    **{f"cross_attn.{part}": f"attn2.to_{part}" for part in "qkv"},
    "cross_attn.o": "attn2.to_out.0",
    "cross_attn.norm_q": "attn2.norm_q",
    "cross_attn.norm_k": "attn2.norm_k",
    "norm3": "norm2",  # the affine norm before cross-attention: diffusers' norm3 has no weights
    "ffn.0": "ffn.net.0.proj",
    "ffn.2": "ffn.net.2",
}
_MODULATION = {"modulation": "scale_shift_table", "head.modulation": "scale_shift_table"}
_BLOCK = re.compile(r"^(blocks\.\d+\.)(.*)$")


def diffusers_name(released: str) -> str | None:
    """The name in diffusers of one tensor of the released checkpoint; None for SAMA's own parts.

    Args:
        released: For example ``blocks.3.cross_attn.o.bias``.

    Returns:
        For example ``blocks.3.attn2.to_out.0.bias``.

    Source: ``WanTransformer3DModel`` of diffusers 0.42.
    """
    return _translate(released, _MODULATION, _INSIDE_BLOCKS, _OUTSIDE_BLOCKS)


def released_name_of_diffusers(name: str) -> str | None:
    """Undoes `diffusers_name`; None for a name that the table does not hold."""
    inside = name.startswith("blocks.")
    modulation = {"scale_shift_table": "modulation" if inside else "head.modulation"}
    return _translate(name, modulation, _turned(_INSIDE_BLOCKS), _turned(_OUTSIDE_BLOCKS))


def _translate(
    name: str, modulation: dict[str, str], inside_blocks: dict[str, str], outside_blocks: dict[str, str]
) -> str | None:
    block = _BLOCK.match(name)
    prefix, inner = (block.group(1), block.group(2)) if block else ("", name)
    if inner in modulation:
        return prefix + modulation[inner]
    module, _, kind = inner.rpartition(".")
    other = (inside_blocks if block else outside_blocks).get(module)
    return None if other is None else f"{prefix}{other}.{kind}"


def _turned(table: dict[str, str]) -> dict[str, str]:
    return {value: key for key, value in table.items()}
