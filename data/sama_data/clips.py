"""Reads a row's files into frames of one size and length, and keeps the latest in memory."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sama_data.buckets import Geometry, choose_bucket, cover, cut_length
from sama_data.decode import decode_frames
from sama_data.rows import Row

_BYTES_PER_MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Clip:
    """A row's frames, brought to their bucket.

    Attributes:
        source: ``[T, H, W, 3]`` uint8 RGB; for a raw row the same array as `target`.
        target: ``[T, H, W, 3]`` uint8 RGB, T = 4k+1.
        fps: Frames a second, None where nothing says.
    """

    source: NDArray[np.uint8]
    target: NDArray[np.uint8]
    fps: float | None

    @property
    def num_bytes(self) -> int:
        """The memory that keeping the clip takes; a cut clip still holds the frames that were cut off."""
        owners = {id(owner): owner.nbytes for owner in (_owner(self.source), _owner(self.target))}
        return sum(owners.values())


def load_clip(row: Row, buckets: Sequence[tuple[int, int]], max_frames: int, threads: int = 1) -> Clip:
    """Decodes a row's target and source.

    The target's size chooses the bucket; both are scaled to cover it and cropped in the middle, and cut to
    the shorter one's 4k+1 frames. An image is one frame, whatever its file holds.

    Args:
        row: The row.
        buckets: The (width, height) buckets, in pixels.
        max_frames: The longest clip wanted.
        threads: Decoder threads for a large clip.

    Raises:
        ClipError: A file cannot be decoded or lacks the row's frames.
    """
    limit = 1 if row.kind == "image" else cut_length(max_frames)

    def fit_target(width: int, height: int) -> Geometry:
        return cover(width, height, choose_bucket(width, height, buckets))

    target = decode_frames(row.target, row.frame_start, row.frame_end, limit, fit_target, threads)
    fps = row.fps if row.fps is not None else target.fps
    if row.source is None:
        frames = target.frames[: cut_length(len(target.frames))]
        return Clip(frames, frames, fps)
    bucket = (target.frames.shape[2], target.frames.shape[1])
    fit_source = _fit_to(bucket)
    source = decode_frames(row.source, row.frame_start, row.frame_end, len(target.frames), fit_source, threads)
    num_frames = cut_length(len(source.frames))  # no more than the target has
    return Clip(source.frames[:num_frames], target.frames[:num_frames], fps)


def _fit_to(bucket: tuple[int, int]) -> Callable[[int, int], Geometry]:
    return lambda width, height: cover(width, height, bucket)


def _owner(array: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return array.base if isinstance(array.base, np.ndarray) else array


class ClipCache:
    """Keeps the clips used latest, up to a number of bytes; safe between threads.

    Args:
        budget_mib: MiB of frames to keep; 0 keeps nothing.
    """

    def __init__(self, budget_mib: int) -> None:
        self._budget_bytes = budget_mib * _BYTES_PER_MIB
        self._lock = threading.Lock()
        self._clips: OrderedDict[int, Clip] = OrderedDict()
        self.held_bytes = 0

    def get(self, index: int) -> Clip | None:
        """Returns the clip of a row, if it is kept; the frames are shared, not copied."""
        with self._lock:
            clip = self._clips.get(index)
            if clip is not None:
                self._clips.move_to_end(index)
            return clip

    def put(self, index: int, clip: Clip) -> None:
        """Keeps a row's clip, letting go of those unused for longest."""
        size = clip.num_bytes
        if size > self._budget_bytes:
            return
        with self._lock:
            if index in self._clips:  # two threads read it at once
                return
            self._clips[index] = clip
            self.held_bytes += size
            while self.held_bytes > self._budget_bytes:
                _, dropped = self._clips.popitem(last=False)
                self.held_bytes -= dropped.num_bytes
