"""Thresholds from the environment."""

from __future__ import annotations

import pytest

from sama_mega.cluster.health.settings import Settings, read_settings
from sama_mega.config.errors import ConfigError


def test_defaults() -> None:
    assert read_settings({}) == Settings(600.0, 1.0, 0.9, 2.0, None)
    assert read_settings({"SAMA_MEGA_MIN_FREE_DISK_GIB": ""}) == Settings()


def test_every_threshold_can_be_set() -> None:
    environ = {
        "SAMA_MEGA_HEALTH_TIMEOUT_SECONDS": "5",
        "SAMA_MEGA_MIN_FREE_DISK_GIB": "0",
        "SAMA_MEGA_MIN_FREE_GPU_MEMORY_SHARE": "0.5",
        "SAMA_MEGA_MAX_CLOCK_SKEW_SECONDS": " 1e-3 ",
        "SAMA_MEGA_MIN_ALL_REDUCE_GIGABYTES_PER_SECOND": "100",
    }
    assert read_settings(environ) == Settings(5.0, 0.0, 0.5, 0.001, 100.0)


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("SAMA_MEGA_MIN_FREE_DISK_GIB", "much", "SAMA_MEGA_MIN_FREE_DISK_GIB (much) must be a number"),
        ("SAMA_MEGA_MIN_FREE_DISK_GIB", "-1", "must be a number that is not negative, such as 1"),
        ("SAMA_MEGA_MAX_CLOCK_SKEW_SECONDS", "nan", "must be a number"),
        ("SAMA_MEGA_MIN_ALL_REDUCE_GIGABYTES_PER_SECOND", "inf", "must be a number"),
        ("SAMA_MEGA_MIN_FREE_GPU_MEMORY_SHARE", "90", "SAMA_MEGA_MIN_FREE_GPU_MEMORY_SHARE (90) must be at most 1"),
        ("SAMA_MEGA_HEALTH_TIMEOUT_SECONDS", "0", "SAMA_MEGA_HEALTH_TIMEOUT_SECONDS (0) must be above 0"),
    ],
)
def test_what_is_no_threshold_is_refused(name: str, value: str, said: str) -> None:
    with pytest.raises(ConfigError) as error:
        read_settings({name: value})
    assert said in str(error.value)
