"""What a run that resumes may change in its recipe and what not."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from sama_mega.checkpoint.same_course import require_same_course, require_same_rows
from sama_mega.checkpoint.saved_state import SavedState, write_saved_state
from sama_mega.config import recipe_to_yaml
from sama_mega.config.errors import CheckpointError
from sama_mega.config.schema import Recipe
from tests.support.tiny_recipe import tiny_recipe


def recipe(**changes: Any) -> Recipe:
    values = {key.replace("__", "."): value for key, value in changes.items()}
    return tiny_recipe(0, Path("run"), Path("data/raw.jsonl"), 8, values)


def blend(*entries: tuple[str, float]) -> dict[str, Any]:
    return {"data__blend": [{"manifest": path, "weight": weight} for path, weight in entries], "data__manifest": None}


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    (tmp_path / "recipe.yaml").write_text(recipe_to_yaml(recipe()))
    return tmp_path


def test_the_same_recipe_goes_on(checkpoint: Path) -> None:
    assert require_same_course(checkpoint, recipe()) == []


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"train__seed": 9}, "train.seed is 0 there and 9 here"),
        ({"data__images_per_step": 4}, "data.images_per_step is 2 there and 4 here"),
        ({"data__videos_per_step": 0}, "data.videos_per_step is 2 there and 0 here"),
        ({"train__stage": 1}, "train.stage is 0 there and 1 here"),
        ({"model__ffn_dim": 64}, "model.ffn_dim is 48 there and 64 here"),
        ({"model__head_init": "zero"}, "model.head_init is xavier there and zero here"),
        ({"data__manifest": "data/more.jsonl"}, "data.manifest is data/raw.jsonl there and data/more.jsonl here"),
        (blend(("data/raw.jsonl", 1.0)), "data.manifest is data/raw.jsonl there and null here"),
    ],
)
def test_another_course_is_refused(checkpoint: Path, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        require_same_course(checkpoint, recipe(**changes))
    said = str(caught.value)
    assert words in said and str(checkpoint) in said
    assert "set it back, or start a new train.run_folder" in said or "set them back" in said


def test_a_blend_must_stay_too(tmp_path: Path) -> None:
    old = blend(("a.jsonl", 1.0), ("b.jsonl", 2.0))
    (tmp_path / "recipe.yaml").write_text(recipe_to_yaml(recipe(**old)))
    assert require_same_course(tmp_path, recipe(**old)) == []
    same = blend((os.path.abspath("a.jsonl"), 1.0), ("b.jsonl", 2.0))
    assert len(require_same_course(tmp_path, recipe(**same))) == 1
    for other in (
        blend(("a.jsonl", 1.0)),
        blend(("a.jsonl", 1.0), ("b.jsonl", 3.0)),
        blend(("b.jsonl", 2.0), ("a.jsonl", 1.0)),
        {},
    ):
        with pytest.raises(CheckpointError, match=r"data\.blend is .*b\.jsonl"):
            require_same_course(tmp_path, recipe(**other))


def test_many_broken_keys_are_one_line(checkpoint: Path) -> None:
    changes = {
        "model__dim": 64,
        "model__num_layers": 3,
        "model__ffn_dim": 1,
        "train__seed": 3,
        "data__images_per_step": 1,
    }
    with pytest.raises(CheckpointError, match=r"and 2 more keys; .*set them back, or start a new") as caught:
        require_same_course(checkpoint, recipe(**changes))
    assert "\n" not in str(caught.value)


def test_other_changes_are_listed(checkpoint: Path) -> None:
    changed = recipe(
        train__steps=80,
        train__run_folder="moved",
        checkpoint__every=3,
        track__experiment="other",
        parallel__sequence=False,
        optimizer__learning_rate=0.5,
        data__buckets=[[64, 32]],
        data__manifest=os.path.abspath("data/raw.jsonl"),
    )
    old = recipe()
    assert require_same_course(checkpoint, changed) == [
        "parallel.sequence: true -> false",
        f"data.manifest: data/raw.jsonl -> {os.path.abspath('data/raw.jsonl')}",
        "data.buckets: [[32, 32]] -> [[64, 32]]",
        f"optimizer.learning_rate: {old.optimizer.learning_rate} -> 0.5",
        "train.steps: 8 -> 80",
        "train.run_folder: run -> moved",
        "checkpoint.every: 8 -> 3",
        f"track.experiment: {old.track.experiment} -> other",
    ]


@pytest.mark.parametrize(
    ("content", "words"),
    [(None, "has no recipe.yaml"), ("model: 3", "the recipe of a checkpoint cannot be read")],
)
def test_a_recipe_that_cannot_be_read_is_the_checkpoints_fault(
    checkpoint: Path, content: str | None, words: str
) -> None:
    (checkpoint / "recipe.yaml").unlink()
    if content is not None:
        (checkpoint / "recipe.yaml").write_text(content)
    with pytest.raises(CheckpointError, match=words) as caught:
        require_same_course(checkpoint, recipe())
    assert str(checkpoint) in str(caught.value)


@pytest.mark.parametrize(("saved", "now", "goes_on"), [("a", "a", True), ("a", "b", False), ("", "b", True)])
def test_the_rows_stay_the_same(tmp_path: Path, saved: str, now: str, goes_on: bool) -> None:
    write_saved_state(tmp_path, SavedState(1, 4, 1, 0, 1, 1, {}, life=1, rows_digest=saved))
    if goes_on:
        require_same_rows(tmp_path, now)
        return
    with pytest.raises(CheckpointError, match="has other rows now"):
        require_same_rows(tmp_path, now)
