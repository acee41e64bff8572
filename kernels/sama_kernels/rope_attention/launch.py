"""Starts the flash attention kernels: tile sizes, tensor descriptors, grids.

Shape legend: S queries, L keys, B samples (n packed ones), h heads, D head dimension.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from sama_kernels.dispatch import interpreting
from sama_kernels.qk_norm_rope.rope import RopeTables
from sama_kernels.qk_norm_rope.rotation import rope_arguments
from sama_kernels.rope_attention.kernel import (
    LOG2_E,
    Shape,
    forward_kernel,
    key_value_gradient_kernel,
    prepare_kernel,
    query_gradient_kernel,
    rotate_kernel,
)
from sama_kernels.rope_attention.packing import Packing


@dataclass(frozen=True)
class Tile:
    """Queries and keys of a tile, warps of a program, tiles of the inner loop in flight."""

    queries: int
    keys: int
    warps: int
    stages: int


_TURNED_TOKENS = 32
"""Tokens of a program that turns: their factors are read once for all heads."""


def _tiles(element_bytes: int) -> tuple[Tile, Tile, Tile]:
    """For forward, for dK with dV, and for dQ."""
    if interpreting():
        return Tile(64, 64, 4, 1), Tile(32, 64, 4, 1), Tile(64, 32, 4, 1)
    if element_bytes == 4:
        # Not on the tensor cores: for checks, not for speed.
        return Tile(64, 32, 4, 1), Tile(32, 32, 4, 1), Tile(32, 32, 4, 1)
    return Tile(128, 128, 8, 3), Tile(64, 128, 8, 3), Tile(128, 64, 8, 3)


def takes_descriptors(tensors: Sequence[Tensor], dim: int) -> bool:
    """Whether tiles come through tensor descriptors: on Hopper, from what its copy engine can address."""
    first = tensors[0]
    if interpreting() or not first.is_cuda or torch.cuda.get_device_capability(first.device)[0] != 9:
        return False
    return all(
        tensor.element_size() == 2
        and tensor.shape[-1] == dim
        and tensor.data_ptr() % 16 == 0
        and all(stride % 8 == 0 for stride in tensor.stride()[:-1])
        for tensor in tensors
    )


@dataclass(frozen=True)
class _Launch:
    """What the kernels of one call share."""

    head_dim: int
    dim: int
    packing: Packing | None
    rope: RopeTables | None
    widen: bool
    descriptors: bool

    @classmethod
    def plan(cls, tensors: Sequence[Tensor], packing: Packing | None, rope: RopeTables | None) -> _Launch:
        head_dim = tensors[0].shape[-1]
        dim = max(16, triton.next_power_of_2(head_dim))
        widen = interpreting() and tensors[0].dtype == torch.bfloat16
        descriptors = packing is None and not widen and takes_descriptors(tensors, dim)
        return cls(head_dim, dim, packing, rope, widen, descriptors)

    def shape(self, tile: Tile, num_keys: int, rotate: bool, descriptors: bool | None = None) -> Shape:
        time_pairs, space_pairs = self.rope.pairs if self.rope else (0, 0)
        return Shape(
            head_dim=self.head_dim,
            dim=self.dim,
            queries=tile.queries,
            keys=tile.keys,
            tail=self.packing is not None or num_keys % tile.keys != 0,
            packed=self.packing is not None,
            descriptors=self.descriptors if descriptors is None else descriptors,
            widen=self.widen,
            rotate=rotate,
            time_pairs=time_pairs,
            space_pairs=space_pairs,
        )

    def source(self, tensor: Tensor, tokens: int) -> Tensor | TensorDescriptor:
        """What a kernel reads tiles of so many tokens from."""
        if not self.descriptors:
            return tensor
        view = tensor.transpose(1, 2)
        return TensorDescriptor(view, list(view.shape), list(view.stride()), [1, 1, tokens, self.dim])

    def query_grid(self, query: Tensor, tokens: int) -> tuple[int, int, int]:
        longest, samples = query.shape[1], query.shape[0]
        if self.packing is not None:
            longest, samples = self.packing.longest_query, self.packing.query_starts.numel() - 1
        return triton.cdiv(longest, tokens), query.shape[2], samples

    def key_grid(self, key: Tensor, tokens: int) -> tuple[int, int, int]:
        longest, samples = key.shape[1], key.shape[0]
        if self.packing is not None:
            longest, samples = self.packing.longest_key, self.packing.key_starts.numel() - 1
        return triton.cdiv(longest, tokens), key.shape[2], samples

    @property
    def query_starts(self) -> Tensor | None:
        return self.packing.query_starts if self.packing else None

    @property
    def key_starts(self) -> Tensor | None:
        return self.packing.key_starts if self.packing else None


def _strides(x: Tensor) -> tuple[int, int, int]:
    return x.stride(0), x.stride(1), x.stride(2)


def _dense(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()


def attention_forward(
    query: Tensor, key: Tensor, value: Tensor, *, rope: RopeTables | None = None, packing: Packing | None = None
) -> tuple[Tensor, Tensor]:
    """Runs forward; see `sama_kernels.rope_attention.rope_attention`.

    Args:
        query: ``[B, S, h, D]``, turned here.
        key: ``[B, L, h, D]``, already turned (`turned`).
        value: ``[B, L, h, D]``.
        rope: The queries' rotary tables, or None.
        packing: For packed samples.

    Returns:
        Output ``[B, S, h, D]`` in the query's dtype, contiguous, and log-sum-exp ``[B, h, S]`` float32.
    """
    query, key, value = _dense(query), _dense(key), _dense(value)
    launch = _Launch.plan((query, key, value), packing, rope)
    tile = _tiles(query.element_size())[0]
    output = torch.empty(query.shape, dtype=query.dtype, device=query.device)
    batch, num_queries, heads, head_dim = query.shape
    log_sum_exp = torch.empty(batch, heads, num_queries, dtype=torch.float32, device=query.device)
    forward_kernel[launch.query_grid(query, tile.queries)](
        launch.source(query, tile.queries),
        launch.source(key, tile.keys),
        launch.source(value, tile.keys),
        output,
        log_sum_exp,
        launch.query_starts,
        launch.key_starts,
        rope_arguments(rope),
        _strides(query),
        _strides(key),
        _strides(value),
        _strides(output),
        num_queries,
        key.shape[1],
        head_dim**-0.5 * LOG2_E.value,
        launch.shape(tile, key.shape[1], rotate=rope is not None),
        num_warps=tile.warps,
        num_stages=tile.stages,
    )
    return output, log_sum_exp


def attention_backward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    output: Tensor,
    log_sum_exp: Tensor,
    output_gradient: Tensor,
    lse_gradient: Tensor | None,
    *,
    query_rope: RopeTables | None = None,
    key_rope: RopeTables | None = None,
    packing: Packing | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Runs backward.

    Args:
        query: ``[B, S, h, D]``, already turned.
        key: ``[B, L, h, D]``, already turned.
        value: ``[B, L, h, D]``.
        output: What forward returned.
        log_sum_exp: Likewise.
        output_gradient: ``[B, S, h, D]``.
        lse_gradient: ``[B, h, S]``, or None where nobody used the log-sum-exp.
        query_rope: Turns the query's gradient back; None: it stays.
        key_rope: The key's.
        packing: For packed samples.

    Returns:
        The gradients of query, key and value, contiguous.
    """
    query, key, value, output_gradient = (_dense(x) for x in (query, key, value, output_gradient))
    launch = _Launch.plan((query, key, value, output_gradient), packing, query_rope)
    _, key_tile, query_tile = _tiles(query.element_size())
    num_queries, num_keys, scale = query.shape[1], key.shape[1], query.shape[-1] ** -0.5
    grid = launch.query_grid(query, query_tile.queries)
    padded_queries = grid[0] * query_tile.queries
    per_query = torch.empty(2, grid[2], grid[1], padded_queries, dtype=torch.float32, device=query.device)
    prepare_kernel[grid](
        output,
        output_gradient,
        log_sum_exp,
        None if lse_gradient is None else lse_gradient.contiguous(),
        *per_query,
        launch.query_starts,
        _strides(output),
        _strides(output_gradient),
        num_queries,
        padded_queries,
        launch.shape(query_tile, num_keys, rotate=False, descriptors=False),
        num_warps=4,
    )
    gradients = tuple(torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (query, key, value))
    read = (query, key, value, output_gradient)
    strides = tuple(_strides(x) for x in read)
    key_value_gradient_kernel[launch.key_grid(key, key_tile.keys)](
        *_sources(launch, read, key_tile),
        *per_query,
        gradients[1],
        gradients[2],
        launch.query_starts,
        launch.key_starts,
        rope_arguments(key_rope),
        *strides,
        _strides(gradients[1]),
        _strides(gradients[2]),
        num_queries,
        padded_queries,
        num_keys,
        scale,
        launch.shape(key_tile, num_keys, rotate=key_rope is not None),
        num_warps=key_tile.warps,
        num_stages=key_tile.stages,
    )
    query_gradient_kernel[launch.query_grid(query, query_tile.queries)](
        *_sources(launch, read, query_tile),
        *per_query,
        gradients[0],
        launch.query_starts,
        launch.key_starts,
        rope_arguments(query_rope),
        *strides,
        _strides(gradients[0]),
        num_queries,
        padded_queries,
        num_keys,
        scale,
        launch.shape(query_tile, num_keys, rotate=query_rope is not None),
        num_warps=query_tile.warps,
        num_stages=query_tile.stages,
    )
    return gradients[0], gradients[1], gradients[2]


def _sources(launch: _Launch, read: Sequence[Tensor], tile: Tile) -> list[Any]:
    query, key, value, gradient = read
    queries, keys = tile.queries, tile.keys
    return [
        launch.source(query, queries),
        launch.source(key, keys),
        launch.source(value, keys),
        launch.source(gradient, queries),
    ]


def turned(x: Tensor, rope: RopeTables, packing: Packing | None = None) -> Tensor:
    """Every token turned by its angles, once.

    Args:
        x: ``[B, S, h, D]``.
        rope: Tables of S tokens; of a packed sample's tokens, counted from its first.
        packing: Of x's samples, as queries.

    Returns:
        ``[B, S, h, D]`` contiguous, in x's dtype.
    """
    x = _dense(x)
    launch = _Launch.plan((x,), packing, rope)
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    tile = Tile(64 if interpreting() else _TURNED_TOKENS, 16, 4, 1)
    tiles, heads, samples = launch.query_grid(x, tile.queries)
    rotate_kernel[tiles, 1, samples](
        x,
        y,
        launch.query_starts,
        rope_arguments(rope),
        _strides(x),
        _strides(y),
        heads,
        x.shape[1],
        launch.shape(tile, 0, rotate=True, descriptors=False),
        num_warps=tile.warps,
    )
    return y
