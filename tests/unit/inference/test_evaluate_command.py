"""`evaluate`: refusals before anything is loaded, and both suites on a tiny checkpoint."""

from __future__ import annotations

import errno
import json
import os
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest

from sama_data.synth import EDIT_KINDS
from sama_mega.__main__ import main
from sama_mega.commands import evaluate
from sama_mega.config.errors import CheckpointError, ConfigError, UserError
from sama_mega.train.run import train
from tests.support.tiny_recipe import FRAMES, SIZE, tiny_recipe, tiny_world

# Long enough for every pretext task: a clip of under 10 frames cannot be played faster.
MAX_FRAMES = 13


@pytest.fixture(scope="module")
def run_folders(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """A run of two steps of either stage."""
    world, root = tiny_world(tmp_path_factory), tmp_path_factory.mktemp("evaluate")
    manifests = {0: world / "raw.jsonl", 1: world / "pairs.jsonl"}
    for stage, manifest in manifests.items():
        train(tiny_recipe(stage, root / str(stage), manifest, 2, {"data.max_frames": MAX_FRAMES}))
    return {stage: root / str(stage) for stage in manifests}


def evaluated(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[dict[str, Any], str]:
    """The JSON line and what was printed before it."""
    with pytest.raises(SystemExit) as caught:
        main(["evaluate", *map(str, arguments), "--json"])
    assert not caught.value.code
    *lines, last = capsys.readouterr().out.splitlines()
    return json.loads(last, parse_constant=lambda name: pytest.fail(f"{name} is no JSON")), "\n".join(lines)


# --- refusals -------------------------------------------------------------------------------------


def test_an_unknown_suite_is_named_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"suite \(synthetik\) must be one of: synthetic"):
        evaluate.run(tmp_path, "synthetik", out=tmp_path / "scores")
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=str(tmp_path / "none")):
        evaluate.run(tmp_path / "none")


def test_a_folder_that_cannot_be_made_is_refused_first(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file", tmp_path / "file" / "scores"):
        with pytest.raises(ConfigError, match=r"--out \(.*\) cannot be made: .*: choose another folder"):
            evaluate.run(tmp_path / "none", out=out)


# --- scores ---------------------------------------------------------------------------------------


def test_a_stage_1_checkpoint_is_scored_by_kind_of_edit(
    run_folders: dict[int, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "deep" / "scores"
    report, table = evaluated(capsys, run_folders[1], "synthetic", "--limit", 2, "--steps", 1, "--out", out)
    assert report["checkpoint"].endswith("step-00000002")
    *kinds, together = report["scores"]
    assert [row["kind"] for row in kinds] == list(EDIT_KINDS)
    for row in kinds:
        assert row["num_clips"] == 2 and row["kind"] in table
        assert 0 <= row["success"] <= 1 and 0 <= row["control_success"] <= 1
        assert row["inside_db"] > 0 and row["unedited_db"] > 0
        assert (row["outside_db"] is None) == (row["kind"] == "style")
    in_place = [row for row in kinds if row["kind"] in evaluate.REDRAWN_IN_PLACE]
    assert together["kind"] == "recolour + remove + style + background" and together["num_clips"] == 8
    assert together["success"] == pytest.approx(fmean(row["success"] for row in in_place))
    assert together["inside_db"] == pytest.approx(fmean(row["inside_db"] for row in in_place))
    assert json.loads((out / "scores.json").read_text()) == report["scores"]
    assert sorted(path.name for path in out.glob("*.png")) == sorted(f"{kind}.png" for kind in EDIT_KINDS)


def test_a_stage_0_checkpoint_is_scored_by_task(
    run_folders: dict[int, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report, table = evaluated(capsys, run_folders[0], "synthetic", "--limit", 2, "--steps", 1, "--out", tmp_path)
    assert [row["task"] for row in report["scores"]] == ["cube", "speed", "tube"]
    baselines = {row["task"]: set(row["baselines_db"]) for row in report["scores"]}
    assert baselines == {
        "cube": {"black", "nearest visible frame"},
        "speed": {"its source"},
        "tube": {"its source"},
    }
    for row in report["scores"]:
        assert row["num_clips"] == 2 and row["model_db"] > 0 and row["task"] in table
        # The perturbed source must be worse than the codec itself, else the score measures nothing.
        assert all(value < 60 for value in row["baselines_db"].values())
    assert {path.name for path in tmp_path.iterdir()} == {"cube.png", "speed.png", "tube.png", "scores.json"}


def test_the_same_checkpoint_scores_the_same(run_folders: dict[int, Path], capsys: pytest.CaptureFixture[str]) -> None:
    arguments = (run_folders[1], "synthetic", "--limit", 1, "--steps", 1)
    first, _ = evaluated(capsys, *arguments)
    assert evaluated(capsys, *arguments)[0] == first


def test_the_moving_average_is_what_is_scored(run_folders: dict[int, Path], capsys: pytest.CaptureFixture[str]) -> None:
    arguments = (run_folders[1], "synthetic", "--limit", 1, "--steps", 1)
    default, _ = evaluated(capsys, *arguments)
    assert evaluated(capsys, *arguments, "--weights", "ema")[0] == default
    assert evaluated(capsys, *arguments, "--weights", "model")[0] != default


class RecordingEditor:
    """Keeps the prompts that an editor is asked for."""

    def __init__(self, editor: Any) -> None:
        self.editor = editor
        self.prompts: list[list[str]] = []

    def edit(self, sources: Any, prompts: list[str], *arguments: Any, **options: Any) -> Any:
        self.prompts.append(prompts)
        return self.editor.edit(sources, prompts, *arguments, **options)


def test_the_control_is_given_another_clips_instruction(run_folders: dict[int, Path]) -> None:
    from sama_mega.inference.editor import SamplingSettings
    from sama_mega.inference.load import open_checkpoint
    from sama_mega.inference.synthetic_suite import SyntheticSuite

    with open_checkpoint(run_folders[1], "ema") as opened:
        editor = RecordingEditor(opened.editor)
        recorded = replace(opened, editor=editor)  # type: ignore[arg-type]
        list(SyntheticSuite(recorded, SamplingSettings(1, 1.0, 0), 2).score_edits())
    assert len(editor.prompts) == 2 * len(EDIT_KINDS)
    for own, others in zip(editor.prompts[::2], editor.prompts[1::2], strict=True):
        assert len(own) == len(others) == 2
        assert all(mine.startswith("[Video edit] ") and mine != other for mine, other in zip(own, others, strict=True))
    asked = [sorted(prompt for prompts in editor.prompts[part::2] for prompt in prompts) for part in (0, 1)]
    assert asked[0] == asked[1]


def test_the_suites_clips_are_of_the_recipes_size(run_folders: dict[int, Path]) -> None:
    from sama_mega.inference.editor import SamplingSettings
    from sama_mega.inference.held_out import HELD_OUT_SEED
    from sama_mega.inference.load import open_checkpoint
    from sama_mega.inference.synthetic_suite import SyntheticSuite

    heard: list[int] = []
    with open_checkpoint(run_folders[1], "ema") as opened:
        assert opened.recipe.train.seed != HELD_OUT_SEED
        suite = SyntheticSuite(opened, SamplingSettings(1, 1.0, 0), 1, heard.append)
        _, example = next(iter(suite.score_edits()))
    assert heard == [1, 1]
    assert [name for name, _ in example.rows] == ["source", "edit", "truth"]
    assert all(pixels.shape == (3, MAX_FRAMES, SIZE, SIZE) for _, pixels in example.rows)
    assert FRAMES < MAX_FRAMES


def test_scores_that_cannot_be_written_are_one_line(
    run_folders: dict[int, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sama_mega.inference import pictures

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(pictures, "grid_picture", full)
    with pytest.raises(UserError, match="No space left on device"):
        evaluate.run(run_folders[1], "synthetic", steps=1, limit=1, out=tmp_path)
