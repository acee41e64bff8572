"""Triton flash attention, forward and backward, with the rotation of q and k inside.

Scores never leave the chip: forward keeps a running maximum and sum a query, backward computes the probabilities again
from the log-sum-exp. Backward is two kernels, each of which owns what it writes, so that no sum depends on which
program came first.

Tensors are ``[B, S, h, D]``; a packed one is ``[1, all samples' tokens, h, D]`` with each sample's first token in
``starts``. Each tile comes through a tensor descriptor or through pointers; the arithmetic is the same.

Shape legend: M queries of a tile, N keys of a tile, D features (padded to a power of two).
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl

from sama_kernels.qk_norm_rope.rotation import join_pairs, rotate, rotate_back, split_pairs, token_factors

LOG2_E = tl.constexpr(1.4426950408889634)
LOG_2 = tl.constexpr(0.6931471805599453)


class Shape(NamedTuple):
    """What a kernel is compiled for.

    Attributes:
        head_dim: Features of a head.
        dim: Power of two, at least head_dim and 16.
        queries, keys: Tile sizes.
        tail: Whether the last tile of the inner loop may be incomplete.
        packed: Whether samples lie one after the other.
        descriptors: Whether tiles come through tensor descriptors.
        widen: Whether tiles are made float32 when read: Triton's interpreter cannot multiply bfloat16.
        rotate: Whether q and k are turned.
        time_pairs, space_pairs: `RopeTables.pairs`.
    """

    head_dim: int
    dim: int
    queries: int
    keys: int
    tail: bool
    packed: bool
    descriptors: bool
    widen: bool
    rotate: bool
    time_pairs: int
    space_pairs: int


@triton.jit
def _sample(starts, num_tokens, shape: tl.constexpr):
    """This program's sample: its row in the tensor, its first token there, and its number of tokens."""
    index = tl.program_id(2)
    if shape.packed:
        first = tl.load(starts + index)
        return index * 0, first, tl.load(starts + index + 1) - first
    else:
        return index, index * 0, num_tokens


@triton.jit
def _elements(base, strides, sample, token, head, TOKENS: tl.constexpr, shape: tl.constexpr):
    """Pointers ``[TOKENS, D]``; a long sequence has more elements than 32 bits count."""
    corner = base + tl.cast(sample, tl.int64) * strides[0] + tl.cast(token, tl.int64) * strides[1] + head * strides[2]
    return corner + tl.arange(0, TOKENS)[:, None] * strides[1] + tl.arange(0, shape.dim)[None, :]


@triton.jit
def _real(start, length, TOKENS: tl.constexpr, shape: tl.constexpr):
    return ((start + tl.arange(0, TOKENS)) < length)[:, None] & (tl.arange(0, shape.dim) < shape.head_dim)[None, :]


@triton.jit
def _load(source, strides, sample, first, start, length, head, TOKENS: tl.constexpr, shape: tl.constexpr):
    """``[TOKENS, D]`` from token ``start`` of a sample; what lies past its end or past the head reads as zero."""
    if shape.descriptors:
        return tl.reshape(source.load([sample, head, start, 0]), [TOKENS, shape.dim])
    else:
        pointers = _elements(source, strides, sample, first + start, head, TOKENS, shape)
        tile = tl.load(pointers, mask=_real(start, length, TOKENS, shape), other=0.0)
        if shape.widen:
            tile = tile.to(tl.float32)
        return tile


@triton.jit
def _store(target, strides, sample, first, start, length, head, tile, TOKENS: tl.constexpr, shape: tl.constexpr):
    pointers = _elements(target, strides, sample, first + start, head, TOKENS, shape)
    tl.store(pointers, tile.to(target.dtype.element_ty), mask=_real(start, length, TOKENS, shape))


@triton.jit
def _turn(tile, rope, start, BACK: tl.constexpr, shape: tl.constexpr):
    """A float32 tile turned by its tokens' angles, or back by them."""
    HALF: tl.constexpr = shape.dim // 2
    tokens = start + tl.arange(0, tile.shape[0])
    cosine, sine = token_factors(rope, tokens, HALF, shape.time_pairs, shape.space_pairs)
    even, odd = split_pairs(tile)
    if BACK:
        even, odd = rotate_back(even, odd, cosine, sine)
    else:
        even, odd = rotate(even, odd, cosine, sine)
    return join_pairs(even, odd)


@triton.jit
def rotate_kernel(x, y, starts, rope, x_strides, y_strides, heads, num_tokens, shape: tl.constexpr):
    """Turns every head of ``shape.queries`` tokens; programs ``[tokens, 1, samples]``."""
    TOKENS: tl.constexpr = shape.queries
    HALF: tl.constexpr = shape.dim // 2
    sample, first, length = _sample(starts, num_tokens, shape)
    start = tl.program_id(0) * TOKENS
    if start >= length:
        return
    cosine, sine = token_factors(rope, start + tl.arange(0, TOKENS), HALF, shape.time_pairs, shape.space_pairs)
    for head in range(heads):
        tile = _load(x, x_strides, sample, first, start, length, head, TOKENS, shape).to(tl.float32)
        even, odd = split_pairs(tile)
        even, odd = rotate(even, odd, cosine, sine)
        _store(y, y_strides, sample, first, start, length, head, join_pairs(even, odd), TOKENS, shape)


@triton.jit
def _without_missing_keys(scores, start, length, shape: tl.constexpr):
    """Scores of keys past the end become minus infinity; only the last tile has any.

    A last tile outside of the loop, or a branch beside a rotation, makes the assembler wait for each matrix product
    before it starts the next (its warning C7515).
    """
    if shape.tail:
        if shape.rotate:
            scores = tl.where(((start + tl.arange(0, shape.keys)) < length)[None, :], scores, float("-inf"))
        elif start + shape.keys > length:
            scores = tl.where(((start + tl.arange(0, shape.keys)) < length)[None, :], scores, float("-inf"))
    return scores


@triton.jit
def _attend(
    query_tile,
    key,
    value,
    key_strides,
    value_strides,
    sample,
    first,
    start,
    length,
    head,
    highest,
    total,
    mixed,
    scale_log2,
    shape: tl.constexpr,
):
    """Takes one tile of keys and values into the running maximum, sum and mix of values."""
    key_tile = _load(key, key_strides, sample, first, start, length, head, shape.keys, shape)
    value_tile = _load(value, value_strides, sample, first, start, length, head, shape.keys, shape)
    scores = tl.dot(query_tile, tl.trans(key_tile), input_precision="ieee")
    scores = _without_missing_keys(scores, start, length, shape)
    new_highest = tl.maximum(highest, tl.max(scores, axis=1) * scale_log2)
    weights = tl.math.exp2(scores * scale_log2 - new_highest[:, None])
    shrink = tl.math.exp2(highest - new_highest)
    total = total * shrink + tl.sum(weights, axis=1)
    mixed = tl.dot(weights.to(value_tile.dtype), value_tile, mixed * shrink[:, None], input_precision="ieee")
    return new_highest, total, mixed


@triton.jit
def forward_kernel(
    query,
    key,
    value,
    output,
    log_sum_exp,
    query_starts,
    key_starts,
    rope,
    query_strides,
    key_strides,
    value_strides,
    output_strides,
    num_queries,
    num_keys,
    scale_log2,
    shape: tl.constexpr,
):
    """One tile of queries over all keys; programs ``[queries, heads, samples]``. Keys come already turned."""
    QUERIES: tl.constexpr = shape.queries
    KEYS: tl.constexpr = shape.keys
    DIM: tl.constexpr = shape.dim
    head = tl.program_id(1)
    sample, first_query, query_length = _sample(query_starts, num_queries, shape)
    _, first_key, key_length = _sample(key_starts, num_keys, shape)
    start = tl.program_id(0) * QUERIES
    if start >= query_length:
        return
    tile = _load(query, query_strides, sample, first_query, start, query_length, head, QUERIES, shape)
    if shape.rotate:
        tile = _turn(tile.to(tl.float32), rope, start, False, shape).to(tile.dtype)
    highest = tl.full([QUERIES], float("-inf"), tl.float32)
    total = tl.zeros([QUERIES], tl.float32)
    mixed = tl.zeros([QUERIES, DIM], tl.float32)
    for key_start in range(0, key_length, KEYS):
        highest, total, mixed = _attend(
            tile,
            key,
            value,
            key_strides,
            value_strides,
            sample,
            first_key,
            key_start,
            key_length,
            head,
            highest,
            total,
            mixed,
            scale_log2,
            shape,
        )
    tokens = start + tl.arange(0, QUERIES)
    rows = log_sum_exp + _row(sample, head, first_query, num_queries)
    tl.store(rows + tokens, (highest + tl.math.log2(total)) * LOG_2, mask=tokens < query_length)
    _store(
        output, output_strides, sample, first_query, start, query_length, head, mixed / total[:, None], QUERIES, shape
    )


@triton.jit
def _row(sample, head, first, tokens_in_tensor):
    """Where a head's numbers of one sample begin in ``[B, h, S]``."""
    return (sample * tl.num_programs(1) + head).to(tl.int64) * tokens_in_tensor + first


@triton.jit
def prepare_kernel(
    output,
    gradient,
    log_sum_exp,
    lse_gradient,
    lse_rows,
    delta_rows,
    starts,
    output_strides,
    gradient_strides,
    num_queries,
    padded_queries,
    shape: tl.constexpr,
):
    """What backward needs of each query, in rows padded to whole tiles, ``[B, h, padded]`` float32.

    The log-sum-exp in powers of two: infinite for a query that does not exist, which so gets no weight. Output times
    gradient summed over a head, less the log-sum-exp's own gradient: the sum that softmax's gradient subtracts.
    """
    QUERIES: tl.constexpr = shape.queries
    head = tl.program_id(1)
    sample, first, length = _sample(starts, num_queries, shape)
    start = tl.program_id(0) * QUERIES
    tokens = start + tl.arange(0, QUERIES)
    exists = tokens < length
    output_tile = _load(output, output_strides, sample, first, start, length, head, QUERIES, shape)
    gradient_tile = _load(gradient, gradient_strides, sample, first, start, length, head, QUERIES, shape)
    delta = tl.sum(output_tile.to(tl.float32) * gradient_tile.to(tl.float32), axis=1)
    row = _row(sample, head, first, num_queries)
    if lse_gradient is not None:
        delta -= tl.load(lse_gradient + row + tokens, mask=exists, other=0.0)
    padded_row = _padded_row(head, padded_queries)
    tl.store(delta_rows + padded_row + tokens, delta)
    lse = tl.load(log_sum_exp + row + tokens, mask=exists, other=float("inf")) * LOG2_E
    tl.store(lse_rows + padded_row + tokens, lse)


@triton.jit
def _padded_row(head, padded_queries):
    """Where a head's numbers of this program's sample begin in ``[samples, h, padded]``."""
    row = (tl.program_id(2) * tl.num_programs(1) + head).to(tl.int64)
    return row * tl.multiple_of(padded_queries, 64)


@triton.jit
def key_value_gradient_kernel(
    query,
    key,
    value,
    gradient,
    lse_rows,
    delta_rows,
    key_gradient,
    value_gradient,
    query_starts,
    key_starts,
    rope,
    query_strides,
    key_strides,
    value_strides,
    gradient_strides,
    key_gradient_strides,
    value_gradient_strides,
    num_queries,
    padded_queries,
    num_keys,
    scale,
    shape: tl.constexpr,
):
    """One tile of keys and values over all queries; programs ``[keys, heads, samples]``. q and k come turned."""
    QUERIES: tl.constexpr = shape.queries
    KEYS: tl.constexpr = shape.keys
    DIM: tl.constexpr = shape.dim
    head = tl.program_id(1)
    sample, first_query, query_length = _sample(query_starts, num_queries, shape)
    _, first_key, key_length = _sample(key_starts, num_keys, shape)
    start = tl.program_id(0) * KEYS
    if start >= key_length:
        return
    key_tile = _load(key, key_strides, sample, first_key, start, key_length, head, KEYS, shape)
    value_tile = _load(value, value_strides, sample, first_key, start, key_length, head, KEYS, shape)
    dk = tl.zeros([KEYS, DIM], tl.float32)
    dv = tl.zeros([KEYS, DIM], tl.float32)
    row = _padded_row(head, padded_queries)
    scale_log2 = scale * LOG2_E
    for query_start in range(0, query_length, QUERIES):
        query_tile = _load(query, query_strides, sample, first_query, query_start, query_length, head, QUERIES, shape)
        gradient_tile = _load(
            gradient, gradient_strides, sample, first_query, query_start, query_length, head, QUERIES, shape
        )
        tokens = query_start + tl.arange(0, QUERIES)
        # Infinite already where no query is. Said once more, because without a select between them and the matrix
        # products the assembler of triton 3.7 waits for each product before it starts the next (its warning C7515).
        lse_tile = tl.where(tokens < query_length, tl.load(lse_rows + row + tokens), float("inf"))
        delta_tile = tl.load(delta_rows + row + tokens)
        scores = tl.dot(key_tile, tl.trans(query_tile), input_precision="ieee") * scale_log2
        weights = tl.math.exp2(scores - lse_tile[None, :])
        dv = tl.dot(weights.to(gradient_tile.dtype), gradient_tile, dv, input_precision="ieee")
        d_weights = tl.dot(value_tile, tl.trans(gradient_tile), input_precision="ieee")
        d_scores = weights * (d_weights - delta_tile[None, :])
        dk = tl.dot(d_scores.to(query_tile.dtype), query_tile, dk, input_precision="ieee")
    dk *= scale
    if shape.rotate:
        dk = _turn(dk, rope, start, True, shape)
    _store(key_gradient, key_gradient_strides, sample, first_key, start, key_length, head, dk, KEYS, shape)
    _store(value_gradient, value_gradient_strides, sample, first_key, start, key_length, head, dv, KEYS, shape)


@triton.jit
def _query_gradient(
    query_tile,
    gradient_tile,
    lse_tile,
    delta_tile,
    key,
    value,
    key_strides,
    value_strides,
    sample,
    first,
    start,
    length,
    head,
    dq,
    scale_log2,
    shape: tl.constexpr,
):
    key_tile = _load(key, key_strides, sample, first, start, length, head, shape.keys, shape)
    value_tile = _load(value, value_strides, sample, first, start, length, head, shape.keys, shape)
    scores = tl.dot(query_tile, tl.trans(key_tile), input_precision="ieee") * scale_log2
    scores = _without_missing_keys(scores, start, length, shape)
    weights = tl.math.exp2(scores - lse_tile[:, None])
    d_weights = tl.dot(gradient_tile, tl.trans(value_tile), input_precision="ieee")
    d_scores = weights * (d_weights - delta_tile[:, None])
    return tl.dot(d_scores.to(key_tile.dtype), key_tile, dq, input_precision="ieee")


@triton.jit
def query_gradient_kernel(
    query,
    key,
    value,
    gradient,
    lse_rows,
    delta_rows,
    query_gradient,
    query_starts,
    key_starts,
    rope,
    query_strides,
    key_strides,
    value_strides,
    gradient_strides,
    query_gradient_strides,
    num_queries,
    padded_queries,
    num_keys,
    scale,
    shape: tl.constexpr,
):
    """One tile of queries over all keys; programs ``[queries, heads, samples]``. q and k come turned."""
    QUERIES: tl.constexpr = shape.queries
    KEYS: tl.constexpr = shape.keys
    DIM: tl.constexpr = shape.dim
    head = tl.program_id(1)
    sample, first_query, query_length = _sample(query_starts, num_queries, shape)
    _, first_key, key_length = _sample(key_starts, num_keys, shape)
    start = tl.program_id(0) * QUERIES
    if start >= query_length:
        return
    query_tile = _load(query, query_strides, sample, first_query, start, query_length, head, QUERIES, shape)
    gradient_tile = _load(gradient, gradient_strides, sample, first_query, start, query_length, head, QUERIES, shape)
    rows = _padded_row(head, padded_queries) + start + tl.arange(0, QUERIES)
    lse_tile = tl.load(lse_rows + rows)
    delta_tile = tl.load(delta_rows + rows)
    dq = tl.zeros([QUERIES, DIM], tl.float32)
    scale_log2 = scale * LOG2_E
    for key_start in range(0, key_length, KEYS):
        dq = _query_gradient(
            query_tile,
            gradient_tile,
            lse_tile,
            delta_tile,
            key,
            value,
            key_strides,
            value_strides,
            sample,
            first_key,
            key_start,
            key_length,
            head,
            dq,
            scale_log2,
            shape,
        )
    dq *= scale
    if shape.rotate:
        dq = _turn(dq, rope, start, True, shape)
    _store(query_gradient, query_gradient_strides, sample, first_query, start, query_length, head, dq, QUERIES, shape)
