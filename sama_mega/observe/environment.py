"""What a run ran on: versions, commit and uncommitted changes, host, command."""

from __future__ import annotations

import json
import os
import platform
import shlex
import socket
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

GIT_FILE = "git.json"
"""Beside the packages of a snapshot: what git said where it was taken. `sama-mega submit` writes it."""

_PACKAGES = (
    "sama-mega",
    "torch",
    "triton",
    "megatron-core",
    "numpy",
    "pydantic",
    "av",
    "pyarrow",
    "safetensors",
    "mlflow-skinny",
    "mlflow",
    "nvidia-dali-cuda130",
    "opencv-python-headless",
    "diffusers",
    "transformer-engine",
    "flash-attn-4",
)
_VARIABLES = (
    "SLURM_JOB_ID",
    "SLURM_NNODES",
    "SLURM_NTASKS",
    "SLURM_RESTART_COUNT",
    "WORLD_SIZE",
    "CUDA_VISIBLE_DEVICES",
    "OMP_NUM_THREADS",
)
_MAX_DIFF_CHARACTERS = 1_000_000
_GIT_TIMEOUT_SECONDS = 20


def describe_environment() -> dict[str, Any]:
    """Collects JSON values that tell where and from what this process runs.

    `git` is null outside a checkout and a snapshot of one (an installed wheel, no git program); the diff is cut at a
    million characters.
    """
    return {
        "command": shlex.join(sys.orig_argv),
        "working_directory": os.getcwd(),
        "hostname": socket.gethostname(),
        "process_id": os.getpid(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu_count": os.cpu_count(),
        "accelerators": _accelerators(),
        "versions": installed_versions(),
        "variables": {name: os.environ[name] for name in _VARIABLES if name in os.environ},
        "git": describe_code(Path(__file__).resolve().parents[1]),
    }


def describe_code(package: Path) -> dict[str, Any] | None:
    """Commit, status and diff of a package's code: as noted beside a snapshot, else what git says now.

    Args:
        package: The package's folder.
    """
    noted = package.parent / GIT_FILE
    if noted.is_file():
        return json.loads(noted.read_text(encoding="utf-8"))
    return describe_git(package)


def installed_versions() -> dict[str, str]:
    """Versions of the packages that decide what a run computes, those that are installed; imports none of them."""
    return {name: version for name in _PACKAGES if (version := _version(name)) is not None}


def describe_git(folder: Path) -> dict[str, Any] | None:
    """Commit, status and diff against it of the checkout that tracks this folder's files, or None.

    Args:
        folder: A folder of the source tree. One that git does not track (a package installed below somebody
            else's checkout) counts as outside.
    """
    try:
        if not _git(folder, "ls-files", "--", "."):
            return None
        commit = _git(folder, "rev-parse", "HEAD").strip()
        status = _git(folder, "status", "--porcelain").splitlines()
        diff = _git(folder, "diff", "HEAD")
    except (OSError, subprocess.SubprocessError):
        return None
    return {
        "commit": commit,
        "dirty": bool(status),
        "status": status,
        "diff": diff[:_MAX_DIFF_CHARACTERS],
        "diff_cut": len(diff) > _MAX_DIFF_CHARACTERS,
    }


def _git(folder: Path, *arguments: str) -> str:
    result = subprocess.run(
        ["git", "-C", str(folder), *arguments],
        capture_output=True,
        check=True,
        timeout=_GIT_TIMEOUT_SECONDS,
        text=True,
        errors="replace",
    )
    return result.stdout


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _accelerators() -> list[str]:
    # Whoever runs a model has imported torch already; asking here must not cost seconds to the others.
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return []
    return [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
