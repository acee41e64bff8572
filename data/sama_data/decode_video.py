"""Decodes the wanted frames of one clip, converting colour and size in one pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from av.video.frame import VideoFrame
from av.video.reformatter import Colorspace, Interpolation, VideoReformatter
from numpy.typing import NDArray

from sama_data.buckets import Geometry
from sama_data.media import Media
from sama_data.video_reader import MIN_PIXELS_FOR_THREADS, end_of_range, open_video, quarter_turns, upright_size

# FFmpeg's default flags lose up to 50 levels at colour edges; these equal DALI's conversion bit for bit.
_EXACT = Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT
_SAME_SIZE = Interpolation.BILINEAR | _EXACT
_RESIZE = Interpolation.BICUBIC | _EXACT  # swscale widens the filter when it shrinks, so it does not alias

# AVColorSpace values that name no matrix for a YUV picture: RGB, unspecified, reserved.
_UNTAGGED_COLOUR_SPACES = frozenset({0, 2, 3})
# A clip may declare any number of frames: memory is taken as frames arrive, beyond this many.
_FIRST_CAPACITY = 128

ChooseGeometry = Callable[[int, int], Geometry]


def decode_video(
    media: Media,
    demuxer: str,
    start: int,
    end: int | None,
    max_frames: int | None,
    choose_geometry: ChooseGeometry | None,
    threads: int,
    content: bytes | None = None,
) -> tuple[NDArray[np.uint8], float | None]:
    """Returns the frames ``[T, H, W, 3]`` uint8 RGB and the rate; see `sama_data.decode.decode_frames`.

    Raises:
        ClipError: The clip has no video, is damaged, or lacks a wanted frame.
    """
    with open_video(media, demuxer, threads, content) as video:
        known = [count for count in (end_of_range(start, end, max_frames), video.num_declared) if count]
        capacity = max(1, min([_FIRST_CAPACITY, *(count - start for count in known)]))
        writer = _FrameWriter(choose_geometry, capacity, threads)
        for frame in video.frames(start, end, max_frames):
            writer.add(frame)
        return writer.frames(), video.fps


class _FrameWriter:
    """Converts decoded frames into one growing uint8 array."""

    def __init__(self, choose_geometry: ChooseGeometry | None, capacity: int, threads: int) -> None:
        self._choose_geometry = choose_geometry
        self._capacity = capacity
        self._threads = threads
        self._reformatter = VideoReformatter()  # kept: it is slow to set up
        self._frames: NDArray[np.uint8] | None = None
        self._count = 0

    def frames(self) -> NDArray[np.uint8]:
        assert self._frames is not None, "a clip without frames was refused"
        return self._frames[: self._count]

    def add(self, frame: VideoFrame) -> None:
        if self._frames is None:
            self._frames = self._prepare(frame)
        if self._count == len(self._frames):
            self._frames = np.concatenate([self._frames, np.empty_like(self._frames)])
        self._frames[self._count] = self._convert(frame)
        self._count += 1

    def _prepare(self, frame: VideoFrame) -> NDArray[np.uint8]:
        """Fixes how every frame of the clip is converted, from its first one; returns room for them."""
        self._quarter_turns = quarter_turns(frame)
        sideways = self._quarter_turns % 2 == 1
        width, height = upright_size(frame)
        if self._choose_geometry is None:
            geometry = Geometry(width, height, 0, 0, width, height)
        else:
            geometry = self._choose_geometry(width, height)
        scaled = (geometry.scaled_width, geometry.scaled_height)
        self._stored_size = scaled[::-1] if sideways else scaled
        self._crop = (
            slice(geometry.top, geometry.top + geometry.height),
            slice(geometry.left, geometry.left + geometry.width),
        )
        self._flags = _SAME_SIZE if self._stored_size == (frame.width, frame.height) else _RESIZE
        # Slices in threads pay from about 480p on, as decoding does.
        self._slices = self._threads if width * height >= MIN_PIXELS_FOR_THREADS else 1
        return np.empty((self._capacity, geometry.height, geometry.width, 3), np.uint8)

    def _convert(self, frame: VideoFrame) -> NDArray[np.uint8]:
        """Returns a view ``[H, W, 3]`` of the converted, upright, cropped frame."""
        width, height = self._stored_size
        untagged = not frame.format.is_rgb and int(frame.colorspace) in _UNTAGGED_COLOUR_SPACES
        picture = self._reformatter.reformat(
            frame,
            width=width,
            height=height,
            format="rgb24",
            src_colorspace=Colorspace.ITU601 if untagged else None,
            interpolation=self._flags,
            threads=self._slices,
        )
        plane: Any = picture.planes[0]
        rows = np.frombuffer(plane, np.uint8).reshape(height, plane.line_size)
        pixels = rows[:, : width * 3].reshape(height, width, 3)
        if self._quarter_turns:
            pixels = np.rot90(pixels, self._quarter_turns)
        return pixels[self._crop]
