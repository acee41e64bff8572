"""One gather from uint8 frames to channel-first pixels in [-1, 1]."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def pretext_forward(
    frames,
    plan,
    out,
    num_frames,
    height,
    width,
    SHUFFLED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Frames ``[T, H, W, 3]`` -> out ``[3, T_out, H, W]``, by frame indices ``[T_out]`` and then tube order ``[8]``.

    A program fills one block of positions of one output frame in all three channels, so that a line of the frame is
    fetched once. T_out is num_frames.
    """
    frame = tl.program_id(1)
    positions = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = positions < height * width
    line = positions // width
    column = positions % width
    picked = frame
    if SHUFFLED:
        time_half, half_height, half_width = (num_frames + 1) // 2, height // 2, width // 2
        late, low, right = frame >= time_half, line >= half_height, column >= half_width
        tube = late.to(tl.int32) * 4 + low.to(tl.int32) * 2 + right.to(tl.int32)
        # An odd last line or column belongs to no tube.
        moves = (line < 2 * half_height) & (column < 2 * half_width)
        source = tl.load(plan + num_frames + tube)
        source = tl.where(moves, source, tube)
        picked = frame + (source // 4 - tube // 4) * time_half
        line += (source // 2 % 2 - tube // 2 % 2) * half_height
        column += (source % 2 - tube % 2) * half_width
    index = tl.load(plan + picked)
    shown = inside & (index >= 0)
    pixel = ((index.to(tl.int64) * height + line) * width + column) * 3
    plane = tl.cast(num_frames, tl.int64) * height * width
    place = frame.to(tl.int64) * height * width + positions
    for channel in tl.static_range(3):
        level = tl.load(frames + pixel + channel, mask=shown, other=0).to(tl.float32)
        value = tl.div_rn(level, 127.5) - 1.0
        tl.store(out + channel * plane + place, value.to(out.dtype.element_ty), mask=inside)
