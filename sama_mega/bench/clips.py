"""Clips to decode: a moving picture with fine structure, encoded on the spot, or those of a folder."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

from sama_data.decode import decode_frames
from sama_data.errors import DataError
from sama_data.media import Media

_FPS = 16
_OPTIONS = {
    "libvpx-vp9": {"deadline": "realtime", "cpu-used": "8", "crf": "30", "b": "0", "g": "128"},
    "libx264": {"preset": "veryfast", "crf": "20"},
}
_SUFFIXES = {"libvpx-vp9": ".webm", "libx264": ".mp4"}
_CLIP_SUFFIXES = (".mp4", ".webm", ".mkv", ".mov", ".avi")


@dataclass(frozen=True, slots=True)
class BenchClip:
    """One clip.

    Attributes:
        path: The file.
        num_frames: How many of its frames are decoded.
        width: Pixels.
        height: Lines.
    """

    path: Path
    num_frames: int
    width: int
    height: int


def make_clips(folder: Path, encoder: str, count: int, num_frames: int, width: int, height: int) -> list[BenchClip]:
    """Encodes different clips into a folder.

    Args:
        folder: It is there.
        encoder: FFmpeg's name: libvpx-vp9 or libx264.
        count: How many.
        num_frames: Of each.
        width: Pixels, even.
        height: Lines, even.
    """
    return [
        BenchClip(_encode(folder, encoder, number, num_frames, width, height), num_frames, width, height)
        for number in range(count)
    ]


def find_clips(folder: Path, num_frames: int) -> list[BenchClip]:
    """Returns a folder's clips that have so many frames and more, by name.

    Raises:
        DataError: It has none.
    """
    found = []
    for path in sorted(path for path in folder.iterdir() if path.suffix.lower() in _CLIP_SUFFIXES):
        decoded = decode_frames(Media(path), max_frames=num_frames).frames
        if len(decoded) == num_frames:
            found.append(BenchClip(path, num_frames, decoded.shape[2], decoded.shape[1]))
    if not found:
        raise DataError(f"--clips {folder}: no clip of {num_frames} frames or more; give another folder or --frames")
    return found


def _encode(folder: Path, encoder: str, number: int, num_frames: int, width: int, height: int) -> Path:
    path = folder / f"{encoder}-{width}x{height}-{num_frames}-{number}{_SUFFIXES[encoder]}"
    packed = io.BytesIO()
    with av.open(packed, "w", format="webm" if encoder == "libvpx-vp9" else "mp4") as container:
        stream = container.add_stream(encoder, rate=_FPS, options=_OPTIONS[encoder])
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        texture = _texture(number, width, height)
        for time in range(num_frames):
            frame = av.VideoFrame.from_ndarray(_picture(texture, time, width, height), "rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    path.write_bytes(packed.getvalue())
    return path


def _texture(number: int, width: int, height: int) -> NDArray[np.uint8]:
    """A landscape four times the size: smooth hills of colour with grain of several sizes, as photographs have."""
    rng = np.random.default_rng(number)
    tall, wide = 2 * height, 2 * width
    total = np.zeros((tall, wide, 3))
    for size, strength in ((64, 70.0), (16, 30.0), (4, 12.0)):
        coarse = rng.normal(0.0, strength, (tall // size + 2, wide // size + 2, 3))
        total += _enlarge(coarse, tall, wide, size)
    return np.clip(127.5 + total, 0, 255).astype(np.uint8)


def _enlarge(coarse: NDArray[np.float64], tall: int, wide: int, size: int) -> NDArray[np.float64]:
    """Enlarges a grid of colours by a whole number, linearly between its points."""
    lines, columns = np.arange(tall) / size, np.arange(wide) / size
    top, left = lines.astype(int), columns.astype(int)
    down, right = (lines - top)[:, None, None], (columns - left)[None, :, None]
    upper = coarse[top][:, left] * (1 - right) + coarse[top][:, left + 1] * right
    lower = coarse[top + 1][:, left] * (1 - right) + coarse[top + 1][:, left + 1] * right
    return upper * (1 - down) + lower * down


def _picture(texture: NDArray[np.uint8], time: int, width: int, height: int) -> NDArray[np.uint8]:
    """What a camera sees that moves over the landscape."""
    tall, wide = texture.shape[0] - height, texture.shape[1] - width
    top = int((0.5 + 0.5 * np.sin(time / 9)) * tall)
    left = 3 * time % max(1, wide)
    return np.ascontiguousarray(texture[top : top + height, left : left + width])
