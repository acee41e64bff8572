"""L1 error of predictions, row by row. Two tiles hold a row (see `sama_kernels.row_tiles`)."""

from __future__ import annotations

import triton
import triton.language as tl

from sama_kernels.row_tiles import load_row, store_row


@triton.jit
def absolute_error_forward(
    predicted,
    target,
    signs,
    partial_sums,
    num_rows,
    batch,
    predicted_token_stride,
    predicted_sample_stride,
    target_token_stride,
    target_sample_stride,
    WIDTH: tl.constexpr,
    HEAD: tl.constexpr,
    TAIL: tl.constexpr,
    STAGES: tl.constexpr,
):
    """|predicted - target| of every n-th row of sample b, summed -> ``[B, programs]``; its signs ``[M, B, F]``."""
    sample = tl.program_id(1).to(tl.int64)
    sum_head = tl.zeros([HEAD], tl.float32)
    sum_tail = tl.zeros([TAIL], tl.float32)
    for index in tl.range(tl.program_id(0), num_rows, tl.num_programs(0), num_stages=STAGES):
        token = tl.cast(index, tl.int64)
        predicted_row = predicted + token * predicted_token_stride + sample * predicted_sample_stride
        target_row = target + token * target_token_stride + sample * target_sample_stride
        head, tail = load_row(predicted_row, WIDTH, HEAD, TAIL)
        target_head, target_tail = load_row(target_row, WIDTH, HEAD, TAIL)
        head -= target_head
        tail -= target_tail
        sum_head += tl.abs(head)
        sum_tail += tl.abs(tail)
        head = (head > 0).to(tl.float32) - (head < 0).to(tl.float32)
        tail = (tail > 0).to(tl.float32) - (tail < 0).to(tl.float32)
        store_row(signs + (token * batch + sample) * WIDTH, head, tail, WIDTH, HEAD, TAIL)
    total = tl.sum(sum_head) + tl.sum(sum_tail)
    tl.store(partial_sums + sample * tl.num_programs(0) + tl.program_id(0), total)
