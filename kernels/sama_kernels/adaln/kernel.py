"""Row-wise layer norm and modulation: y = n * (a + multiplier) + offset, with a = 1 for a scale and 0 for a weight."""

from __future__ import annotations

import triton
import triton.language as tl

from sama_kernels.row_tiles import load_row, norm_gradient, row_statistics, store_row


@triton.jit
def norm_forward(
    x,
    multiplier,
    offset,
    y,
    statistics,
    num_tokens,
    batch,
    x_token_stride,
    x_sample_stride,
    multiplier_stride,
    offset_stride,
    eps,
    ADDED: tl.constexpr,
    WIDTH: tl.constexpr,
    HEAD: tl.constexpr,
    TAIL: tl.constexpr,
    STAGES: tl.constexpr,
):
    """X -> y ``[S, B, W]`` and statistics ``[S, B, 2]``; program (i, b) takes every n-th token of sample b."""
    sample = tl.program_id(1).to(tl.int64)
    scale_head, scale_tail = load_row(multiplier + sample * multiplier_stride, WIDTH, HEAD, TAIL)
    shift_head, shift_tail = load_row(offset + sample * offset_stride, WIDTH, HEAD, TAIL)
    scale_head += ADDED
    scale_tail += ADDED
    for index in tl.range(tl.program_id(0), num_tokens, tl.num_programs(0), num_stages=STAGES):
        token = tl.cast(index, tl.int64)
        row = token * batch + sample
        x_row = x + token * x_token_stride + sample * x_sample_stride
        head, tail = load_row(x_row, WIDTH, HEAD, TAIL)
        mean, inverse_deviation = row_statistics(head, tail, eps, WIDTH, HEAD, TAIL)
        head = (head - mean) * inverse_deviation * scale_head + shift_head
        tail = (tail - mean) * inverse_deviation * scale_tail + shift_tail
        store_row(y + row * WIDTH, head, tail, WIDTH, HEAD, TAIL)
        tl.store(statistics + row * 2, mean)
        tl.store(statistics + row * 2 + 1, inverse_deviation)


@triton.jit
def norm_backward(
    dy,
    x,
    statistics,
    multiplier,
    dx,
    partial_sums,
    num_tokens,
    batch,
    dy_token_stride,
    dy_sample_stride,
    x_token_stride,
    x_sample_stride,
    multiplier_stride,
    ADDED: tl.constexpr,
    WIDTH: tl.constexpr,
    HEAD: tl.constexpr,
    TAIL: tl.constexpr,
    STAGES: tl.constexpr,
):
    """dy, x -> dx ``[S, B, W]`` and each program's sums for offset and multiplier ``[B, programs, 2, W]``."""
    sample = tl.program_id(1).to(tl.int64)
    scale_head, scale_tail = load_row(multiplier + sample * multiplier_stride, WIDTH, HEAD, TAIL)
    scale_head += ADDED
    scale_tail += ADDED
    offset_head = tl.zeros([HEAD], tl.float32)
    offset_tail = tl.zeros([TAIL], tl.float32)
    multiplier_head = tl.zeros([HEAD], tl.float32)
    multiplier_tail = tl.zeros([TAIL], tl.float32)
    for index in tl.range(tl.program_id(0), num_tokens, tl.num_programs(0), num_stages=STAGES):
        token = tl.cast(index, tl.int64)
        row = token * batch + sample
        dy_row = dy + token * dy_token_stride + sample * dy_sample_stride
        x_row = x + token * x_token_stride + sample * x_sample_stride
        dy_head, dy_tail = load_row(dy_row, WIDTH, HEAD, TAIL)
        head, tail = load_row(x_row, WIDTH, HEAD, TAIL)
        mean = tl.load(statistics + row * 2)
        inverse_deviation = tl.load(statistics + row * 2 + 1)
        head = (head - mean) * inverse_deviation
        tail = (tail - mean) * inverse_deviation
        offset_head += dy_head
        offset_tail += dy_tail
        multiplier_head += dy_head * head
        multiplier_tail += dy_tail * tail
        dx_head, dx_tail = norm_gradient(
            dy_head * scale_head, dy_tail * scale_tail, head, tail, inverse_deviation, WIDTH
        )
        store_row(dx + row * WIDTH, dx_head, dx_tail, WIDTH, HEAD, TAIL)
    sums = partial_sums + (sample * tl.num_programs(0) + tl.program_id(0)) * 2 * WIDTH
    store_row(sums, offset_head, offset_tail, WIDTH, HEAD, TAIL)
    store_row(sums + WIDTH, multiplier_head, multiplier_tail, WIDTH, HEAD, TAIL)
