"""The study's recipes are what their names say, and differ in nothing else."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from sama_mega.ablation.study import RECIPES, SIZES, STAGES, VARIANTS, Chain, Study, Variant
from sama_mega.config import ConfigError, load_recipe
from sama_mega.config.schema import Recipe
from tests.support.tiny_recipe import REPOSITORY

WITH_ANCHORS = {"sa", "both", "both_shifted_rope"}
WITH_MOTION = {"ma", "both", "both_shifted_rope"}


def load(variant: Variant, stage: int) -> Recipe:
    return load_recipe(REPOSITORY / variant.recipe_path(stage))


def rest(recipe: Recipe) -> dict[str, Any]:
    """All that variants of a stage must have in common."""
    values = recipe.model_dump(mode="json")
    for section in ("anchor", "motion"):
        del values[section]
    for key in ("roles", "type_embedding_std", "semantic_hidden_dim"):
        del values["model"][key]
    del values["train"]["run_folder"], values["checkpoint"]["init_from"]
    return values


def test_every_recipe_is_a_variants() -> None:
    names = {variant.recipe_path(stage).name for variant in VARIANTS for stage in STAGES}
    assert {path.name for path in (REPOSITORY / "recipes/ablation").iterdir()} == names


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.name)
def test_a_recipe_is_what_its_name_says(variant: Variant, stage: int) -> None:
    recipe = load(variant, stage)
    assert recipe.train.stage == stage
    assert (recipe.anchor.num_tokens > 0) == (variant.name in WITH_ANCHORS)
    if variant.name in WITH_ANCHORS:
        assert recipe.anchor.weight == 0.1
    if stage == 0:
        motion = recipe.motion
        assert motion.none == 1
        assert all((motion.cube, motion.speed, motion.tube)) == (variant.name in WITH_MOTION)
        assert any((motion.cube, motion.speed, motion.tube)) == (variant.name in WITH_MOTION)
        # Held-out clips are perturbed by the variant's own recipe: the same clips only where this is the same.
        assert (motion.keep_length, motion.cube_share) == (True, 0.3)
    assert recipe.model.roles == ("shifted_rope" if "shifted" in variant.name else "segment")
    assert recipe.train.run_folder == Path(f"runs/ablation/{variant.name}/stage{stage}")
    if stage == 1:
        assert recipe.checkpoint.init_from == Path(f"runs/ablation/{variant.name}/stage0")
    assert rest(recipe) == rest(load(VARIANTS[0], stage))


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
def test_sizes_fit_the_recipes(size: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    study = Study(size, tmp_path, 2, ("train.steps=7",))
    chains = study.chains()
    assert [(chain.variant.name, chain.seed) for chain in chains[:6]] == [
        *((variant.name, 0) for variant in VARIANTS),
        ("baseline", 1),
    ]
    for chain in chains:
        first, second = (chain.recipe(stage) for stage in STAGES)
        assert first.train.seed == second.train.seed == chain.seed
        assert first.train.steps == 7
        assert second.checkpoint.init_from == first.train.run_folder
        assert first.data.manifest == tmp_path / "world/raw.jsonl"
        assert first.model == second.model
    assert len({chain.run_folder(0) for chain in chains}) == len(chains)


def test_a_folder_keeps_one_study(tmp_path: Path) -> None:
    study = Study(SIZES["cpu"], tmp_path / "deep" / "study", 3, ("train.steps=7",))
    study.save()
    study.save()
    loaded = Study.load(study.folder)
    assert (loaded.size, loaded.extra_overrides, loaded.variants) == (study.size, study.extra_overrides, VARIANTS)
    Study(SIZES["cpu"], study.folder, 5, ("train.steps=7",)).save()
    for other in (Study(SIZES["gpu"], study.folder, 3, ("train.steps=7",)), Study(SIZES["cpu"], study.folder)):
        with pytest.raises(ConfigError, match="a study of another size or recipe"):
            other.save()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("train.seed=7", "the study sets train.seed of every run"),
        ("checkpoint.init_from=runs/other", "the study sets checkpoint.init_from"),
        ("anchor.num_frames=2", "anchor.num_frames is what the variants differ in"),
        ("model.roles=segment", "model.roles is what the variants differ in"),
        ("train.steps=oops", "train.steps"),
    ],
)
def test_what_makes_the_runs_differ_cannot_be_overridden(text: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=re.escape(says)):
        Study(SIZES["cpu"], tmp_path, 2, (text,)).require_fair_overrides()
    Study(SIZES["cpu"], tmp_path, 2, ("train.steps=7", "optimizer.learning_rate=0.001")).require_fair_overrides()


def test_a_folder_keeps_its_recipes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(REPOSITORY / RECIPES, tmp_path / RECIPES)
    monkeypatch.chdir(tmp_path)
    study = Study(SIZES["cpu"], tmp_path / "study")
    study.save()
    study.save()
    edited = tmp_path / VARIANTS[1].recipe_path(0)
    edited.write_text(edited.read_text().replace("cube: 0", "cube: 1"))
    with pytest.raises(ConfigError, match="a study of another size or recipe"):
        study.save()


def test_without_the_recipes_it_is_told_where_to_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="run the study from the repository's root"):
        Chain(Study(SIZES["cpu"], tmp_path), VARIANTS[0], 0).recipe(0)
