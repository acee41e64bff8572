"""Layouts that fit, and what a recipe wastes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sama_mega.config import Recipe, load_recipe
from sama_mega.observe.gpu_kinds import load_gpu_kinds
from sama_mega.parallel.layout import resolve_layout
from sama_mega.planner.foot_guns import Cluster, find_foot_guns
from sama_mega.planner.layouts import Candidate, fewest_gpus, fitting_layouts, nearest_first
from sama_mega.planner.memory import GIB, predict_memory
from sama_mega.planner.workload import plan_workload

H200 = load_gpu_kinds(environ={})["H200"]
CLUSTER = Cluster(H200, "H200", 8, H200.memory_gib)


@pytest.fixture(scope="module")
def wan14b(repo_root: Path) -> Path:
    return repo_root / "recipes/wan14b_stage1.yaml"


@pytest.fixture(scope="module")
def fitting(wan14b: Path) -> list[Candidate]:
    return fitting_layouts(load_recipe(wan14b, []), 64, H200, 8, H200.memory_gib)


def test_all_fit_and_the_fastest_is_first(fitting: list[Candidate]) -> None:
    assert len(fitting) > 10
    assert all(one.memory.total < 0.95 * H200.memory_gib * GIB for one in fitting)
    seconds = [one.step.seconds for one in fitting]
    assert seconds == sorted(seconds)
    assert all(one.layout.world_size == 64 and one.layout.tensor <= 8 for one in fitting)


def test_what_is_suggested_can_be_typed(fitting: list[Candidate], wan14b: Path) -> None:
    for one in fitting[:3]:
        typed = load_recipe(wan14b, list(one.overrides))
        layout = resolve_layout(typed, 64)
        assert layout == one.layout
        assert predict_memory(typed, layout).total == one.memory.total


def test_less_recompute_would_not_fit(fitting: list[Candidate]) -> None:
    modes = ("none", "selective", "selective_ffn", "full")
    tried = [one for one in fitting if one.recipe.train.recompute != "none"]
    for one in tried[:5]:
        less = modes[modes.index(one.recipe.train.recompute) - 1]
        train = one.recipe.train.model_copy(update={"recompute": less})
        memory = predict_memory(one.recipe.model_copy(update={"train": train}), one.layout)
        assert memory.total > 0.95 * H200.memory_gib * GIB


def test_the_nearest_changes_least(fitting: list[Candidate], wan14b: Path) -> None:
    nearest = nearest_first(load_recipe(wan14b, []), fitting)
    assert nearest[0].overrides in (("train.recompute=selective",), ("train.recompute=none",))


def test_more_gpus_where_none_fits(wan14b: Path) -> None:
    recipe = load_recipe(wan14b, [])
    assert not fitting_layouts(recipe, 1, H200, 8, H200.memory_gib)
    found = fewest_gpus(recipe, 1, H200, 8, H200.memory_gib)
    assert found is not None and found[0] in (2, 4)
    assert fewest_gpus(recipe, 1, H200, 8, 5.0) is None


def test_interleaved_stages_are_suggested_only_where_every_rank_has_its_samples(wan14b: Path) -> None:
    own = ["parallel.tensor=2", "parallel.pipeline=4", "parallel.interleave=2"]
    recipe = load_recipe(wan14b, [*own, "data.images_per_step=8", "data.videos_per_step=8"])
    fitting = fitting_layouts(recipe, 64, H200, 8, H200.memory_gib)
    interleaved = [one for one in fitting if one.layout.interleave > 1]
    assert interleaved and all(4 * one.layout.data <= 16 for one in interleaved)
    assert any(one.layout.data == 16 for one in fitting)


def keys(recipe: Recipe, num_gpus: int) -> dict[str, str]:
    layout = resolve_layout(recipe, num_gpus)
    work = plan_workload(recipe, layout)
    memory = predict_memory(recipe, layout, work)
    return {found.key: found.text for found in find_foot_guns(recipe, layout, work, memory, CLUSTER)}


FOOT_GUNS: list[tuple[str, str, list[str], str, str]] = [
    ("parallel.tensor", "1_3b", ["parallel.tensor=1", "model.num_layers=200"], "split them", ""),
    ("train.recompute", "14b", [], "train.recompute=", "train.recompute=none"),
    ("parallel.sequence", "14b", ["parallel.sequence=false"], "use parallel.sequence=true", ""),
    ("parallel.context", "14b", ["parallel.context=2", "data.videos_per_step=0"], "use parallel.context=1", ""),
    (
        "parallel.pipeline",
        "14b",
        ["parallel.pipeline=8", "data.videos_per_step=4", "data.images_per_step=8"],
        "idles",
        "",
    ),
    ("train.precision", "1_3b", ["train.precision=float32"], "use train.precision=bfloat16", ""),
    ("kernels.ops", "1_3b", ["kernels.ops=reference", "train.recompute=none"], "use kernels.ops=auto", ""),
    ("kernels.attention", "1_3b", ["kernels.attention=reference"], "use kernels.attention=auto", ""),
    ("parallel.overlap_grad_reduce", "1_3b", ["parallel.overlap_grad_reduce=false"], "use true", ""),
]


@pytest.mark.parametrize(("key", "size", "changes", "words", "cure"), FOOT_GUNS, ids=[case[0] for case in FOOT_GUNS])
def test_a_foot_gun_is_named_with_its_fix(
    key: str, size: str, changes: list[str], words: str, cure: str, repo_root: Path
) -> None:
    path: Any = repo_root / f"recipes/wan{size}_stage1.yaml"
    found = keys(load_recipe(path, changes), 64)
    assert words in found[key]
    assert key not in keys(load_recipe(path, [cure] if cure else []), 64)
