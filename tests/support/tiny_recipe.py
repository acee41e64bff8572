"""The demo's recipes shrunk until a step takes milliseconds, and a synthetic world of their size.

Everything is an override of `recipes/demo_stage*.yaml`, so that the tests run the code path that the demo runs.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sama_data.synth import WorldSpec
from sama_data.synth.write import write_world
from sama_mega.config import load_recipe
from sama_mega.config.schema import Recipe
from sama_mega.parallel.runtime import ParallelContext, start_parallel, stop_parallel

REPOSITORY = Path(__file__).resolve().parents[2]
SIZE, FRAMES, FPS = 32, 5, 16
VIDEOS, IMAGES = 8, 8
POLL_SECONDS = 0.02

TINY: dict[str, Any] = {
    "model.dim": 32,
    "model.num_layers": 2,
    "model.num_heads": 2,
    "model.ffn_dim": 48,
    "model.text_dim": 16,
    "model.text_length": 16,
    "model.time_features": 16,
    "model.semantic_dim": 12,
    "model.semantic_hidden_dim": 16,
    "anchor.local_grid": 2,
    "data.images_per_step": 2,
    "data.videos_per_step": 2,
    "data.micro_batch_images": 2,
    "data.micro_batch_videos": 2,
    "data.buckets": [[SIZE, SIZE]],
    "data.max_frames": FRAMES,
    "diffusion.sampling_steps": 2,
    "optimizer.warmup_steps": 0,
    "optimizer.decay_share": 0.0,
    "train.num_samples": 0,
    # One thread: sums then run in one order, whatever machine and whatever else it does.
    "train.cpu_threads": 1,
    "train.float32_matmul_precision": "highest",
    "checkpoint.init_from": None,
    "track.mlflow": False,
}


def recipe_path(stage: int) -> Path:
    """The demo's recipe of a stage."""
    return REPOSITORY / f"recipes/demo_stage{stage}.yaml"


def tiny_overrides(
    run_folder: Path, manifest: Path, steps: int = 3, changes: Mapping[str, Any] | None = None
) -> list[str]:
    """`a.b=value` items that make a demo recipe tiny; `changes` win."""
    values = TINY | {"train.run_folder": str(run_folder), "data.manifest": str(manifest), "train.steps": steps}
    values |= {"checkpoint.every": max(1, steps)} | dict(changes or {})
    return [f"{key}={json.dumps(value)}" for key, value in values.items()]


def tiny_recipe(
    stage: int, run_folder: Path, manifest: Path, steps: int = 3, changes: Mapping[str, Any] | None = None
) -> Recipe:
    """The same as a recipe object."""
    return load_recipe(recipe_path(stage), tiny_overrides(run_folder, manifest, steps, changes))


def tiny_world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with `pairs.jsonl` and `raw.jsonl` of 8 video pairs and 8 image pairs; made once a session."""
    folder = tmp_path_factory.getbasetemp() / "tiny_world"
    if not folder.exists():
        spec = WorldSpec(num_frames=FRAMES, height=SIZE, width=SIZE, fps=FPS)
        write_world(folder, VIDEOS, IMAGES, seed=5, spec=spec)
    return folder


def read_rows(run_folder: Path) -> list[dict[str, Any]]:
    """Whole rows of a run's metrics.jsonl; none when it does not exist yet."""
    path = run_folder / "metrics.jsonl"
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]


def repeatable(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of metrics without what was measured: what a second run must repeat bit for bit."""
    measured = ("speed", "ranks", "memory", "data")
    return {key: value for key, value in row.items() if not key.endswith("_seconds") and key not in measured}


def newest_checkpoint(run_folder: Path) -> Path:
    """The checkpoint of the highest step."""
    return max((run_folder / "checkpoints").glob("step-*"))


def assert_bitwise_equal(ours: Mapping[str, Tensor], truth: Mapping[str, Tensor]) -> None:
    """Same names, and every tensor the same to the last bit."""
    assert ours.keys() == truth.keys() and truth
    different = [name for name in truth if not torch.equal(ours[name], truth[name])]
    assert not different, f"{len(different)} of {len(truth)} tensors differ, such as {different[:3]}"


@contextmanager
def alone(recipe: Recipe) -> Iterator[ParallelContext]:
    """A world of this one process."""
    context = start_parallel(recipe)
    try:
        yield context
    finally:
        stop_parallel()


def run_command(*arguments: object, timeout_seconds: float = 60.0) -> subprocess.CompletedProcess[str]:
    """Runs `python -m sama_mega` to its end."""
    return subprocess.run(
        [sys.executable, "-m", "sama_mega", *map(str, arguments)],
        cwd=REPOSITORY,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=timeout_seconds,
    )


def wait_until(
    happened: Callable[[], bool], processes: Sequence[subprocess.Popen[bytes]], timeout_seconds: float
) -> None:
    """Polls until something happened; fails when a process ends first or time runs out."""
    deadline = time.monotonic() + timeout_seconds
    while not happened():
        assert all(process.poll() is None for process in processes), "a process ended before it could be killed"
        assert time.monotonic() < deadline, f"did not happen within {timeout_seconds:g} s"
        time.sleep(POLL_SECONDS)


def call_main(*arguments: object) -> int:
    """Runs a command in this process; returns its exit status."""
    from sama_mega.__main__ import main

    with pytest.raises(SystemExit) as caught:
        main([str(argument) for argument in arguments])
    return int(caught.value.code or 0)
