"""Decodes one image or clip into uint8 RGB frames of the size asked for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sama_data.buckets import Geometry
from sama_data.decode_image import decode_image
from sama_data.decode_video import decode_video
from sama_data.errors import ClipError
from sama_data.media import Media
from sama_data.sniff import STILL_IMAGE, content_kind


@dataclass(frozen=True, slots=True)
class Decoded:
    """Frames of one file.

    Attributes:
        frames: ``[T, H, W, 3]`` uint8 RGB, contiguous.
        fps: Frames a second, None for an image or where the file does not say.
    """

    frames: NDArray[np.uint8]
    fps: float | None


def decode_frames(
    media: Media | Path,
    start: int = 0,
    end: int | None = None,
    max_frames: int | None = None,
    choose_geometry: Callable[[int, int], Geometry] | None = None,
    threads: int = 1,
    content: bytes | None = None,
) -> Decoded:
    """Decodes the frames start <= i < end of a clip, or an image as its only frame.

    The file's content decides how it is read, never its name. Only the frames that are wanted are decoded, so
    a file that is damaged behind them is still good; it is bad when one of them is missing or damaged.
    Colours follow the stream's tag (BT.601 where there is none, as FFmpeg, OpenCV and decord do); a rotation
    tag is applied.

    Args:
        media: The file, or the part of one.
        start: The first frame wanted.
        end: The frame after the last one wanted; None means to the end of the clip.
        max_frames: At most this many frames are decoded, from `start`.
        choose_geometry: Given the picture's upright (width, height), says how to scale and crop it; None
            keeps it.
        threads: Decoder threads for a clip that is large enough to gain from them.
        content: The file's bytes, where they were read already.

    Raises:
        ClipError: The file cannot be decoded or does not hold the wanted frames.
        DataError: It has a URL, and what reads such is not installed.
        ValueError: The wanted range is empty.
    """
    if start < 0 or (end is not None and end <= start) or (max_frames is not None and max_frames < 1):
        raise ValueError(f"no frames wanted: start {start}, end {end}, max_frames {max_frames}")
    if not isinstance(media, Media):
        media = Media(media)
    if media.is_remote and content is None:
        content = media.read()  # once, for all that look at it
    kind = content_kind(media, content)
    if kind == STILL_IMAGE:
        require_still_range(media, start, end)
        return Decoded(decode_image(media, choose_geometry, content), None)
    frames, fps = decode_video(media, kind, start, end, max_frames, choose_geometry, threads, content)
    return Decoded(frames, fps)


def require_still_range(media: Media, start: int, end: int | None) -> None:
    """Makes sure that nothing but the only frame of a still image is wanted.

    Raises:
        ClipError: More is wanted.
    """
    if start > 0 or (end is not None and end > 1):
        raise ClipError(media.name, f"frames {start} to {end} are out of range: it is a still image (1 frame)")
