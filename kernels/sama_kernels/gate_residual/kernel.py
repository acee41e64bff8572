"""Row-wise residual sums, alone or with the layer norm and modulation of their result in the same pass.

Two tiles hold a row (see `sama_kernels.row_tiles`). GATED: branch counts gate times, else once.
"""

from __future__ import annotations

import triton
import triton.language as tl

from sama_kernels.row_tiles import load_row, norm_gradient, round_row, row_statistics, store_row


@triton.jit
def gate_forward(
    x,
    branch,
    gate,
    y,
    num_tokens,
    batch,
    x_token_stride,
    x_sample_stride,
    branch_token_stride,
    branch_sample_stride,
    gate_stride,
    WIDTH: tl.constexpr,
    HEAD: tl.constexpr,
    TAIL: tl.constexpr,
    STAGES: tl.constexpr,
):
    """X + gate * branch -> y ``[S, B, W]``; program (i, b) takes every n-th token of sample b."""
    sample = tl.program_id(1).to(tl.int64)
    gate_head, gate_tail = load_row(gate + sample * gate_stride, WIDTH, HEAD, TAIL)
    for index in tl.range(tl.program_id(0), num_tokens, tl.num_programs(0), num_stages=STAGES):
        token = tl.cast(index, tl.int64)
        x_row = x + token * x_token_stride + sample * x_sample_stride
        branch_row = branch + token * branch_token_stride + sample * branch_sample_stride
        head, tail = load_row(x_row, WIDTH, HEAD, TAIL)
        branch_head, branch_tail = load_row(branch_row, WIDTH, HEAD, TAIL)
        head += gate_head * branch_head
        tail += gate_tail * branch_tail
        store_row(y + (token * batch + sample) * WIDTH, head, tail, WIDTH, HEAD, TAIL)


@triton.jit
def gate_backward(
    dy,
    branch,
    gate,
    d_branch,
    partial_sums,
    num_tokens,
    batch,
    dy_token_stride,
    dy_sample_stride,
    branch_token_stride,
    branch_sample_stride,
    gate_stride,
    WIDTH: tl.constexpr,
    HEAD: tl.constexpr,
    TAIL: tl.constexpr,
    STAGES: tl.constexpr,
):
    """dy, branch -> d_branch ``[S, B, W]`` and each program's sum for the gate ``[B, programs, W]``."""
    sample = tl.program_id(1).to(tl.int64)
    gate_head, gate_tail = load_row(gate + sample * gate_stride, WIDTH, HEAD, TAIL)
    sum_head = tl.zeros([HEAD], tl.float32)
    sum_tail = tl.zeros([TAIL], tl.float32)
    for index in tl.range(tl.program_id(0), num_tokens, tl.num_programs(0), num_stages=STAGES):
        token = tl.cast(index, tl.int64)
        dy_row = dy + token * dy_token_stride + sample * dy_sample_stride
        branch_row = branch + token * branch_token_stride + sample * branch_sample_stride
        head, tail = load_row(dy_row, WIDTH, HEAD, TAIL)
        branch_head, branch_tail = load_row(branch_row, WIDTH, HEAD, TAIL)
        sum_head += head * branch_head
        sum_tail += tail * branch_tail
        d_branch_row = d_branch + (token * batch + sample) * WIDTH
        store_row(d_branch_row, head * gate_head, tail * gate_tail, WIDTH, HEAD, TAIL)
    sums = partial_sums + (sample * tl.num_programs(0) + tl.program_id(0)) * WIDTH
    store_row(sums, sum_head, sum_tail, WIDTH, HEAD, TAIL)


@triton.jit
def residual_norm_forward(
    x,
    branch,
    gate,
    multiplier,
    offset,
    residual,
    y,
    statistics,
    num_tokens,
    batch,
    x_token_stride,
    x_sample_stride,
    branch_token_stride,
    branch_sample_stride,
    gate_stride,
    multiplier_stride,
    offset_stride,
    eps,
    GATED: tl.constexpr,
    ADDED: tl.constexpr,
    WIDTH: tl.constexpr,
    HEAD: tl.constexpr,
    TAIL: tl.constexpr,
    STAGES: tl.constexpr,
):
    """x, branch -> residual and its modulated norm y ``[S, B, W]``, statistics ``[S, B, 2]``."""
    sample = tl.program_id(1).to(tl.int64)
    scale_head, scale_tail = load_row(multiplier + sample * multiplier_stride, WIDTH, HEAD, TAIL)
    shift_head, shift_tail = load_row(offset + sample * offset_stride, WIDTH, HEAD, TAIL)
    scale_head += ADDED
    scale_tail += ADDED
    if GATED:
        gate_head, gate_tail = load_row(gate + sample * gate_stride, WIDTH, HEAD, TAIL)
    for index in tl.range(tl.program_id(0), num_tokens, tl.num_programs(0), num_stages=STAGES):
        token = tl.cast(index, tl.int64)
        row = token * batch + sample
        x_row = x + token * x_token_stride + sample * x_sample_stride
        branch_row = branch + token * branch_token_stride + sample * branch_sample_stride
        head, tail = load_row(x_row, WIDTH, HEAD, TAIL)
        branch_head, branch_tail = load_row(branch_row, WIDTH, HEAD, TAIL)
        if GATED:
            branch_head *= gate_head
            branch_tail *= gate_tail
        head += branch_head
        tail += branch_tail
        store_row(residual + row * WIDTH, head, tail, WIDTH, HEAD, TAIL)
        # The norm of what is stored, so that backward finds the same row.
        head, tail = round_row(head, tail, residual)
        mean, inverse_deviation = row_statistics(head, tail, eps, WIDTH, HEAD, TAIL)
        head = (head - mean) * inverse_deviation * scale_head + shift_head
        tail = (tail - mean) * inverse_deviation * scale_tail + shift_tail
        store_row(y + row * WIDTH, head, tail, WIDTH, HEAD, TAIL)
        tl.store(statistics + row * 2, mean)
        tl.store(statistics + row * 2 + 1, inverse_deviation)


@triton.jit
def residual_norm_backward(
    d_residual,
    dy,
    residual,
    branch,
    statistics,
    gate,
    multiplier,
    dx,
    d_branch,
    partial_sums,
    num_tokens,
    batch,
    d_residual_token_stride,
    d_residual_sample_stride,
    dy_token_stride,
    dy_sample_stride,
    branch_token_stride,
    branch_sample_stride,
    gate_stride,
    multiplier_stride,
    GATED: tl.constexpr,
    ADDED: tl.constexpr,
    WIDTH: tl.constexpr,
    HEAD: tl.constexpr,
    TAIL: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Both results' gradients -> dx ``[S, B, W]`` and sums for offset and multiplier; GATED: d_branch, gate's too.

    Each program's sums are ``[B, programs, 2 or 3, W]``. Without a gate d_branch is dx.
    """
    sample = tl.program_id(1).to(tl.int64)
    scale_head, scale_tail = load_row(multiplier + sample * multiplier_stride, WIDTH, HEAD, TAIL)
    scale_head += ADDED
    scale_tail += ADDED
    offset_head = tl.zeros([HEAD], tl.float32)
    offset_tail = tl.zeros([TAIL], tl.float32)
    multiplier_head = tl.zeros([HEAD], tl.float32)
    multiplier_tail = tl.zeros([TAIL], tl.float32)
    if GATED:
        gate_head, gate_tail = load_row(gate + sample * gate_stride, WIDTH, HEAD, TAIL)
        gate_sum_head = tl.zeros([HEAD], tl.float32)
        gate_sum_tail = tl.zeros([TAIL], tl.float32)
    for index in tl.range(tl.program_id(0), num_tokens, tl.num_programs(0), num_stages=STAGES):
        token = tl.cast(index, tl.int64)
        row = token * batch + sample
        dy_row = dy + token * dy_token_stride + sample * dy_sample_stride
        d_residual_row = d_residual + token * d_residual_token_stride + sample * d_residual_sample_stride
        dy_head, dy_tail = load_row(dy_row, WIDTH, HEAD, TAIL)
        head, tail = load_row(residual + row * WIDTH, WIDTH, HEAD, TAIL)
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
        later_head, later_tail = load_row(d_residual_row, WIDTH, HEAD, TAIL)
        dx_head += later_head
        dx_tail += later_tail
        store_row(dx + row * WIDTH, dx_head, dx_tail, WIDTH, HEAD, TAIL)
        if GATED:
            branch_row = branch + token * branch_token_stride + sample * branch_sample_stride
            branch_head, branch_tail = load_row(branch_row, WIDTH, HEAD, TAIL)
            gate_sum_head += dx_head * branch_head
            gate_sum_tail += dx_tail * branch_tail
            store_row(d_branch + row * WIDTH, dx_head * gate_head, dx_tail * gate_tail, WIDTH, HEAD, TAIL)
    NUM_SUMS: tl.constexpr = 3 if GATED else 2
    sums = partial_sums + (sample * tl.num_programs(0) + tl.program_id(0)) * NUM_SUMS * WIDTH
    store_row(sums, offset_head, offset_tail, WIDTH, HEAD, TAIL)
    store_row(sums + WIDTH, multiplier_head, multiplier_tail, WIDTH, HEAD, TAIL)
    if GATED:
        store_row(sums + 2 * WIDTH, gate_sum_head, gate_sum_tail, WIDTH, HEAD, TAIL)
