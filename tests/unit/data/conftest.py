"""Clips for the data tests, made on the spot."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from numpy.typing import NDArray

import sama_data.decode  # noqa: F401  it silences FFmpeg's own messages

Frames = NDArray[np.uint8]

# Wall-clock limits of single examples fail on a busy machine; every test has a time limit of its own.
settings.register_profile("busy_machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy_machine")


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
    fps: int = 16,
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


@pytest.fixture(scope="session")
def make_frames() -> Callable[..., Frames]:
    return moving_picture


@pytest.fixture(scope="session")
def make_video() -> Callable[..., Path]:
    return write_video


@pytest.fixture(scope="session")
def measure_psnr() -> Callable[[Frames, Frames], float]:
    return psnr
