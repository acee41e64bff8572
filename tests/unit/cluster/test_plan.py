"""Which recipes a submission runs."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from sama_mega.cluster.plan import StagePlan, plan_stages
from sama_mega.cluster.settings import ClusterSettings
from sama_mega.config.errors import ConfigError


@pytest.fixture(autouse=True)
def outside_the_clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def folders(plan: StagePlan) -> list[str]:
    return [str(recipe.train.run_folder) for recipe in plan.recipes]


def starts(plan: StagePlan) -> list[str]:
    return [str(recipe.checkpoint.init_from) for recipe in plan.recipes]


def test_one_stage_is_the_recipes_own() -> None:
    (plan,) = plan_stages("recipes/demo_stage1.yaml", None, ["train.steps=7"], [])
    assert (plan.stage, plan.path, plan.is_sweep, plan.follows) == (1, "recipes/demo_stage1.yaml", False, False)
    assert (plan.run_folder, folders(plan)) == (Path("runs/demo_stage1"), ["runs/demo_stage1"])
    assert starts(plan) == ["runs/demo_stage0"]
    assert plan.recipes[0].train.steps == 7


@pytest.mark.parametrize("recipe", ["recipes/demo_stage0.yaml", "recipes/demo_stage1.yaml"])
def test_stage_1_starts_from_where_stage_0_runs(recipe: str) -> None:
    overrides = ['0:train.run_folder="runs/it\'s mine: really"', "train.steps=9", "1:train.steps=5"]
    first, second = plan_stages(recipe, "0,1", overrides, [])
    assert (first.stage, second.stage, second.follows) == (0, 1, True)
    assert (first.path, second.path) == ("recipes/demo_stage0.yaml", "recipes/demo_stage1.yaml")
    assert folders(first) == ["runs/it's mine: really"] == starts(second)
    assert [plan.recipes[0].train.steps for plan in (first, second)] == [9, 5]
    # The start of stage 0 stays the recipe's.
    assert first.recipes[0].checkpoint.init_from is None


def test_what_is_for_one_stage_wins_wherever_it_stands() -> None:
    for overrides in (["1:train.seed=3", "train.seed=4"], ["train.seed=4", "1:train.seed=3"]):
        first, second = plan_stages("recipes/demo_stage0.yaml", "0,1", overrides, [])
        assert [plan.recipes[0].train.seed for plan in (first, second)] == [4, 3]


def test_a_start_of_stage_0_is_its_own_in_a_chain() -> None:
    first, second = plan_stages("recipes/demo_stage0.yaml", "0,1", ["0:checkpoint.init_from=weights"], [])
    assert (starts(first), starts(second)) == (["weights"], ["runs/demo_stage0"])


def test_elements_of_a_sweep_have_their_own_folders() -> None:
    (plan,) = plan_stages("recipes/demo_stage0.yaml", "0", [], ["train.seed=5,6", "data.text_dropout=0.1,0.2"])
    assert plan.is_sweep
    assert folders(plan) == [
        "runs/demo_stage0/sweep/000-seed=5,text_dropout=0.1",
        "runs/demo_stage0/sweep/001-seed=5,text_dropout=0.2",
        "runs/demo_stage0/sweep/002-seed=6,text_dropout=0.1",
        "runs/demo_stage0/sweep/003-seed=6,text_dropout=0.2",
    ]
    assert [(recipe.train.seed, recipe.data.text_dropout) for recipe in plan.recipes] == [
        (5, 0.1),
        (5, 0.2),
        (6, 0.1),
        (6, 0.2),
    ]
    assert plan.overrides[1] == ("train.seed=5", "data.text_dropout=0.2")


def test_a_stage_after_a_sweep_follows_element_by_element() -> None:
    first, second = plan_stages("recipes/demo_stage0.yaml", "0,1", [], ["0:train.seed=5,6", "data.text_dropout=0.3"])
    assert second.is_sweep and starts(second) == folders(first)
    assert folders(second)[1] == "runs/demo_stage1/sweep/001-seed=6,text_dropout=0.3"
    assert [recipe.train.seed for recipe in first.recipes] == [5, 6]
    assert [(recipe.train.seed, recipe.data.text_dropout) for recipe in second.recipes] == [(0, 0.3), (0, 0.3)]


def test_a_sweep_of_stage_1_alone_follows_one_stage_0() -> None:
    first, second = plan_stages("recipes/demo_stage0.yaml", "0,1", [], ["1:train.seed=5,6"])
    assert (first.is_sweep, second.is_sweep) == (False, True)
    assert folders(first) == ["runs/demo_stage0"]
    assert starts(second) == ["runs/demo_stage0"] * 2
    assert [recipe.train.seed for recipe in second.recipes] == [5, 6]


def test_a_sweep_of_one_stage_wins_there_over_an_override_of_all() -> None:
    first, second = plan_stages("recipes/demo_stage0.yaml", "0,1", ["train.seed=4"], ["1:train.seed=5,6"])
    assert [recipe.train.seed for recipe in (*first.recipes, *second.recipes)] == [4, 5, 6]


def test_a_recipes_hardware_decides_on_gpus_unless_the_settings_do() -> None:
    (demo,) = plan_stages("recipes/demo_stage0.yaml", None, [], [])
    (large,) = plan_stages("recipes/wan14b_stage0.yaml", None, [], [])
    assert [plan.gpus_per_node(ClusterSettings()) for plan in (demo, large)] == [0, 8]
    assert [plan.gpus_per_node(ClusterSettings(gpus_per_node=4)) for plan in (demo, large)] == [4, 4]


@pytest.mark.parametrize(
    ("stages", "overrides", "sweeps", "words"),
    [
        ("2", [], [], ["--stages (2) must be one of 0; 1; 0,1"]),
        ("1,0", [], [], ["--stages (1,0)"]),
        (
            "0,1",
            ["train.run_folder=runs/x"],
            [],
            ["train.run_folder (runs/x) is the same", "0:train.run_folder=runs/x/stage0"],
        ),
        ("0,1", ["1:train.run_folder=runs/../runs/demo_stage0"], [], ["is the same in stages 0 and 1"]),
        ("0", ["1:train.steps=3"], [], ["1:train.steps=3 is for stage 1, which --stages 0 leaves out"]),
        ("0", [], ["1:train.seed=3,4"], ["1:train.seed=3,4 is for stage 1"]),
        ("0,1", ["train.stage=0"], [], ["demo_stage1.yaml: train.stage (0) must be 1"]),
        ("0,1", ["1:checkpoint.init_from=x"], [], ["checkpoint.init_from of stage 1 is stage 0's run folder"]),
        ("0,1", ["checkpoint.init_from =x"], [], ["is stage 0's run folder", "write 0:checkpoint.init_from=... for"]),
        ("0,1", [], ["checkpoint.init_from=x,y"], ["checkpoint.init_from of stage 1 is stage 0's run folder"]),
        (
            "0,1",
            [],
            ["0:train.seed=1,2", "1:train.steps=3,4"],
            ["--sweep 1:train.steps does not go with", "train.seed"],
        ),
        (None, ["train.seed=7"], ["train.seed=1,2"], ["override 'train.seed=7': --sweep sets train.seed in every job"]),
        ("0,1", ["1:train.seed =7"], ["train.seed=1,2"], ["override '1:train.seed =7': --sweep sets train.seed"]),
        ("0,1", ["1:train.seed=7"], ["1:train.seed=1,2"], ["override '1:train.seed=7': --sweep sets train.seed"]),
        ("1", ["train.seed=7"], ["1:train.seed=1,2"], ["override 'train.seed=7': --sweep sets train.seed"]),
        (None, ["model.dimm=3"], [], ["override 'model.dimm=3'", "the nearest is model.dim"]),
        (None, [], ["train.sed=3,4"], ["override 'train.sed=3'", "the nearest is train.seed"]),
        (None, [], ["train.seed=3,x"], ["override 'train.seed=x'"]),
    ],
)
def test_refused_plans(stages: str | None, overrides: list[str], sweeps: list[str], words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        plan_stages("recipes/demo_stage0.yaml", stages, overrides, sweeps)
    for word in words:
        assert word in str(caught.value)


def test_the_sibling_of_an_own_recipe_is_looked_for_beside_it(tmp_path: Path, repo_root: Path) -> None:
    (tmp_path / "recipes").mkdir()
    mine = tmp_path / "recipes/demo_stage0.yaml"
    shutil.copyfile(repo_root / "recipes/demo_stage0.yaml", mine)
    with pytest.raises(ConfigError) as caught:
        plan_stages("recipes/demo_stage0.yaml", "0,1", [], [])
    assert "recipes/demo_stage1.yaml: no such recipe" in str(caught.value)
    other = mine.rename(tmp_path / "recipes/first.yaml")
    with pytest.raises(ConfigError) as caught:
        plan_stages(str(other), "0,1", [], [])
    assert "with stage1 for stage0 in its name, which has no stage0: rename the recipe" in str(caught.value)
