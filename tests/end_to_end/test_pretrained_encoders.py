"""Training and editing with Wan's VAE, UMT5 and SigLIP, through the command line; tiny ones with random weights."""

from __future__ import annotations

import io
import json
import math
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pytest

from sama_data.decode import decode_frames
from tests.support.pretrained_folders import pretrained_encoders, pretrained_weights
from tests.support.tiny_recipe import FRAMES, SIZE, call_main, read_rows, recipe_path, tiny_overrides, tiny_world

STEPS = 3


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def run_folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of stage 0, images, clips and all its motion tasks, with a picture at its end."""
    folder = tmp_path_factory.mktemp("pretrained") / "run"
    changes: dict[str, Any] = pretrained_encoders(pretrained_weights(tmp_path_factory))
    changes |= {"train.precision": request.param, "train.num_samples": 1}
    world = tiny_world(tmp_path_factory)
    assert call_main("train", recipe_path(0), *tiny_overrides(folder, world / "raw.jsonl", STEPS, changes)) == 0
    return folder


def test_three_steps_are_trained_and_a_sample_is_edited(run_folder: Path) -> None:
    rows = read_rows(run_folder)
    assert [row["step"] for row in rows] == [1, 2, 3]
    losses = [row[name] for row in rows for name in ("loss", "flow_matching_loss", "semantic_loss")]
    assert all(math.isfinite(loss) and loss > 0 for loss in losses)
    assert len(list((run_folder / "samples").glob("*.png"))) == 1


def test_a_clip_is_edited(run_folder: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    video = tiny_world(tmp_path_factory) / "videos/video-000000-source.mp4"
    out = tmp_path / "edit.mp4"
    with redirect_stdout(io.StringIO()) as printed:
        assert call_main("edit", run_folder, video, "remove the red circle", "--out", out, "--json") == 0
    report = json.loads(printed.getvalue().splitlines()[-1])
    assert (report["frames"], report["width"], report["height"]) == (FRAMES, SIZE, SIZE)
    assert decode_frames(out).frames.shape == (FRAMES, SIZE, SIZE, 3)


def test_an_instruction_longer_than_the_model_reads_is_counted_in_tokens(
    run_folder: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, capfd: pytest.CaptureFixture[str]
) -> None:
    video = tiny_world(tmp_path_factory) / "videos/video-000000-source.mp4"
    assert call_main("edit", run_folder, video, "make it bigger " * 9, "--out", tmp_path / "edit.mp4") == 2
    assert "tokens with its prefix; the model reads 16" in capfd.readouterr().err


def test_weights_that_are_gone_are_named(
    run_folder: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, capfd: pytest.CaptureFixture[str]
) -> None:
    changes = pretrained_encoders(pretrained_weights(tmp_path_factory)) | {"encoders.text_path": str(tmp_path / "gone")}
    world = tiny_world(tmp_path_factory)
    overrides = tiny_overrides(tmp_path / "run", world / "raw.jsonl", STEPS, changes)
    assert call_main("train", recipe_path(0), *overrides) == 2
    *_, line = capfd.readouterr().err.splitlines()
    assert line.startswith("error: encoders.text_path (") and "gone): no such folder" in line
    assert not (tmp_path / "run").exists()
