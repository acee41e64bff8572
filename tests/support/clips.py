"""Clips made on the spot."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

Frames = NDArray[np.uint8]


def moving_picture(num_frames: int = 17, height: int = 64, width: int = 64, seed: int = 0) -> Frames:
    """Smooth colours that move: every frame differs from the next, and a codec keeps them well."""
    rng = np.random.default_rng(seed)
    phase = rng.uniform(0, 2 * np.pi, 3)
    lines, columns = np.mgrid[:height, :width] / max(height, width)
    frames = np.empty((num_frames, height, width, 3), np.uint8)
    for time in range(num_frames):
        for channel in range(3):
            wave = np.sin(6 * lines + 4 * columns * (channel + 1) + 0.3 * time + phase[channel])
            frames[time, :, :, channel] = np.round(127.5 + 100 * wave)
    return frames


def write_video(
    path: Path,
    frames: Frames,
    codec: str = "libx264",
    fps: int | Fraction = 16,
    mp4_index_first: bool = False,
    **options: str,
) -> Path:
    """Encodes uint8 RGB frames [T, H, W, 3] nearly without loss."""
    path.parent.mkdir(parents=True, exist_ok=True)
    quality = {"crf": "8", "cpu-used": "8", "b": "0"} if codec == "libvpx-vp9" else {"crf": "8"}
    container_options = {"movflags": "+faststart"} if mp4_index_first else {}
    with av.open(str(path), "w", options=container_options) as container:
        stream = container.add_stream(codec, rate=fps, options=quality | options)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, "rgb24")))
        container.mux(stream.encode())
    return path


def psnr(first: Frames, second: Frames) -> float:
    """Peak signal to noise ratio of two uint8 arrays, in dB."""
    error = np.mean((first.astype(np.float64) - second.astype(np.float64)) ** 2)
    return float(10 * np.log10(255.0**2 / max(error, 1e-12)))


def turn_mp4(path: Path, turned: Path, matrix: tuple[int, int, int, int]) -> None:
    """Writes (a, b, c, d) of the display matrix into the track header: 0x10000 is one."""
    content = bytearray(path.read_bytes())
    place = content.index(b"tkhd") + 4 + 4 + 20 + 16  # version, times and ids, layer and volume
    assert content[place : place + 4] == (0x10000).to_bytes(4, "big")
    a, b, c, d = (value.to_bytes(4, "big", signed=True) for value in matrix)
    zero = bytes(4)
    content[place : place + 36] = a + b + zero + c + d + zero + zero + zero + (0x40000000).to_bytes(4, "big")
    turned.write_bytes(bytes(content))
