"""World, stage 0, stage 1, evaluate and edit, one after the other through the command line."""

from __future__ import annotations

import io
import json
import sqlite3
from contextlib import closing, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sama_data.decode import decode_frames
from sama_data.manifest import load_manifest
from sama_data.synth import EDIT_KINDS
from sama_data.synth.write import write_clip
from sama_mega.config import load_recipe
from sama_mega.config.schema import Recipe
from sama_mega.parallel.checkpoint_io import read_plain
from tests.support.tiny_recipe import (
    FPS,
    FRAMES,
    SIZE,
    assert_bitwise_equal,
    call_main,
    newest_checkpoint,
    read_rows,
    recipe_path,
    tiny_overrides,
)

STEPS = 4
INSTRUCTION = "Change the color of the circle to red."


@dataclass(frozen=True)
class Pipeline:
    """What the commands left behind, and the last line that each printed."""

    root: Path
    reports: dict[str, dict[str, Any]]

    @property
    def world(self) -> Path:
        return self.root / "world"

    def run_folder(self, stage: int) -> Path:
        return self.root / f"runs/stage{stage}"


def train_arguments(root: Path, stage: int, **changes: Any) -> list[str]:
    values = {key.replace("__", "."): value for key, value in changes.items()}
    manifest = root / "world" / ("pairs.jsonl" if stage else "raw.jsonl")
    overrides = tiny_overrides(root / f"runs/stage{stage}", manifest, STEPS, values)
    return ["train", str(recipe_path(stage)), *overrides]


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    root = tmp_path_factory.mktemp("pipeline")
    stage0, stage1 = root / "runs/stage0", root / "runs/stage1"
    tracked = {"track__mlflow": True, "track__uri": f"sqlite:///{root / 'mlflow.db'}"}
    pictures = {"train__num_samples": 2, "train__sample_every": 3, "checkpoint__every": 2}
    size = ["--videos", 8, "--images", 8, "--size", SIZE, "--frames", FRAMES, "--seed", 5]
    commands = {
        "synth": ["data", "synth", "--out", root / "world", *size],
        "stage0": train_arguments(root, 0, **tracked, **pictures),
        "stage1": train_arguments(root, 1, **pictures, checkpoint__init_from=str(stage0)),
        "evaluate": ["evaluate", stage1, "synthetic", "--limit", 1, "--out", root / "scores"],
        "edit": ["edit", stage1, root / "world/videos/video-000000-source.mp4", INSTRUCTION, "--out", root / "e.mp4"],
    }
    reports = {}
    for name, arguments in commands.items():
        with redirect_stdout(io.StringIO()) as printed:
            assert call_main(*arguments, "--json") == 0, name
        reports[name] = json.loads(printed.getvalue().splitlines()[-1])
    return Pipeline(root, reports)


# --- training -------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", [0, 1])
def test_a_run_folder_holds_what_is_promised(pipeline: Pipeline, stage: int) -> None:
    folder = pipeline.run_folder(stage)
    recipe = load_recipe(folder / "recipe.yaml")
    assert isinstance(recipe, Recipe) and recipe.train.stage == stage and recipe.model.dim == 32
    assert json.loads((folder / "environment.json").read_text())["versions"]
    assert json.loads((folder / "lives/0001.json").read_text())["life"] == 1
    assert [row["step"] for row in read_rows(folder)] == list(range(1, STEPS + 1))
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == ["step-00000002", "step-00000004"]
    assert "saved" in (folder / "log.txt").read_text()
    assert not (folder / "quarantine.jsonl").exists()
    assert [path.name for path in (folder / "logs/life-0001").iterdir()] == ["rank-00000.txt"]
    assert {path.name for path in folder.iterdir()} <= {
        *("recipe.yaml", "environment.json", "metrics.jsonl", "checkpoints", "samples", "lives", "log.txt", "logs"),
        *("mlflow.json", "git.diff"),
    }


@pytest.mark.parametrize("stage", [0, 1])
def test_train_says_what_it_did(pipeline: Pipeline, stage: int) -> None:
    report = pipeline.reports[f"stage{stage}"]
    assert (report["steps"], report["samples_seen"], report["num_quarantined"]) == (STEPS, 4 * STEPS, 0)
    assert Path(report["checkpoint"]) == newest_checkpoint(pipeline.run_folder(stage))


def test_the_stages_see_the_samples_that_are_theirs(pipeline: Pipeline) -> None:
    rows = {stage: read_rows(pipeline.run_folder(stage)) for stage in (0, 1)}
    assert all((row["num_images"], row["num_videos"]) == (2, 2) for stage in rows for row in rows[stage])
    tasks = {stage: {task for row in rows[stage] for task in row["losses_by_task"]} for stage in rows}
    assert tasks[1] == {"edit"}
    assert "edit" in tasks[0] and tasks[0] & {"cube", "tube"}


@pytest.mark.parametrize("stage", [0, 1])
def test_samples_are_pictures_and_clips(pipeline: Pipeline, stage: int) -> None:
    samples = pipeline.run_folder(stage) / "samples"
    stems = [f"step-{step:08d}-{number}" for step in (3, 4) for number in (0, 1)]
    assert sorted(path.name for path in samples.iterdir()) == sorted(f"{s}.{e}" for s in stems for e in ("mp4", "png"))
    for stem in stems:
        assert decode_frames(samples / f"{stem}.mp4").frames.shape == (FRAMES, SIZE, SIZE, 3)
        with Image.open(samples / f"{stem}.png") as picture:
            picture.load()


def test_stage_1_starts_from_stage_0s_average(pipeline: Pipeline, tmp_path: Path) -> None:
    """A run whose only step is refused still has the weights it started from."""
    for weights in ("ema", "model"):
        folder = tmp_path / weights
        changes = {"checkpoint.init_from": str(pipeline.run_folder(0)), "checkpoint.init_weights": weights}
        changes |= {"train.skip_loss_above": 1e-6}
        manifest = pipeline.world / "pairs.jsonl"
        assert call_main("train", recipe_path(1), *tiny_overrides(folder, manifest, 1, changes)) == 0
        assert read_rows(folder)[0]["skipped"]
        start = read_plain(newest_checkpoint(pipeline.run_folder(0)), f"{weights}.")
        for section in ("model.", "ema."):
            assert_bitwise_equal(read_plain(newest_checkpoint(folder), section), start)
        assert f"started from the {weights} weights of" in (folder / "log.txt").read_text()


def test_mlflow_has_the_curves(pipeline: Pipeline) -> None:
    with closing(sqlite3.connect(pipeline.root / "mlflow.db")) as database:
        statuses = database.execute("select status from runs").fetchall()
        steps = database.execute("select step, value from metrics where key = 'loss' order by step").fetchall()
    assert statuses == [("FINISHED",)]
    expected = [(row["step"], pytest.approx(row["loss"])) for row in read_rows(pipeline.run_folder(0))]
    assert steps == expected


# --- evaluate -------------------------------------------------------------------------------------


def test_evaluate_scores_every_kind(pipeline: Pipeline) -> None:
    report = pipeline.reports["evaluate"]
    assert Path(report["checkpoint"]) == newest_checkpoint(pipeline.run_folder(1))
    scored = {row["kind"]: row["num_clips"] for row in report["scores"]}
    assert {kind: scored[kind] for kind in EDIT_KINDS} == dict.fromkeys(EDIT_KINDS, 1)
    assert json.loads((pipeline.root / "scores/scores.json").read_text()) == report["scores"]


# --- edit -----------------------------------------------------------------------------------------


def edit(pipeline: Pipeline, clip: Path, out: Path, *options: object) -> int:
    return call_main("edit", pipeline.run_folder(1), clip, INSTRUCTION, "--out", out, *options)


def test_edit_writes_a_clip_and_a_picture(pipeline: Pipeline) -> None:
    report = pipeline.reports["edit"]
    assert (report["frames"], report["fps"], report["width"], report["height"]) == (FRAMES, FPS, SIZE, SIZE)
    assert report["checkpoint"] == str(newest_checkpoint(pipeline.run_folder(1)))
    decoded = decode_frames(Path(report["video"]))
    assert decoded.frames.shape == (FRAMES, SIZE, SIZE, 3) and decoded.fps == FPS
    with Image.open(report["picture"]) as picture:
        assert picture.format == "PNG" and picture.width > FRAMES * SIZE
    source = decode_frames(pipeline.world / "videos/video-000000-source.mp4").frames
    assert not np.array_equal(decoded.frames, source)


@pytest.mark.parametrize(("frames", "fps"), [(1, 25), (3, 12), (6, 24), (7, 30)])
def test_edit_keeps_any_length_and_rate(pipeline: Pipeline, tmp_path: Path, frames: int, fps: int) -> None:
    source = decode_frames(pipeline.world / "videos/video-000001-source.mp4").frames
    write_clip(tmp_path / "clip.mp4", np.concatenate([source, source])[:frames], fps)
    assert edit(pipeline, tmp_path / "clip.mp4", tmp_path / "out.mp4", "--steps", 1) == 0
    decoded = decode_frames(tmp_path / "out.mp4")
    assert decoded.frames.shape == (frames, SIZE, SIZE, 3) and decoded.fps == fps


def test_edit_takes_a_picture(pipeline: Pipeline, tmp_path: Path) -> None:
    picture = next(row.source.path for row in load_manifest(pipeline.world / "pairs.jsonl") if row.kind == "image")
    assert picture is not None
    assert edit(pipeline, picture, tmp_path / "out.mp4", "--steps", 1) == 0
    assert decode_frames(tmp_path / "out.mp4").frames.shape == (1, SIZE, SIZE, 3)


def test_edit_repeats_itself_by_the_seed(pipeline: Pipeline, tmp_path: Path) -> None:
    clip = pipeline.world / "videos/video-000000-source.mp4"
    options = {"same": ["--seed", 1], "again": ["--seed", 1], "seed": ["--seed", 2], "model": ["--weights", "model"]}
    options |= {"guidance": ["--guidance", 3], "steps": ["--steps", 3]}
    for name, chosen in options.items():
        assert edit(pipeline, clip, tmp_path / f"{name}.mp4", *chosen) == 0
    clips = {name: (tmp_path / f"{name}.mp4").read_bytes() for name in options}
    pictures = {name: (tmp_path / f"{name}.png").read_bytes() for name in options}
    default = (pipeline.root / "e.mp4").read_bytes()
    assert clips.pop("same") == clips.pop("again") == default
    assert pictures["same"] == pictures["again"]
    assert len({default, *clips.values()}) == 1 + len(clips)


def test_edit_refuses_a_clip_that_is_too_long(
    pipeline: Pipeline, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    clip = pipeline.world / "videos/video-000000-source.mp4"
    assert edit(pipeline, clip, tmp_path / "out.mp4", "--max-frames", FRAMES - 1) == 2
    captured = capfd.readouterr()
    assert captured.err.count("\n") == 1 and captured.out == ""
    assert str(clip) in captured.err and f"--max-frames ({FRAMES - 1})" in captured.err
    assert list(tmp_path.iterdir()) == []
    assert edit(pipeline, clip, tmp_path / "out.mp4", "--max-frames", FRAMES, "--steps", 1) == 0


def test_a_single_checkpoint_can_be_named(pipeline: Pipeline, tmp_path: Path) -> None:
    clip = pipeline.world / "videos/video-000000-source.mp4"
    for name in ("step-00000002", "step-00000004"):
        checkpoint = pipeline.run_folder(1) / "checkpoints" / name
        assert call_main("edit", checkpoint, clip, INSTRUCTION, "--out", tmp_path / f"{name}.mp4") == 0
    first, second = ((tmp_path / f"step-0000000{step}.mp4").read_bytes() for step in (2, 4))
    assert first != second and second == (pipeline.root / "e.mp4").read_bytes()
