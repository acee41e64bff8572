"""Frames of a clip wherever they lie: an array in host memory, or memory of a GPU that DALI filled."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray


class _Tensor(Protocol):
    """What is used of DALI's `TensorGPU`."""

    def shape(self) -> list[int]: ...
    def as_cpu(self) -> Any: ...
    def __dlpack__(self, **how: Any) -> Any: ...
    def __dlpack_device__(self) -> tuple[Any, int]: ...


class DeviceFrames:
    """Frames ``[T, H, W, 3]`` uint8 RGB on a GPU, for whoever speaks DLPack: `torch.from_dlpack(frames)`.

    The memory lives as long as this or anything made from it by DLPack does. DALI takes it back at once when the last
    of them is gone, whatever other streams still have to do with it: keep it until they are done.

    Args:
        tensor: DALI's, filled when this is made.
    """

    def __init__(self, tensor: _Tensor) -> None:
        self._tensor = tensor
        self.shape: tuple[int, ...] = tuple(int(length) for length in tensor.shape())

    def __len__(self) -> int:
        return self.shape[0]

    def on_host(self) -> NDArray[np.uint8]:
        """Returns a copy of the frames in host memory."""
        return np.array(self._tensor.as_cpu())

    def __dlpack__(self, **how: Any) -> Any:
        """Gives the memory over, not a copy of it."""
        return self._tensor.__dlpack__(**how)

    def __dlpack_device__(self) -> tuple[Any, int]:
        """Says where the memory is."""
        return self._tensor.__dlpack_device__()


Frames: TypeAlias = NDArray[np.uint8] | DeviceFrames


@dataclass(frozen=True, slots=True)
class DeviceClip:
    """A row's frames on a GPU, as `sama_data.clips.Clip` has them in host memory.

    Attributes:
        source: The frames before the edit; for a raw row the same object as `target`.
        target: As many frames of the same size, T = 4k+1.
        fps: Frames a second, None where nothing says.
    """

    source: DeviceFrames
    target: DeviceFrames
    fps: float | None


def on_host(frames: Frames) -> NDArray[np.uint8]:
    """Returns frames as an array, copied where they are on a GPU."""
    return frames.on_host() if isinstance(frames, DeviceFrames) else frames
