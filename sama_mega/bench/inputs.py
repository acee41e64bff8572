"""Weights and inputs that every contender of the layer benchmark gets alike."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sama_kernels.qk_norm_rope import RopeTables, build_rope_tables
from sama_mega.bench.shapes import ModelSize, Workload

EPS = 1e-6


@dataclass(frozen=True)
class BlockInputs:
    """What a block reads, and the gradient of what it returns.

    Attributes:
        x: ``[B, S, dim]`` residual stream.
        time_modulation: ``[B, 6, dim]`` float32 (float64 in the exact run).
        text: ``[B, L, dim]`` embedded text.
        upstream: ``[B, S, dim]``.
    """

    x: Tensor
    time_modulation: Tensor
    text: Tensor
    upstream: Tensor


def draw_weights(size: ModelSize, device: torch.device) -> dict[str, Tensor]:
    """One block's weights under the released checkpoint's names, float32.

    Every part of the block changes what comes out: matrices are scaled by fan-in, modulation and norms of order one.
    """
    generator = torch.Generator(device).manual_seed(1)

    def normal(*shape: int, scale: float) -> Tensor:
        return torch.randn(*shape, generator=generator, device=device) * scale

    dim, weights = size.dim, {}
    for attention in ("self_attn", "cross_attn"):
        for part in "qkvo":
            weights[f"{attention}.{part}.weight"] = normal(dim, dim, scale=dim**-0.5)
            weights[f"{attention}.{part}.bias"] = normal(dim, scale=0.1)
        for norm in ("norm_q", "norm_k"):
            weights[f"{attention}.{norm}.weight"] = 1 + normal(dim, scale=0.1)
    weights["norm3.weight"], weights["norm3.bias"] = 1 + normal(dim, scale=0.1), normal(dim, scale=0.1)
    for layer, rows, columns in (("ffn.0", size.ffn_dim, dim), ("ffn.2", dim, size.ffn_dim)):
        weights[f"{layer}.weight"] = normal(rows, columns, scale=columns**-0.5)
        weights[f"{layer}.bias"] = normal(rows, scale=0.1)
    weights["modulation"] = normal(1, 6, dim, scale=0.3)
    return weights


def draw_inputs(size: ModelSize, work: Workload, device: torch.device, dtype: torch.dtype) -> BlockInputs:
    """Standard normal inputs, the same for the same arguments."""
    generator = torch.Generator(device).manual_seed(2)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, device=device)

    stream = (work.batch, work.num_tokens, size.dim)
    x, modulation = normal(*stream).to(dtype), 0.3 * normal(work.batch, 6, size.dim)
    text = normal(work.batch, size.text_length, size.dim).to(dtype)
    return BlockInputs(x, modulation, text, normal(*stream).to(dtype))


def draw_rotation(size: ModelSize, work: Workload, device: torch.device) -> Tensor:
    """Rotary factors ``[S, head_dim / 2]`` complex128 of [source | semantic | target], semantic ones zero."""
    spatial = 2 * (size.head_dim // 6)
    widths = (size.head_dim - 2 * spatial, spatial, spatial)
    axes = []
    for axis, (positions, width) in enumerate(zip(work.grid, widths, strict=True)):
        frequencies = 10000.0 ** (-torch.arange(0, width, 2, device=device, dtype=torch.float64) / width)
        angles = torch.arange(positions, device=device, dtype=torch.float64)[:, None] * frequencies
        shape = [1, 1, 1, width // 2]
        shape[axis] = positions
        axes.append(torch.polar(torch.ones_like(angles), angles).view(shape).expand(*work.grid, -1))
    segment = torch.cat(axes, dim=-1).flatten(0, 2)
    return torch.cat([segment, segment.new_zeros(work.num_semantic, segment.shape[1]), segment])


def rope_tables(size: ModelSize, work: Workload, device: torch.device) -> RopeTables:
    """The same rotation as this project's operations take it."""
    return build_rope_tables(
        size.head_dim,
        work.grid,
        work.num_semantic,
        work.grid,
        source_time_offset=0,
        rotate_semantic_to_zero=True,
        first_token=0,
        num_tokens=work.num_tokens,
        device=device,
    )
