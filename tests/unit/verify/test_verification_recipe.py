"""What `verify` changes of a recipe, and what it leaves."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sama_mega.config import ConfigError, Recipe, load_recipe
from sama_mega.verify.recipe import SMOOTH_EPSILON, verification_recipe
from tests.support.tiny_recipe import REPOSITORY


def recipe_of(name: str, *overrides: str) -> Recipe:
    return load_recipe(REPOSITORY / f"recipes/{name}.yaml", overrides)


def changed_keys(before: Recipe, after: Recipe) -> set[str]:
    old, new = before.model_dump(mode="json"), after.model_dump(mode="json")
    return {f"{section}.{key}" for section in old for key in old[section] if old[section][key] != new[section][key]}


def test_a_released_size_is_verified_in_float32_with_embedded_encoders() -> None:
    recipe = recipe_of("wan14b_stage1", "train.skip_loss_above=9.0", "train.skip_grad_norm_above=8.0")
    ours = verification_recipe(recipe, {}, None)
    assert recipe.train.precision == "bfloat16"
    assert (ours.train.precision, ours.train.float32_matmul_precision) == ("float32", "highest")
    assert (ours.train.skip_loss_above, ours.train.skip_grad_norm_above) == (None, None)
    assert (ours.encoders.video, ours.encoders.text, ours.encoders.semantic) == ("dct", "hash", "tiny")
    # Clipped gradients would hide a wrong factor, and the usual epsilon their size.
    assert (ours.optimizer.clip_grad_norm, ours.optimizer.eps) == (0.0, SMOOTH_EPSILON)
    assert (ours.data.micro_batch_images, ours.data.micro_batch_videos) == (2, 2)
    allowed = {"train.precision", "train.float32_matmul_precision", "optimizer.clip_grad_norm", "optimizer.eps"}
    allowed |= {"train.skip_loss_above", "train.skip_grad_norm_above", "optimizer.weight_decay"}
    allowed |= {f"data.micro_batch_{kind}" for kind in ("images", "videos")}
    allowed |= {key for key in changed_keys(recipe, ours) if key.startswith("encoders.")}
    assert changed_keys(recipe, ours) <= allowed


def test_what_the_recipe_switches_on_stays_on() -> None:
    overrides = ("train.recompute=selective", "parallel.overlap_grad_reduce=true", "parallel.sequence=false")
    ours = verification_recipe(recipe_of("demo_stage0", *overrides), {}, None)
    assert ours.train.recompute == "selective"
    assert (ours.parallel.overlap_grad_reduce, ours.parallel.sequence) == (True, False)


def test_degrees_layers_and_kernels_replace_the_recipes() -> None:
    recipe = recipe_of("demo_stage0", "parallel.tensor=4", "parallel.data=3")
    degrees = {"tensor": 2, "context": 2}
    ours = verification_recipe(recipe, degrees, 2, {"ops": "reference", "attention": "auto"})
    parallel = ours.parallel
    assert (parallel.tensor, parallel.context, parallel.pipeline, parallel.data) == (2, 2, 1, 3)
    assert (ours.model.num_layers, recipe.model.num_layers) == (2, 4)
    assert (ours.kernels.ops, ours.kernels.attention) == ("reference", "auto")
    assert verification_recipe(recipe, {}, None).kernels == recipe.kernels
    assert verification_recipe(recipe, {}, None).model == recipe.model


@pytest.mark.parametrize(("num_layers", "stages"), [(None, (3, 1)), (2, None), (4, None)])
def test_stages_are_dealt_anew_where_layers_are_cut(num_layers: int | None, stages: tuple[int, ...] | None) -> None:
    recipe = recipe_of("demo_stage0", "parallel.pipeline=2", "parallel.stage_layers=[3, 1]")
    kept: Any = verification_recipe(recipe, {}, num_layers).parallel.stage_layers
    assert (None if kept is None else tuple(kept)) == stages


def test_a_rule_that_breaks_is_the_users_error() -> None:
    with pytest.raises(ConfigError, match="triton"):
        verification_recipe(recipe_of("demo_stage0"), {}, None, {"ops": "nonsense"})


def test_launching_needs_no_torch(repo_root: Path) -> None:
    code = (
        "import sys; from sama_mega.commands import verify as command\n"
        "command.launch_ranks = lambda num_ranks, argv: 10 * num_ranks\n"
        "status = command.run_recipe(sys.argv[1], [], command.Degrees(tensor=2))\n"
        "sys.exit(f'{status} {\"torch\" in sys.modules}' if status != 20 or 'torch' in sys.modules else 0)"
    )
    path = str(repo_root / "recipes/demo_stage0.yaml")
    subprocess.run([sys.executable, "-c", code, path], check=True, cwd=repo_root, timeout=60)
