"""Command lines of NVIDIA's profilers around `sama-mega profile`."""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from pathlib import Path

from sama_mega.config.errors import ConfigError

NCU_LAUNCHES = 3
"""Of the kernel, each measured by itself: counters of the first may be those of cold caches."""


def nsys_command(program: Sequence[str], out: Path) -> list[str]:
    """What records the traced steps for Nsight Systems.

    Args:
        program: Command line of a `profile --nvtx`.
        out: Where its file goes.
    """
    return [
        "nsys",
        "profile",
        "--trace=cuda,nvtx,osrt",
        "--capture-range=cudaProfilerApi",
        "--capture-range-end=stop",
        f"--output={out}/nsys",
        *program,
    ]


def ncu_command(program: Sequence[str], kernel: str, out: Path, ncu: str = "ncu") -> list[str]:
    """What reads the counters of one kernel.

    Args:
        program: Command line of a `profile --nvtx`.
        kernel: Regular expression that the kernel's name contains.
        out: Where its file goes.
        ncu: The program.

    Raises:
        ConfigError: It is not a regular expression.
    """
    try:
        re.compile(kernel)
    except re.error as error:
        raise ConfigError(f"--ncu {kernel} is not a regular expression: {error}: name a kernel of the table") from None
    return [
        ncu,
        "--profile-from-start=off",
        "--target-processes=application-only",
        "--kernel-name-base=function",
        f"--kernel-name=regex:{kernel}",
        f"--launch-count={NCU_LAUNCHES}",
        "--set=full",
        "--nvtx",
        "--page=details",  # on the terminal too: without it, --export alone
        "--force-overwrite",
        f"--export={out}/ncu",
        *program,
    ]


def find_ncu() -> str:
    """The program `ncu`.

    Raises:
        ConfigError: It is not on PATH.
    """
    found = shutil.which("ncu")
    if found is None:
        raise ConfigError(
            "--ncu needs NVIDIA Nsight Compute, and there is no ncu on PATH: install the package nsight-compute of the"
            " CUDA toolkit, or add its folder to PATH"
        )
    return found
