"""The kernels compile for Hopper, which no interpreter shows, and keep what they hold in registers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

MOST_SHARED_BYTES = 227 * 1024
TRIGONOMETRY_BYTES = 32
"""Of stack, for the reduction of huge angles that a library's cosine brings along."""


def test_every_kernel_compiles_without_spilling(tmp_path: Path, repo_root: Path) -> None:
    finished = subprocess.run(
        [sys.executable, "-m", "tests.support.compile_for_hopper"],
        env=os.environ | {"TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)},
        cwd=repo_root,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr[-2000:]
    kernels = json.loads(finished.stdout)
    assert len(kernels) > 30
    for name, usage in kernels.items():
        assert usage["stack"] <= (TRIGONOMETRY_BYTES if name.startswith("add_noise") else 0), name
        assert usage["shared"] <= MOST_SHARED_BYTES, name
