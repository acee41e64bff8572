"""Conversions hold a few tensors in memory, whatever the model's size."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tests.support.peak_memory import PeakMemory

SLACK_BYTES = 32 << 20
"""For the interpreter's own needs; a seventh of the model."""


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory, repo_root: Path) -> list[dict[str, float]]:
    """Every conversion of 24 layers, 240 MB, in a process of its own."""
    folder = tmp_path_factory.mktemp("measured") / "work"
    sizes = ["--dim", "384", "--heads", "6", "--ffn-dim", "1536", "--layers", "24", "--text-dim", "64"]
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.measure_conversion", str(folder), *sizes],
        cwd=repo_root,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_peak_memory_follows_the_largest_tensor(measured: list[dict[str, float]]) -> None:
    labels = [
        "import diffusers",
        "import diffusers with LoRA",
        *(f"export {kind} {dtype}" for dtype in ("fp32", "bf16") for kind in ("sama", "diffusers")),
    ]
    assert [row["conversion"] for row in measured] == labels
    for row in measured:
        limit = 2 * row["largest_tensor_bytes"] + SLACK_BYTES
        assert row["written_bytes"] > 2 * limit, "too small a model to tell"
        assert row["peak_extra_bytes"] < limit, row


def test_the_measure_sees_memory_that_is_held() -> None:
    deadline = time.monotonic() + 10
    with PeakMemory() as peak:
        held = torch.ones(4 << 20)
        while peak.extra_bytes < held.nbytes - (1 << 20):
            assert time.monotonic() < deadline, peak.extra_bytes


def test_a_checkpoint_holds_every_tensor_once(measured: list[dict[str, float]]) -> None:
    """Under two names each; and a view of a mapped file is not written with all of the file."""
    imported, exported = measured[0], measured[2]
    assert imported["written_bytes"] < 1.02 * exported["written_bytes"]
