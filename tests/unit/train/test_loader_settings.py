"""What the loader takes from a recipe."""

from __future__ import annotations

from pathlib import Path

from sama_mega.config import load_recipe
from sama_mega.train.loader_settings import cost_model, loader_settings
from tests.support.tiny_recipe import tiny_recipe

RECIPES = Path(__file__).parents[3] / "recipes"


def test_every_setting_is_the_recipes() -> None:
    changes = {
        "data.images_per_step": 7,
        "data.videos_per_step": 3,
        "data.micro_batch_images": 4,
        "data.micro_batch_videos": 2,
        "data.max_bad_share": 0.25,
        "data.decoded_cache_mib": 3,
        "data.prefetch_steps": 5,
        "data.decode_threads": 6,
        "data.decode_timeout_seconds": 7.5,
        "train.seed": 9,
        "motion.speed": 8.0,
    }
    recipe = tiny_recipe(0, Path("unused"), Path("unused.jsonl"), changes=changes)
    found = loader_settings(recipe)
    for key, value in changes.items():
        if key.startswith("data."):
            assert getattr(found, key.removeprefix("data.")) == value
    assert (found.seed, found.motion.speed) == (9, 8.0)
    assert (found.buckets, found.max_frames) == (recipe.data.buckets, recipe.data.max_frames)
    assert found.micro_batch_limits == {"image": 4, "video": 2}


def test_times_are_predicted_for_the_recipes_model_and_ranks() -> None:
    wide, narrow = (cost_model(load_recipe(RECIPES / f"{name}_stage1.yaml", [])) for name in ("wan14b", "wan1_3b"))
    assert (wide.dim, wide.ffn_dim, wide.semantic_tokens, wide.text_length) == (5120, 13824, 65, 512)
    assert (wide.ranks_per_sample, narrow.ranks_per_sample) == (8, 4)
    assert narrow.linear_seconds_per_token < wide.linear_seconds_per_token


def test_overlapped_gradients_need_a_sample_on_every_rank() -> None:
    overlapped = load_recipe(RECIPES / "wan14b_stage1.yaml", ["parallel.overlap_param_gather=false"])
    plain = load_recipe(
        RECIPES / "wan14b_stage1.yaml",
        ["parallel.overlap_param_gather=false", "parallel.overlap_grad_reduce=false"],
    )
    assert [loader_settings(recipe).at_least_per_rank for recipe in (overlapped, plain)] == [1, 0]
