"""Floating-point operations of a block, as every row of the layer benchmark counts them."""

from __future__ import annotations

from sama_mega.bench.shapes import ModelSize, Workload

FORMULA = (
    "gemms 2 B (S (6 d^2 + 2 d f) + 2 L d^2), attention 4 B S d (S + L); "
    "backward 2 times the gemms and 2.5 times the attention; what recompute repeats is not counted"
)


def gemm_flops(size: ModelSize, work: Workload) -> int:
    """Of the forward pass: qkv and output of self-attention, q and output and k, v of cross-attention, feed-forward."""
    per_token = 6 * size.dim**2 + 2 * size.dim * size.ffn_dim
    return 2 * work.batch * (work.num_tokens * per_token + 2 * size.text_length * size.dim**2)


def attention_flops(size: ModelSize, work: Workload) -> int:
    """Of the forward pass, both attentions: scores and weighted sums."""
    return 4 * work.batch * work.num_tokens * size.dim * (work.num_tokens + size.text_length)


def block_flops(size: ModelSize, work: Workload) -> float:
    """Forward and backward."""
    return 3 * gemm_flops(size, work) + 3.5 * attention_flops(size, work)
