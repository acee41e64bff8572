"""Device functions that turn tiles of q and k by their tokens' angles; every fused kernel that rotates uses these.

A pair (2i, 2i + 1) of features is held as two tensors, the even and the odd features.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from sama_kernels.qk_norm_rope.rope import RopeTables, TokenPlaces


class RopeArguments(NamedTuple):
    """What a kernel needs to turn tokens.

    Attributes:
        table: `RopeTables.flat_table`.
        places: `RopeTables.places`.
        semantic_factor: 0.0: semantic tokens vanish; 1.0: they are not turned.
    """

    table: Any
    places: TokenPlaces
    semantic_factor: float


def rope_arguments(rope: RopeTables | None) -> RopeArguments | None:
    """The tables as a kernel takes them; None is no rotation."""
    if rope is None:
        return None
    return RopeArguments(rope.flat_table, rope.places, 0.0 if rope.rotate_semantic_to_zero else 1.0)


@triton.jit
def token_factors(rope, tokens, PAIRS: tl.constexpr, TIME: tl.constexpr, SPACE: tl.constexpr):
    """Cosines and sines ``[tokens, PAIRS]`` of a block of tokens, from the small axis tables.

    Args:
        rope: `RopeArguments`.
        tokens: Positions in the stretch that begins at ``rope.places.first_token``.
        PAIRS: A power of two, at least half of the head dimension; the factors of those beyond it are zero.
        TIME: Pairs of the time axis.
        SPACE: Pairs of the height and of the width axis, each.
    """
    places = rope.places
    position = places.first_token + tokens
    in_source = position < places.num_source
    target_start = places.num_source + places.num_semantic
    in_target = (position >= target_start) & (position < target_start + places.num_target)
    patch = tl.where(in_source, position, position - target_start)
    height = tl.where(in_source, places.source_height, places.target_height)
    width = tl.where(in_source, places.source_width, places.target_width)
    frame = patch // (height * width) + tl.where(in_source, places.source_time_offset, 0)
    row = (patch // width) % height
    column = patch % width

    pair = tl.arange(0, PAIRS)
    # Where a pair's axis begins in the table, which of the axis's pairs it is, and how many that axis has.
    of_time, of_height = pair < TIME, pair < TIME + SPACE
    start = tl.where(of_time, 0, tl.where(of_height, places.height_entry, places.width_entry))
    index = pair - tl.where(of_time, 0, tl.where(of_height, TIME, TIME + SPACE))
    count = tl.where(of_time, TIME, SPACE)
    place = tl.where(of_time[None, :], frame[:, None], tl.where(of_height[None, :], row[:, None], column[:, None]))
    entry = start[None, :] + place * count[None, :] + index[None, :]
    turned = (in_source | in_target)[:, None] & (pair < TIME + 2 * SPACE)[None, :]
    cosine = tl.load(rope.table + 2 * entry, mask=turned, other=0.0)
    sine = tl.load(rope.table + 2 * entry + 1, mask=turned, other=0.0)
    in_semantic = (position >= places.num_source) & (position < target_start)
    return tl.where(in_semantic[:, None], rope.semantic_factor, cosine), sine


@triton.jit
def split_pairs(tile):
    """``[..., D]`` -> even and odd features, each ``[..., D / 2]``; of rank 2 or 3."""
    if len(tile.shape) == 2:
        return tl.split(tl.reshape(tile, [tile.shape[0], tile.shape[1] // 2, 2]))
    else:
        return tl.split(tl.reshape(tile, [tile.shape[0], tile.shape[1], tile.shape[2] // 2, 2]))


@triton.jit
def join_pairs(even, odd):
    """Undoes `split_pairs`."""
    joined = tl.join(even, odd)
    if len(even.shape) == 2:
        return tl.reshape(joined, [even.shape[0], even.shape[1] * 2])
    else:
        return tl.reshape(joined, [even.shape[0], even.shape[1], even.shape[2] * 2])


@triton.jit
def rotate(even, odd, cosine, sine):
    """Times the factors, as complex numbers."""
    return even * cosine - odd * sine, even * sine + odd * cosine


@triton.jit
def rotate_back(even, odd, cosine, sine):
    """Times the factors' conjugates: what a gradient meets on its way back; zero factors erase it too."""
    return even * cosine + odd * sine, odd * cosine - even * sine
