"""Weights of encoders are found from wherever a checkpoint is opened."""

from __future__ import annotations

from pathlib import Path

import pytest

from sama_mega.checkpoint.encoder_paths import find_encoder_weights
from sama_mega.config.errors import ConfigError
from sama_mega.config.schema import Recipe
from tests.support.tiny_recipe import tiny_recipe


def recipe_with(path: object) -> Recipe:
    changes = {"encoders.video": "wan", "encoders.video_path": str(path)}
    return tiny_recipe(1, Path("runs/edit"), Path("unused.jsonl"), changes=changes)


@pytest.fixture
def checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Of a run that was started in `work`; the current folder is another one."""
    folder = tmp_path / "work/runs/edit/checkpoints/step-00000001"
    folder.mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    return folder


def test_paths_begin_where_the_training_ran(checkpoint: Path, tmp_path: Path) -> None:
    for folder in ("work/weights/wan", "elsewhere/weights/wan"):
        (tmp_path / folder).mkdir(parents=True)
    encoders = find_encoder_weights(recipe_with("weights/wan"), checkpoint).encoders
    assert encoders.video_path == tmp_path / "work/weights/wan"
    assert encoders.text_path is None and encoders.video == "wan"


def test_a_checkpoint_that_was_named_by_a_relative_path(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "work/weights/wan").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "work/runs")
    found = find_encoder_weights(recipe_with("weights/wan"), Path("edit/checkpoints/step-00000001"))
    assert found.encoders.video_path == tmp_path / "work/weights/wan"


def test_a_checkpoint_that_was_moved_finds_them_in_the_current_folder(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere/weights/wan").mkdir(parents=True)
    encoders = find_encoder_weights(recipe_with("weights/wan"), checkpoint).encoders
    assert encoders.video_path == tmp_path / "elsewhere/weights/wan"


def test_an_absolute_path_stays(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "wan").mkdir()
    assert find_encoder_weights(recipe_with(tmp_path / "wan"), checkpoint).encoders.video_path == tmp_path / "wan"


@pytest.mark.parametrize("is_absolute", [False, True])
def test_weights_that_are_nowhere_are_named(checkpoint: Path, tmp_path: Path, is_absolute: bool) -> None:
    path = tmp_path / "wan" if is_absolute else Path("weights/wan")
    with pytest.raises(
        ConfigError, match=r"encoders\.video_path .*no such folder.*put the encoder's weights"
    ) as caught:
        find_encoder_weights(recipe_with(path), checkpoint)
    message = str(caught.value)
    assert f"({path})" in message and str(checkpoint) in message and "\n" not in message
    assert is_absolute or str(tmp_path / "elsewhere") in message
