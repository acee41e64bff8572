"""Runs whose every step mixes pictures and clips of many shapes, raw and edited, and what compares two of them.

For tests that hold one layout of ranks against another through `train`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import Tensor

LIMIT = 1e-5
"""Largest relative error of a loss and of a parameter tensor (norm of difference over norm) between layouts."""

# Sizes (width, height) and lengths that give odd numbers of tokens, and samples of one step that cannot be stacked.
CLIPS = ((32, 32, 13), (48, 32, 17), (36, 52, 9), (32, 32, 5), (54, 40, 14), (32, 32, 13))
MIXED = {
    "model.text_length": 9,
    # Heads that start at zero would pass no gradient in the first step and tiny ones in the next: all rounding.
    "model.head_init": "xavier",
    "data.images_per_step": 3,
    "data.videos_per_step": 5,
    "data.micro_batch_images": 2,
    "data.micro_batch_videos": 2,
    "data.buckets": [[32, 32], [48, 32], [32, 48]],
    "data.max_frames": 13,
    "data.image_weight": 0.7,
    "data.text_dropout": 0.3,
    "anchor.num_frames": 3,
    "diffusion.timestep_weight": "bell",
    "optimizer.warmup_steps": 2,
    "optimizer.decay_share": 0.3,
    "track.log_sample_ids": True,
}

EXACT_KEYS = ("step", "sample_digest", "sample_ids", "tokens", "num_images", "num_videos", "samples_seen", "skipped")
CLOSE_KEYS = ("loss", "flow_matching_loss", "semantic_loss", "gradient_norm", "learning_rate")


def write_mixed_world(folder: Path) -> Path:
    """Raw clips, edited clips, image pairs and a captioned image in one manifest."""
    from PIL import Image

    from sama_data.manifest import write_jsonl
    from sama_data.synth.write import write_clip

    folder.mkdir()
    rows: list[dict[str, Any]] = []
    for number, (width, height, frames) in enumerate(CLIPS):
        for name in ("raw", "source", "target"):
            write_clip(folder / f"{name}{number}.mp4", moving_picture(number, name, frames, height, width), 8)
        rows.append({"video": f"raw{number}.mp4", "caption": f"Waves number {number}."})
        pair = {"source": f"source{number}.mp4", "target": f"target{number}.mp4"}
        rows.append(pair | {"instruction": f"Turn the waves of clip {number} upside down and make them blue."})
    for number, (width, height, _) in enumerate(CLIPS):
        for name in ("before", "after"):
            Image.fromarray(moving_picture(number, name, 1, height, width)[0]).save(folder / f"{name}{number}.png")
        pair = {"source": f"before{number}.png", "target": f"after{number}.png"}
        rows.append(pair | {"instruction": f"Turn picture {number}."})
    rows.append({"image": "before0.png", "caption": "A still wave."})
    write_jsonl(rows, folder / "mixed.jsonl")
    return folder / "mixed.jsonl"


def moving_picture(number: int, name: str, frames: int, height: int, width: int) -> np.ndarray:
    """[T, H, W, 3] uint8."""
    time, line, column = np.ogrid[:frames, :height, :width]
    phase = number + len(name)
    wave = [np.sin((line + k * column) / 9 + time * (0.2 + 0.1 * k) + phase * k) for k in (1, 2, 3)]
    return np.round(127.5 + 110 * np.stack(wave, -1)).astype(np.uint8)


def meeting_points(folder: Path) -> Callable[[str], None]:
    """A world is joined at a file that nobody joined at before."""
    from sama_mega.parallel.rank_environment import RENDEZVOUS_FILE_VARIABLE

    return lambda name: os.environ.update({RENDEZVOUS_FILE_VARIABLE: str(folder / f"{name}.rendezvous")})


def what_is_raised(work: Callable[[], object]) -> str:
    try:
        work()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


def assert_same_steps(ours: list[dict[str, Any]], truth: list[dict[str, Any]]) -> None:
    assert [row["step"] for row in ours] == [row["step"] for row in truth]
    for row, true in zip(ours, truth, strict=True):
        for key in EXACT_KEYS:
            assert row[key] == true[key], (row["step"], key, row[key], true[key])
        for key in CLOSE_KEYS:
            assert row[key] == pytest.approx(true[key], rel=LIMIT), (row["step"], key, row[key], true[key])
        assert row["losses_by_task"] == pytest.approx(true["losses_by_task"], rel=LIMIT), row["step"]


def distance(ours: Tensor, truth: Tensor) -> float:
    """Norm of the difference over the truth's; over one where that is zero."""
    norm = truth.norm().item()
    return (ours - truth).norm().item() / (norm if norm > 0 else 1.0)
