"""Thresholds of the health check, from the environment: they belong to a cluster, not to a recipe."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from sama_mega.config.errors import ConfigError

TIMEOUT_VARIABLE = "SAMA_MEGA_HEALTH_TIMEOUT_SECONDS"
DISK_VARIABLE = "SAMA_MEGA_MIN_FREE_DISK_GIB"
MEMORY_VARIABLE = "SAMA_MEGA_MIN_FREE_GPU_MEMORY_SHARE"
CLOCK_VARIABLE = "SAMA_MEGA_MAX_CLOCK_SKEW_SECONDS"
BANDWIDTH_VARIABLE = "SAMA_MEGA_MIN_ALL_REDUCE_GIGABYTES_PER_SECOND"


@dataclass(frozen=True)
class Settings:
    """What a healthy node must have.

    Attributes:
        timeout_seconds: How long ranks wait for each other.
        min_free_disk_gib: Free space in the run folder.
        min_free_gpu_memory_share: Free part of each GPU's memory, 0 to 1.
        max_clock_skew_seconds: Difference between the clocks of two nodes.
        min_all_reduce: Bus bandwidth of an all-reduce in GB/s; None: it is measured on GPUs and not judged.
    """

    timeout_seconds: float = 600.0
    min_free_disk_gib: float = 1.0
    min_free_gpu_memory_share: float = 0.9
    max_clock_skew_seconds: float = 2.0
    min_all_reduce: float | None = None


def read_settings(environ: Mapping[str, str]) -> Settings:
    """Reads the variables that are set; the others keep their defaults.

    Raises:
        ConfigError: A value is not a number or out of its range.
    """
    defaults = Settings()
    timeout = _number(environ, TIMEOUT_VARIABLE, defaults.timeout_seconds)
    if timeout == 0:
        raise ConfigError(f"{TIMEOUT_VARIABLE} (0) must be above 0")
    share = _number(environ, MEMORY_VARIABLE, defaults.min_free_gpu_memory_share)
    if share > 1:
        raise ConfigError(f"{MEMORY_VARIABLE} ({share:g}) must be at most 1, all of a GPU's memory")
    return Settings(
        timeout_seconds=timeout,
        min_free_disk_gib=_number(environ, DISK_VARIABLE, defaults.min_free_disk_gib),
        min_free_gpu_memory_share=share,
        max_clock_skew_seconds=_number(environ, CLOCK_VARIABLE, defaults.max_clock_skew_seconds),
        min_all_reduce=_number(environ, BANDWIDTH_VARIABLE, 0.0) if environ.get(BANDWIDTH_VARIABLE) else None,
    )


def _number(environ: Mapping[str, str], name: str, default: float) -> float:
    text = environ.get(name, "").strip()
    if not text:
        return default
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value >= 0):
        raise ConfigError(f"{name} ({text}) must be a number that is not negative, such as {default:g}")
    return value
