"""One file of a batch as the graph takes it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from sama_data.buckets import Geometry

Kind = Literal["video", "image"]


@dataclass(frozen=True, slots=True)
class Piece:
    """One file of a batch: either its bytes and what to make of them, or its frames.

    Attributes:
        content: ``[N]`` uint8, the file's bytes.
        width: Of its picture, pixels.
        height: Lines.
        geometry: How to scale and crop it.
        start: The first frame wanted.
        num_frames: How many are wanted; it holds them.
        frames: ``[T, H, W, 3]`` uint8 RGB as they are to be, where PyAV decoded them; the rest is not read then.
    """

    content: NDArray[np.uint8] | None = None
    width: int = 0
    height: int = 0
    geometry: Geometry | None = None
    start: int = 0
    num_frames: int = 0
    frames: NDArray[np.uint8] | None = None

    @property
    def is_scaled(self) -> bool:
        """Whether its size changes before it is cropped."""
        fit = self.geometry
        return fit is not None and (fit.scaled_width, fit.scaled_height) != (self.width, self.height)

    @property
    def is_cropped(self) -> bool:
        """Whether less than the whole of it is wanted."""
        fit = self.geometry
        return fit is not None and (fit.width, fit.height) != (fit.scaled_width, fit.scaled_height)
