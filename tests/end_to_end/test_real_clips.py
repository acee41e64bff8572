"""Both stages on real 480p H.264, landscape and portrait, where such clips lie beside the clone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sama_data.decode import decode_frames
from sama_data.manifest import load_manifest
from tests.support.tiny_recipe import TINY, call_main, newest_checkpoint, read_rows, recipe_path

STEPS = 2
VIDEOS_PER_STEP = 4
FRAMES = 9


@pytest.fixture(scope="module")
def clips(shared_root: Path) -> Path:
    folder = shared_root / "videos"
    if not folder.is_dir():
        pytest.skip("no real clips beside the clone")
    return folder


@pytest.fixture(scope="module")
def run_folders(clips: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """The demo's own buckets and step, with a tiny model; stage 1 starts from stage 0."""
    root = tmp_path_factory.mktemp("real")
    kept = {key: value for key, value in TINY.items() if key.startswith(("model.", "anchor.", "track."))}
    kept |= {"train.float32_matmul_precision": "highest", "diffusion.sampling_steps": 1, "data.max_frames": FRAMES}
    for stage, manifest in enumerate(("raw.jsonl", "pairs.jsonl")):
        changes: dict[str, Any] = kept | {
            "data.manifest": str(clips / manifest),
            "data.videos_per_step": VIDEOS_PER_STEP,
            "train.steps": STEPS,
            "train.run_folder": str(root / str(stage)),
            "train.num_samples": 1,
            "track.log_sample_ids": True,
            "checkpoint.init_from": str(root / "0") if stage else None,
        }
        overrides = [f"{key}={json.dumps(value)}" for key, value in changes.items()]
        assert call_main("train", recipe_path(stage), *overrides) == 0
    return {stage: root / str(stage) for stage in (0, 1)}


@pytest.mark.parametrize("stage", [0, 1])
def test_a_stage_trains_on_real_clips(run_folders: dict[int, Path], stage: int) -> None:
    folder = run_folders[stage]
    rows = read_rows(folder)
    assert [row["step"] for row in rows] == [1, 2]
    for row in rows:
        assert row["loss"] > 0 and row["gradient_norm"] > 0 and row["skipped"] is None
        assert (row["num_images"], row["num_videos"]) == (0, VIDEOS_PER_STEP)
    tasks = {task for row in rows for task in row["losses_by_task"]}
    assert tasks == {"edit"} if stage else tasks <= {"none", "cube", "speed", "tube"}
    assert newest_checkpoint(folder).name == "step-00000002"
    assert not (folder / "quarantine.jsonl").exists()


@pytest.mark.parametrize("stage", [0, 1])
def test_samples_are_written(run_folders: dict[int, Path], stage: int) -> None:
    samples = run_folders[stage] / "samples"
    assert sorted(path.suffix for path in samples.iterdir()) == [".mp4", ".png"]
    frames = decode_frames(next(samples.glob("*.mp4"))).frames
    assert frames.shape[0] == FRAMES and set(frames.shape[1:3]) in ({64, 112}, {64, 128})


def test_a_real_clip_is_edited_at_its_own_rate(clips: Path, run_folders: dict[int, Path], tmp_path: Path) -> None:
    row = load_manifest(clips / "pairs.jsonl")[0]
    assert row.source is not None
    source = decode_frames(row.source)
    out = tmp_path / "edit.mp4"
    assert call_main("edit", run_folders[1], row.source.path, "Make it red.", "--out", out) == 0
    edited = decode_frames(out)
    assert len(edited.frames) == len(source.frames) and edited.fps == pytest.approx(source.fps, rel=1e-3)
