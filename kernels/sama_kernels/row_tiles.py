"""Rows held in registers: what every row-wise kernel shares, and how its work is cut.

A row of W features is held as two tiles, because a tile's size must be a power of two: 5120 = 4096 + 1024 and
1536 = 1024 + 512 leave no lane idle, where one tile of 8192 would waste three lanes in eight and their registers. Lanes
past the width read as zero.

Programs walk over the tokens of one sample, so that the sample's modulation is read once and its gradient summed in
registers; adding up the programs' sums afterwards is deterministic.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

_FEATURES_PER_WARP = 256
_WARPS_PER_PROCESSOR = 16
_BYTES_AHEAD_PER_WARP = 4096
"""Of rows that are fetched before the previous ones are done: latency times bandwidth, with a margin."""
_PROGRAMS_WITHOUT_PROCESSORS = 4
"""Under the interpreter: enough for several partial sums."""


@dataclass(frozen=True)
class RowPlan:
    """How ``[S, B, W]`` is cut.

    Attributes:
        num_tokens: S.
        batch: B.
        programs: Programs a sample.
        options: Keyword arguments of every row-wise kernel.
    """

    num_tokens: int
    batch: int
    programs: int
    options: dict[str, int]

    @property
    def grid(self) -> tuple[int, int]:
        """Programs a sample, samples."""
        return self.programs, self.batch


def plan_rows(x: Tensor, num_read: int, most_warps: int = 8) -> RowPlan:
    """Cuts ``[S, B, W]``, none of them 0.

    Args:
        x: Of this shape.
        num_read: How many such tensors the kernel reads.
        most_warps: For one row: twice as many where a kernel holds so much that registers would not last.
    """
    num_tokens, batch, width = x.shape
    head = max(1, triton.next_power_of_2(width) // 2)
    warps = min(max(head // _FEATURES_PER_WARP, 1), most_warps)
    slots = _PROGRAMS_WITHOUT_PROCESSORS
    if x.is_cuda:
        processors = torch.cuda.get_device_properties(x.device).multi_processor_count
        slots = processors * (_WARPS_PER_PROCESSOR // warps)
    rows_ahead = _BYTES_AHEAD_PER_WARP * warps // (num_read * width * x.element_size())
    options = {
        "WIDTH": width,
        "HEAD": head,
        "TAIL": triton.next_power_of_2(max(width - head, 1)),
        "STAGES": 1 + min(max(rows_ahead, 1), 3),
        "num_warps": warps,
    }
    return RowPlan(num_tokens, batch, max(1, min(num_tokens, slots // batch)), options)


def with_dense_rows(x: Tensor) -> Tensor:
    """The tensor, copied only if the features of a row do not lie side by side."""
    return x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()


def sample_stride(rows: Tensor) -> int:
    """Elements from one sample's row to the next of ``[B, W]``; 0 for ``[W]``, one row that all samples share."""
    return rows.stride(0) if rows.dim() == 2 else 0


def add_up(partial_sums: Tensor, like: Tensor) -> Tensor:
    """Adds programs' sums ``[B, programs, W]`` to a row a sample, or to one row, in shape and type of ``like``."""
    return partial_sums.sum(1 if like.dim() == 2 else (0, 1)).to(like.dtype)


@triton.jit
def load_row(row, WIDTH: tl.constexpr, HEAD: tl.constexpr, TAIL: tl.constexpr):
    """The row at a pointer as two float32 tiles."""
    head = tl.arange(0, HEAD)
    tail = HEAD + tl.arange(0, TAIL)
    return tl.load(row + head).to(tl.float32), tl.load(row + tail, mask=tail < WIDTH, other=0.0).to(tl.float32)


@triton.jit
def store_row(row, head_values, tail_values, WIDTH: tl.constexpr, HEAD: tl.constexpr, TAIL: tl.constexpr):
    """Writes two tiles to the row at a pointer, rounded to its type."""
    head = tl.arange(0, HEAD)
    tail = HEAD + tl.arange(0, TAIL)
    tl.store(row + head, head_values.to(row.dtype.element_ty))
    tl.store(row + tail, tail_values.to(row.dtype.element_ty), mask=tail < WIDTH)


@triton.jit
def round_row(head_values, tail_values, like):
    """The float32 values that a row would have after it was stored at a pointer and read again."""
    return (
        head_values.to(like.dtype.element_ty).to(tl.float32),
        tail_values.to(like.dtype.element_ty).to(tl.float32),
    )


@triton.jit
def row_statistics(head_values, tail_values, eps, WIDTH: tl.constexpr, HEAD: tl.constexpr, TAIL: tl.constexpr):
    """Mean, and one over the standard deviation; the variance from centred values: a common offset costs nothing."""
    mean = (tl.sum(head_values) + tl.sum(tail_values)) / WIDTH
    tail = HEAD + tl.arange(0, TAIL)
    head_centred = head_values - mean
    tail_centred = tl.where(tail < WIDTH, tail_values - mean, 0.0)
    variance = (tl.sum(head_centred * head_centred) + tl.sum(tail_centred * tail_centred)) / WIDTH
    return mean, 1.0 / tl.sqrt_rn(variance + eps)


@triton.jit
def norm_gradient(head_grad, tail_grad, head_normed, tail_normed, inverse_deviation, WIDTH: tl.constexpr):
    """From the gradient at a normalised row to that at the row; lanes past the width must hold gradient 0."""
    grad_mean = (tl.sum(head_grad) + tl.sum(tail_grad)) / WIDTH
    projection = (tl.sum(head_grad * head_normed) + tl.sum(tail_grad * tail_normed)) / WIDTH
    return (
        inverse_deviation * (head_grad - grad_mean - head_normed * projection),
        inverse_deviation * (tail_grad - grad_mean - tail_normed * projection),
    )
