"""Motion alignment's perturbation of the source: uint8 frames in, perturbed pixels in [-1, 1] out."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sama_kernels.dispatch import choose_backend
from sama_kernels.pretext.reference import BLACK_FRAME, NUM_TUBES, pretext_reference, tube_slices

__all__ = ["BLACK_FRAME", "NUM_TUBES", "pretext", "tube_slices"]


def pretext(
    frames: Tensor,
    frame_indices: Sequence[int] | Tensor,
    tube_order: Sequence[int] | None = None,
    dtype: torch.dtype = torch.float32,
    *,
    backend: str = "auto",
) -> Tensor:
    """Applies a perturbation plan: picks frames, blackens, swaps tubes, and scales to [-1, 1].

    Args:
        frames: ``[T, H, W, 3]`` uint8; not changed.
        frame_indices: ``[T_out]`` which frame of the clip each output frame shows, -1 for a black one.
        tube_order: For each of the 2x2x2 destination tubes (index ``t*4 + h*2 + w``) the tube of the picked
            frames that fills it, or None. See `tube_slices` for their bounds.
        dtype: The result's; the arithmetic is float32.
        backend: ``auto``, ``triton`` or ``reference``.

    Returns:
        ``[3, T_out, H, W]`` contiguous; a black frame is -1.

    Raises:
        ValueError: Wrong shape, dtype, frame index or tube order, or the backend is not built.

    Source: SAMA (arXiv 2603.19228), motion alignment.
    """
    chosen = choose_backend("pretext", backend, frames.device.type)
    if frames.dtype != torch.uint8 or frames.dim() != 4 or frames.shape[-1] != 3:
        raise ValueError(f"pretext: frames must be uint8 [T, H, W, 3], not {frames.dtype} {tuple(frames.shape)}")
    indices = [int(index) for index in frame_indices]
    _check_frame_indices(indices, frames.shape[0])
    order = None if tube_order is None else tuple(int(tube) for tube in tube_order)
    if order is not None:
        _check_tube_order(order, len(indices), frames.shape[1], frames.shape[2])
    if chosen == "reference":
        return pretext_reference(frames, indices, order, dtype)
    from sama_kernels.pretext.launch import pretext_triton

    return pretext_triton(frames, indices, order, dtype)


def _check_frame_indices(indices: list[int], num_frames: int) -> None:
    if not indices:
        raise ValueError("pretext: frame_indices is empty: at least one frame must remain")
    wrong = [index for index in indices if not BLACK_FRAME <= index < num_frames]
    if wrong:
        raise ValueError(
            f"pretext: frame index {wrong[0]} must be {BLACK_FRAME} (black) or below {num_frames} (frames)"
        )


def _check_tube_order(order: tuple[int, ...], num_frames: int, height: int, width: int) -> None:
    if sorted(order) != list(range(NUM_TUBES)):
        raise ValueError(f"pretext: tube_order {order} must be a permutation of 0..{NUM_TUBES - 1}")
    bounds = tube_slices(num_frames, height, width)
    for destination, source in enumerate(order):
        wanted, given = _size(bounds[destination]), _size(bounds[source])
        if wanted != given:
            raise ValueError(
                f"pretext: tube_order moves tube {source} {given} to {destination} {wanted}: only equal shapes swap"
            )


def _size(tube: tuple[slice, slice, slice]) -> tuple[int, int, int]:
    return tuple(part.stop - part.start for part in tube)  # type: ignore[return-value]
