"""Clips for the data tests, made on the spot."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

import sama_data.decode  # noqa: F401  it silences FFmpeg's own messages
from tests.support.clips import Frames, moving_picture, psnr, write_video

# Wall-clock limits of single examples fail on a busy machine; every test has a time limit of its own.
settings.register_profile("busy_machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy_machine")


@pytest.fixture(scope="session")
def make_frames() -> Callable[..., Frames]:
    return moving_picture


@pytest.fixture(scope="session")
def make_video() -> Callable[..., Path]:
    return write_video


@pytest.fixture(scope="session")
def measure_psnr() -> Callable[[Frames, Frames], float]:
    return psnr
