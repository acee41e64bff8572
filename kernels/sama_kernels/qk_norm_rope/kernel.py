"""Triton kernels of the fused q/k norm and rotation.

Rows are the tokens of all samples, ``row = token * batch + sample``. A program works on whole rows, in two tiles of
heads: the largest power of two of heads, then the rest (40 = 32 + 8, 12 = 8 + 4, 5 = 4 + 1: hardly a lane idles). A
row's sum is taken from registers, so nothing is read twice. Arithmetic is float32; a tile is held as its even and its
odd features (`rotation`).

Shape legend: R rows of a program, H heads of a tile, P feature pairs.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from sama_kernels.qk_norm_rope.rotation import join_pairs, rotate, rotate_back, split_pairs, token_factors


class Shape(NamedTuple):
    """What the kernels are compiled for.

    Attributes:
        heads, head_dim: Of this rank.
        tile, rest: Powers of two; heads of the first and of the second tile (0: none).
        dim: Power of two, at least head_dim.
        rows: Rows of a program at once, a power of two.
        time_pairs, space_pairs: `RopeTables.pairs`.
        rotate: Whether there is a rotation at all.
        given: Whether the rows' sums come from outside, being sums over several ranks.
    """

    heads: int
    head_dim: int
    tile: int
    rest: int
    dim: int
    rows: int
    time_pairs: int
    space_pairs: int
    rotate: bool
    given: bool


class Part(NamedTuple):
    """q or k: its tensors with their strides (token, sample, head), in elements; the last axis is contiguous.

    Attributes:
        x, x_strides: What came in.
        y, y_strides: The normalised rows; in backward their gradient.
        dx, dx_strides: Backward: the gradient of what came in.
        weight: ``[h * D]``.
        inverse_rms: ``[rows]`` float32; forward writes it.
        sums: ``[rows]`` float32; the rows' sums where they come from or go outside.
        weight_partials: Backward: ``[programs, h * D]`` float32.
        num_rows: Tokens times samples.
    """

    x: Any
    x_strides: tuple[int, int, int]
    y: Any
    y_strides: tuple[int, int, int]
    dx: Any
    dx_strides: tuple[int, int, int]
    weight: Any
    inverse_rms: Any
    sums: Any
    weight_partials: Any
    num_rows: int


@triton.jit
def _rows(block, num_rows, batch, shape: tl.constexpr):
    row = block * shape.rows + tl.arange(0, shape.rows)
    return row, row // batch, row % batch, row < num_rows


@triton.jit
def _elements(base, strides, token, sample, exists, FIRST: tl.constexpr, HEADS: tl.constexpr, shape: tl.constexpr):
    """Pointers ``[R, H, D]`` of one tile of heads, and which of them are real."""
    # A long sequence has more elements than 32 bits count.
    starts = base + token.to(tl.int64) * strides[0] + sample.to(tl.int64) * strides[1]
    heads, features = FIRST + tl.arange(0, HEADS)[None, :, None], tl.arange(0, shape.dim)[None, None, :]
    real = exists[:, None, None] & (heads < shape.heads) & (features < shape.head_dim)
    return starts[:, None, None] + heads * strides[2] + features, real


@triton.jit
def _load(base, strides, token, sample, exists, FIRST: tl.constexpr, HEADS: tl.constexpr, shape: tl.constexpr):
    """Even and odd features ``[R, H, P]`` float32."""
    pointers, real = _elements(base, strides, token, sample, exists, FIRST, HEADS, shape)
    return split_pairs(tl.load(pointers, mask=real, other=0.0).to(tl.float32))


@triton.jit
def _store(
    base, strides, token, sample, exists, even, odd, FIRST: tl.constexpr, HEADS: tl.constexpr, shape: tl.constexpr
):
    pointers, real = _elements(base, strides, token, sample, exists, FIRST, HEADS, shape)
    tl.store(pointers, join_pairs(even, odd).to(base.dtype.element_ty), mask=real)


@triton.jit
def _weight_elements(base, FIRST: tl.constexpr, HEADS: tl.constexpr, shape: tl.constexpr):
    heads, features = FIRST + tl.arange(0, HEADS)[:, None], tl.arange(0, shape.dim)[None, :]
    return base + heads * shape.head_dim + features, (heads < shape.heads) & (features < shape.head_dim)


@triton.jit
def _load_weight(weight, FIRST: tl.constexpr, HEADS: tl.constexpr, shape: tl.constexpr):
    """Even and odd features ``[1, H, P]`` float32."""
    pointers, real = _weight_elements(weight, FIRST, HEADS, shape)
    even, odd = split_pairs(tl.load(pointers, mask=real, other=0.0).to(tl.float32))
    return even[None], odd[None]


@triton.jit
def _row_sum(even, odd):
    return tl.sum(tl.sum(even + odd, axis=2), axis=1)


@triton.jit
def _factors(rope, token, shape: tl.constexpr):
    """``[R, 1, P]``, the same for every head."""
    PAIRS: tl.constexpr = shape.dim // 2
    cosine, sine = token_factors(rope, token, PAIRS, shape.time_pairs, shape.space_pairs)
    return cosine[:, None, :], sine[:, None, :]


@triton.jit
def _squares(part, token, sample, exists, FIRST: tl.constexpr, HEADS: tl.constexpr, shape: tl.constexpr):
    even, odd = _load(part.x, part.x_strides, token, sample, exists, FIRST, HEADS, shape)
    return _row_sum(even * even, odd * odd)


@triton.jit
def sum_squares_kernel(part, batch, shape: tl.constexpr):
    """Each row's sum of squares over this rank's heads, into ``sums``; one program a block of rows."""
    row, token, sample, exists = _rows(tl.program_id(0), part.num_rows, batch, shape)
    total = _squares(part, token, sample, exists, 0, shape.tile, shape)
    if shape.rest > 0:
        total += _squares(part, token, sample, exists, shape.tile, shape.rest, shape)
    tl.store(part.sums + row, total, mask=exists)


@triton.jit
def _finish(even, odd, inverse, weight, rope, token, FIRST: tl.constexpr, HEADS: tl.constexpr, shape: tl.constexpr):
    weight_even, weight_odd = _load_weight(weight, FIRST, HEADS, shape)
    even, odd = even * inverse * weight_even, odd * inverse * weight_odd
    if shape.rotate:
        cosine, sine = _factors(rope, token, shape)
        even, odd = rotate(even, odd, cosine, sine)
    return even, odd


@triton.jit
def normalise_kernel(part, rope, batch, full_width, eps, shape: tl.constexpr):
    """Norm, rotation and transpose; one program a block of rows."""
    row, token, sample, exists = _rows(tl.program_id(0), part.num_rows, batch, shape)
    even, odd = _load(part.x, part.x_strides, token, sample, exists, 0, shape.tile, shape)
    if shape.rest > 0:
        rest_even, rest_odd = _load(part.x, part.x_strides, token, sample, exists, shape.tile, shape.rest, shape)
    if shape.given:
        total = tl.load(part.sums + row, mask=exists, other=0.0)
    else:
        total = _row_sum(even * even, odd * odd)
        if shape.rest > 0:
            total += _row_sum(rest_even * rest_even, rest_odd * rest_odd)
    inverse = tl.rsqrt(tl.where(exists, total, 1.0) / full_width + eps)
    tl.store(part.inverse_rms + row, inverse, mask=exists)
    inverse = inverse[:, None, None]
    even, odd = _finish(even, odd, inverse, part.weight, rope, token, 0, shape.tile, shape)
    _store(part.y, part.y_strides, token, sample, exists, even, odd, 0, shape.tile, shape)
    if shape.rest > 0:
        even, odd = _finish(rest_even, rest_odd, inverse, part.weight, rope, token, shape.tile, shape.rest, shape)
        _store(part.y, part.y_strides, token, sample, exists, even, odd, shape.tile, shape.rest, shape)


@triton.jit
def _load_gradient(part, rope, token, sample, exists, FIRST: tl.constexpr, HEADS: tl.constexpr, shape: tl.constexpr):
    """The gradient of the normalised tile before its rotation."""
    even, odd = _load(part.y, part.y_strides, token, sample, exists, FIRST, HEADS, shape)
    if shape.rotate:
        cosine, sine = _factors(rope, token, shape)
        even, odd = rotate_back(even, odd, cosine, sine)
    return even, odd


@triton.jit
def _products(part, rope, token, sample, exists, FIRST: tl.constexpr, HEADS: tl.constexpr, shape: tl.constexpr):
    even, odd = _load(part.x, part.x_strides, token, sample, exists, FIRST, HEADS, shape)
    gradient_even, gradient_odd = _load_gradient(part, rope, token, sample, exists, FIRST, HEADS, shape)
    weight_even, weight_odd = _load_weight(part.weight, FIRST, HEADS, shape)
    return _row_sum(gradient_even * weight_even * even, gradient_odd * weight_odd * odd)


@triton.jit
def sum_products_kernel(part, rope, batch, shape: tl.constexpr):
    """Each row's sum of gradient times weight times input over this rank's heads, into ``sums``."""
    row, token, sample, exists = _rows(tl.program_id(0), part.num_rows, batch, shape)
    total = _products(part, rope, token, sample, exists, 0, shape.tile, shape)
    if shape.rest > 0:
        total += _products(part, rope, token, sample, exists, shape.tile, shape.rest, shape)
    tl.store(part.sums + row, total, mask=exists)


@triton.jit
def _input_gradient(
    part,
    token,
    sample,
    exists,
    even,
    odd,
    gradient_even,
    gradient_odd,
    inverse,
    along,
    FIRST: tl.constexpr,
    HEADS: tl.constexpr,
    shape: tl.constexpr,
):
    """Writes a tile's dx; returns its share of the weight's gradient ``[H, P]``, even and odd."""
    weight_even, weight_odd = _load_weight(part.weight, FIRST, HEADS, shape)
    dx_even = gradient_even * weight_even * inverse - even * along
    dx_odd = gradient_odd * weight_odd * inverse - odd * along
    _store(part.dx, part.dx_strides, token, sample, exists, dx_even, dx_odd, FIRST, HEADS, shape)
    return tl.sum(gradient_even * even * inverse, axis=0), tl.sum(gradient_odd * odd * inverse, axis=0)


@triton.jit
def backward_kernel(part, rope, batch, full_width, shape: tl.constexpr):
    """Every row's dx, and each program's share of the weight's gradient."""
    PAIRS: tl.constexpr = shape.dim // 2
    TILE: tl.constexpr = shape.tile
    REST: tl.constexpr = shape.rest
    dw_even = tl.zeros([TILE, PAIRS], tl.float32)
    dw_odd = tl.zeros([TILE, PAIRS], tl.float32)
    if REST > 0:
        rest_dw_even = tl.zeros([REST, PAIRS], tl.float32)
        rest_dw_odd = tl.zeros([REST, PAIRS], tl.float32)
    # Stages: the next rows travel to shared memory while these are computed.
    for block in tl.range(tl.program_id(0), tl.cdiv(part.num_rows, shape.rows), tl.num_programs(0), num_stages=3):
        row, token, sample, exists = _rows(block, part.num_rows, batch, shape)
        even, odd = _load(part.x, part.x_strides, token, sample, exists, 0, TILE, shape)
        g_even, g_odd = _load_gradient(part, rope, token, sample, exists, 0, TILE, shape)
        if REST > 0:
            rest_even, rest_odd = _load(part.x, part.x_strides, token, sample, exists, TILE, REST, shape)
            rest_g_even, rest_g_odd = _load_gradient(part, rope, token, sample, exists, TILE, REST, shape)
        if shape.given:
            total = tl.load(part.sums + row, mask=exists, other=0.0)
        else:
            weight_even, weight_odd = _load_weight(part.weight, 0, TILE, shape)
            total = _row_sum(g_even * weight_even * even, g_odd * weight_odd * odd)
            if REST > 0:
                weight_even, weight_odd = _load_weight(part.weight, TILE, REST, shape)
                total += _row_sum(rest_g_even * weight_even * rest_even, rest_g_odd * weight_odd * rest_odd)
        inverse = tl.load(part.inverse_rms + row, mask=exists, other=0.0)
        along = (inverse * inverse * inverse * total / full_width)[:, None, None]
        inverse = inverse[:, None, None]
        add_even, add_odd = _input_gradient(
            part, token, sample, exists, even, odd, g_even, g_odd, inverse, along, 0, TILE, shape
        )
        dw_even += add_even
        dw_odd += add_odd
        if REST > 0:
            add_even, add_odd = _input_gradient(
                part,
                token,
                sample,
                exists,
                rest_even,
                rest_odd,
                rest_g_even,
                rest_g_odd,
                inverse,
                along,
                TILE,
                REST,
                shape,
            )
            rest_dw_even += add_even
            rest_dw_odd += add_odd
    partials = part.weight_partials + tl.program_id(0) * shape.heads * shape.head_dim
    pointers, real = _weight_elements(partials, 0, TILE, shape)
    tl.store(pointers, join_pairs(dw_even, dw_odd), mask=real)
    if REST > 0:
        pointers, real = _weight_elements(partials, TILE, REST, shape)
        tl.store(pointers, join_pairs(rest_dw_even, rest_dw_odd), mask=real)
