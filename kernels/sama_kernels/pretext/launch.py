"""Motion alignment's perturbation with Triton. Pixels are data: there is no gradient, hence no autograd.py."""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from sama_kernels.pretext.kernel import pretext_forward
from sama_kernels.transfer import to_device

_PIXELS_PER_PROGRAM = 1024


def pretext_triton(
    frames: Tensor, frame_indices: list[int], tube_order: tuple[int, ...] | None, dtype: torch.dtype
) -> Tensor:
    """See `sama_kernels.pretext.pretext`."""
    frames = frames.contiguous()
    num_frames, (_, height, width, channels) = len(frame_indices), frames.shape
    plan = torch.tensor([*frame_indices, *(tube_order or ())], dtype=torch.int32)
    out = torch.empty(channels, num_frames, height, width, dtype=dtype, device=frames.device)
    if out.numel():
        pretext_forward[triton.cdiv(height * width, _PIXELS_PER_PROGRAM), num_frames](
            frames,
            to_device(plan, frames.device),
            out,
            num_frames,
            height,
            width,
            SHUFFLED=tube_order is not None,
            BLOCK=_PIXELS_PER_PROGRAM,
        )
    return out
