"""What figures of decoding belong to, beside the machine: the command, the cores and the decoders' versions."""

from __future__ import annotations

import os
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from sama_mega.bench.results import describe_machine

_DECODERS = ("av", "nvidia-dali-cuda130", "opencv-python-headless")


def describe_run() -> dict[str, Any]:
    """Returns time, command, cores, decoders and machine as plain values."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": " ".join(["sama-mega", *sys.argv[1:]]),
        "cores": num_cores(),
        "decoders": {name: _version(name) for name in _DECODERS},
    } | describe_machine(device)


def num_cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0))


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
