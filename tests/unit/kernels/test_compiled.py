"""The kernels compile for Hopper, which no interpreter shows, and keep what they hold in registers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

MOST_SHARED_BYTES = 227 * 1024
MOST_STACK_BYTES = {
    "add_noise_forward": 32,  # no spill: a cosine's reduction of huge angles, which come to no use here
    "backward_kernel": 64,  # capped at 128 registers, so that two programs fit
    "key_value_gradient_kernel": 256,
}
"""A thread; nothing in the kernels that are not named."""


@pytest.mark.slow
def test_every_kernel_compiles_and_hardly_one_spills(tmp_path: Path, repo_root: Path) -> None:
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
        assert usage["stack"] <= MOST_STACK_BYTES.get(name.split()[0], 0), name
        assert usage["shared"] <= MOST_SHARED_BYTES, name
    products = {name: usage for name, usage in kernels.items() if "products" in usage}
    assert len(products) > 12
    for name, usage in products.items():
        # The assembler may decide to wait for each product; one wait a product tells.
        assert 2 * usage["waits"] < usage["products"], name
