"""Plain torch perturbation of a clip."""

from __future__ import annotations

from itertools import product

import torch
from torch import Tensor

from sama_kernels.transfer import to_device

BLACK_FRAME = -1
NUM_TUBES = 8


def pretext_reference(
    frames: Tensor, frame_indices: list[int], tube_order: tuple[int, ...] | None, dtype: torch.dtype
) -> Tensor:
    """See `sama_kernels.pretext.pretext`."""
    picked = pick_frames(frames, frame_indices)
    if tube_order is not None:
        picked = swap_tubes(picked, tube_order)
    # One pass in float32 over a contiguous result: bfloat16 arithmetic would merge neighbouring grey levels.
    pixels = picked.permute(3, 0, 1, 2).to(torch.float32, memory_format=torch.contiguous_format)
    return pixels.div_(127.5).sub_(1.0).to(dtype)


def pick_frames(frames: Tensor, frame_indices: list[int]) -> Tensor:
    """Gathers frames ``[T, H, W, 3]`` into ``[T_out, H, W, 3]``, zeros where the index is -1; a copy."""
    index = to_device(torch.tensor(frame_indices, dtype=torch.int64), frames.device)
    picked = frames.index_select(0, index.clamp(min=0))
    if BLACK_FRAME in frame_indices:
        picked.masked_fill_((index == BLACK_FRAME)[:, None, None, None], 0)
    return picked


def swap_tubes(frames: Tensor, tube_order: tuple[int, ...]) -> Tensor:
    """Fills tube i of a copy of ``[T, H, W, 3]`` with tube ``tube_order[i]`` of the original."""
    bounds = tube_slices(*frames.shape[:3])
    swapped = frames.clone()
    for destination, source in enumerate(tube_order):
        swapped[bounds[destination]] = frames[bounds[source]]
    return swapped


def tube_slices(num_frames: int, height: int, width: int) -> list[tuple[slice, slice, slice]]:
    """The 2x2x2 tubes of a clip, in the order of their index ``t*4 + h*2 + w``.

    The first time half holds the odd frame. An odd last line or column belongs to no tube and stays in place,
    so that the four tubes of a time half always have one shape and can swap.

    Returns:
        Eight (frames, lines, columns) slices with explicit bounds.
    """
    first = (num_frames + 1) // 2
    time_halves = (slice(0, first), slice(first, num_frames))
    line_halves = (slice(0, height // 2), slice(height // 2, height // 2 * 2))
    column_halves = (slice(0, width // 2), slice(width // 2, width // 2 * 2))
    return list(product(time_halves, line_halves, column_halves))
