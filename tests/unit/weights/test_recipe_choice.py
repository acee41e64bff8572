"""The recipe that an imported checkpoint stores."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from sama_mega.config import ConfigError, build_recipe, strict_yaml
from sama_mega.config.load import load_recipe
from sama_mega.config.schema import LoraRecipe
from sama_mega.model.diffusers_names import diffusers_name
from sama_mega.parameters.shapes import released_shapes
from sama_mega.weights.recipe_choice import PUBLISHED_RECIPES, choose_recipe
from sama_mega.weights.source import Source, StoredTensor


def source_of(model: dict[str, Any] | Any, path: Path, folder: Path | None, diffusers: bool) -> Source:
    tensors = {}
    for released, shape in released_shapes(model).items():
        name = diffusers_name(released) if diffusers else released
        if name is not None:
            tensors[name] = StoredTensor("float32", shape, lambda shape=shape: torch.empty(shape, device="meta"))
    return Source(path, folder, {}, tensors)


@pytest.mark.parametrize("path", PUBLISHED_RECIPES)
def test_a_published_size_brings_its_recipe_and_reads_the_pipelines_encoders(path: str, tmp_path: Path) -> None:
    published = load_recipe(path)
    pipeline = tmp_path / "my: weights #1"
    (pipeline / "text_encoder").mkdir(parents=True)
    source = source_of(published.model, pipeline, pipeline / "transformer", diffusers=True)
    recipe = choose_recipe("diffusers", source, None)
    assert recipe.model == published.model
    assert recipe.checkpoint.init_from is None and published.checkpoint.init_from is not None
    assert recipe.encoders.video_path == recipe.encoders.text_path == pipeline
    assert recipe.encoders.semantic_path == published.encoders.semantic_path


@pytest.mark.parametrize("path", PUBLISHED_RECIPES)
def test_a_file_alone_leaves_the_encoders_where_the_recipe_has_them(path: str, tmp_path: Path) -> None:
    published = load_recipe(path)
    recipe = choose_recipe("sama", source_of(published.model, tmp_path / "sama.safetensors", None, False), None)
    assert recipe.model == published.model and recipe.encoders == published.encoders


def test_a_recipe_of_low_rank_training_is_read_for_its_model(tmp_path: Path) -> None:
    published = load_recipe(PUBLISHED_RECIPES[1])
    lora = {"rank": 4, "alpha": 8.0, "targets": ["ffn.linear_in"]}
    file = tmp_path / "lora.yaml"
    file.write_text(strict_yaml.dump(published.model_dump(mode="json") | {"lora": lora}))
    recipe = choose_recipe("sama", source_of(published.model, tmp_path / "sama.safetensors", None, False), str(file))
    assert recipe.model == published.model and recipe.lora == LoraRecipe()


def test_every_size_that_shapes_tell_is_compared(tmp_path: Path) -> None:
    published = load_recipe(PUBLISHED_RECIPES[1])
    source = source_of(published.model, tmp_path / "sama.safetensors", None, False)
    for key, value in {
        "ffn_dim": 8961,
        "text_dim": 4095,
        "time_features": 254,
        "semantic_dim": 1151,
        "semantic_hidden_dim": 1023,
        "num_layers": 29,
    }.items():
        other = build_recipe({"model": published.model.model_dump() | {key: value}, "train": TRAIN}, "test")
        assert choose_by_file(source, other.model_dump(mode="json"), tmp_path / f"{key}.yaml") == [key]


TRAIN = {"stage": 1, "steps": 1, "run_folder": "unused"}


def choose_by_file(source: Source, recipe: dict[str, Any], file: Path) -> list[str]:
    """Keys that the message says differ."""
    file.write_text(strict_yaml.dump(recipe))
    with pytest.raises(ConfigError) as caught:
        choose_recipe("sama", source, str(file))
    return [part.split(" is ")[0].removeprefix("model.") for part in str(caught.value).split(": ")[1].split(", ")]
