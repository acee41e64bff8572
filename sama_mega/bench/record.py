"""What a benchmark's figures belong to: machine, versions, command, time."""

from __future__ import annotations

import os
import platform
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

import sama_mega

_PACKAGES = ("torch", "numpy", "av", "nvidia-dali-cuda130", "opencv-python-headless", "triton")


def describe_run() -> dict[str, Any]:
    """Returns machine, versions, command and time as plain values."""
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": " ".join(["sama-mega", *sys.argv[1:]]),
        "cores": num_cores(),
        "processor": _processor(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "versions": {"sama-mega": sama_mega.__version__} | {name: _version(name) for name in _PACKAGES},
    }


def num_cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0))


def dated_name(benchmark: str) -> str:
    """A file name that tells the benchmark and the second."""
    return f"bench-{benchmark}-{datetime.now(UTC):%Y%m%d-%H%M%S}.json"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
