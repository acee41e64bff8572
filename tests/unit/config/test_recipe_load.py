"""Loading recipes: overrides, messages, rules, and the resolved recipe's way back."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pydantic
import pytest

from sama_mega.config import ConfigError, Recipe, build_recipe, find_bundled, load_recipe, recipe_to_yaml

MINIMAL = """\
model: {dim: 128, num_layers: 4, num_heads: 4, ffn_dim: 320}
train:
  stage: 0
  steps: 10
  run_folder: runs/x
optimizer:
  learning_rate: 1e-5
motion:
"""


@pytest.fixture
def recipe_file(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(MINIMAL)
    return path


def refusal(path: Path | str, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_recipe(path, overrides)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_values_defaults_and_overrides(recipe_file: Path) -> None:
    recipe = load_recipe(recipe_file, ["train.steps=20", "train.steps=30", "data.buckets=[[64, 96]]"])
    assert recipe.optimizer.learning_rate == 1e-5
    assert recipe.train.steps == 30
    assert recipe.data.buckets == ((64, 96),)
    assert recipe.train.run_folder == Path("runs/x")
    assert recipe.motion.tube == 4.0  # a section whose keys are all commented out is its defaults
    assert (recipe.data.images_per_step, recipe.data.videos_per_step, len(recipe.data.buckets)) == (
        448,
        112,
        1,
    )
    assert recipe.model.head_dim == 32


def test_recipe_is_frozen(recipe_file: Path) -> None:
    recipe = load_recipe(recipe_file)
    with pytest.raises(pydantic.ValidationError):
        recipe.train.steps = 5  # type: ignore[misc]


def test_resolved_recipe_loads_back_equal(recipe_file: Path, tmp_path: Path) -> None:
    recipe = load_recipe(recipe_file, ["track.experiment='1e5'", "data.manifest=a.jsonl", "optimizer.eps=1e-12"])
    resolved = tmp_path / "resolved.yaml"
    resolved.write_text(recipe_to_yaml(recipe))
    assert load_recipe(resolved) == recipe


def test_plain_values_build_the_same_recipe(recipe_file: Path) -> None:
    recipe = load_recipe(recipe_file)
    assert build_recipe(recipe.model_dump(mode="json")) == recipe
    with pytest.raises(ConfigError, match=r"golden: model.dim \(\"a\"\) must be a whole number"):
        build_recipe({**recipe.model_dump(mode="json"), "model": {**recipe.model.model_dump(), "dim": "a"}}, "golden")


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("model.dimm=3", ["model.dimm", "not a recipe key", "nearest is model.dim"]),
        ("optimiser.eps=3", ["optimiser.eps", "nearest is optimizer.eps"]),
        ("train.learning_rate=3", ["nearest is optimizer.learning_rate"]),
        ("foo.bar=3", ["the sections are model, parallel"]),
        ("train.steps", ["section.key=value"]),
        ("steps=5", ["section.key=value"]),
        ("model={}", ["section.key=value"]),
        ("data.blend.manifest=x", ["section.key=value"]),
        ("track.experiment=a: b: c", ["not valid YAML", "quote it"]),
        ("model.dim=abc", ["model.dim", '"abc"', "whole number"]),
        ("model.dim=1.5", ["whole number"]),
        ("model.dim=true", ["whole number"]),
        ("train.stage=true", ["train.stage", "must be 0"]),
        ("train.stage=2", ["must be 0"]),
        ("train.seed=-1", ["greater than or equal to 0"]),
        ("train.precision=float16", ["'float32' or 'bfloat16'"]),
        ("optimizer.learning_rate=yes", ["must be a number"]),
        ("optimizer.learning_rate=.inf", ["finite"]),
        ("optimizer.beta1=1.0", ["less than 1"]),
        ("optimizer.ema_decay=1", ["less than 1"]),
        ("parallel.data=some", ["must be auto or a whole number"]),
        ("parallel.data=0", ["must be auto or a whole number"]),
        ("parallel.sequence=no", ["must be true or false"]),
        ("data.text_dropout=1.1", ["less than or equal to 1"]),
        ("data.buckets=[[64, 72]]", ["data.buckets", "[64, 72]", "multiple of 16 high"]),
        ("data.buckets=[[64, 64], [64, 64]]", ["listed twice"]),
        ("lora.alpha=4.0", ["lora.alpha", "is not read: lora.rank is 0"]),
        ("lora.targets=[self_attn.o]", ["lora.targets", "is not read: lora.rank is 0, which trains everything"]),
        ("lora.targets=[ffn.linear_in, ffn.linear_in]", ["lora.targets", "is listed twice"]),
        ("lora.targets=[]", ["must name at least one linear"]),
        ("lora.targets=[ffn.0]", ["lora.targets"]),
        ("data.buckets=[]", ["at least one"]),
        ("data.blend=[{manifets: x}]", ["data.blend[0].manifets", "nearest is data.blend.manifest"]),
        ("data.max_frames=80", ["4k+1", "77 or 81"]),
        ("data.manifest=''", ["data.manifest", "must name a file"]),
        ("model.num_heads=3", ["model.num_heads (3) must divide model.dim (128)", "1, 2, 4, 8"]),
        ("model.num_heads=128", ["heads of 1", "even"]),
        ("model.patch_size=[2, 2, 2]", ["start with 1"]),
        ("model.out_channels=8", ["must equal model.in_channels (16)"]),
        ("model.type_embedding_std=-0.1", ["greater than or equal to 0"]),
        ("motion.cube_share=0", ["greater than 0"]),
        ("anchor.num_frames=100", ["at most data.max_frames (81)"]),
    ],
)
def test_refused_overrides(recipe_file: Path, override: str, words: list[str]) -> None:
    message = refusal(recipe_file, override)
    assert message.startswith(f"{recipe_file}, override '{override}'")
    for word in words:
        assert word in message


def test_rules_over_several_keys(recipe_file: Path) -> None:
    zeros = [f"motion.{task}=0" for task in ("none", "cube", "speed", "tube")]
    assert "all 0" in refusal(recipe_file, *zeros)
    assert "a step needs a sample" in refusal(recipe_file, "data.images_per_step=0", "data.videos_per_step=0")
    assert "use pyav or auto" in refusal(recipe_file, "data.decoder=dali", "data.cache=features")
    assert "keep one of them" in refusal(recipe_file, "data.manifest=a", "data.blend=[{manifest: b}]")


def test_message_names_file_line_and_value(tmp_path: Path) -> None:
    path = tmp_path / "typo.yaml"
    path.write_text(MINIMAL.replace("steps: 10", "stpes: 10"))
    message = refusal(path)
    # The misspelt required key is unknown and missing: the unknown one is told, the rest is counted.
    assert message == f"{path}:4: train.stpes (10) is not a recipe key; the nearest is train.steps (and 1 more to fix)"
    path.write_text(MINIMAL.replace("  steps: 10\n", ""))
    assert refusal(path) == f"{path}: train.steps is missing"
    path.write_text(MINIMAL.replace("model:", "modle:"))
    assert f"{path}:1: modle" in refusal(path)
    path.write_text("model: 5\n" + MINIMAL.partition("\n")[2])
    assert refusal(path) == f"{path}:1: model (5) must be a section of keys"


def test_dataset_override_replaces_the_other_kind(recipe_file: Path, tmp_path: Path) -> None:
    path = tmp_path / "blend.yaml"
    path.write_text(MINIMAL + "data: {blend: [{manifest: a.jsonl}, {manifest: b.jsonl, weight: 2}]}\n")
    assert [entry.weight for entry in load_recipe(path).data.blend] == [1.0, 2.0]
    replaced = load_recipe(path, ["data.manifest=c.jsonl"]).data
    assert (replaced.manifest, replaced.blend) == (Path("c.jsonl"), ())
    resolved = tmp_path / "resolved.yaml"
    resolved.write_text(recipe_to_yaml(load_recipe(path, ["data.manifest=c.jsonl"])))
    back = load_recipe(resolved, ["data.blend=[{manifest: d.jsonl}]"]).data
    assert back.manifest is None
    assert back.blend[0].manifest == Path("d.jsonl")


def test_unreadable_recipes(tmp_path: Path) -> None:
    assert "is a folder" in refusal(tmp_path)
    assert refusal(tmp_path / "none.yaml") == f"{tmp_path / 'none.yaml'}: no such recipe"
    assert "is a folder" in refusal("")
    binary = tmp_path / "clip.yaml"
    binary.write_bytes(b"\x00\x00\x00\x18ftyp\xff\xfe")
    assert "not UTF-8" in refusal(binary)
    binary.write_bytes(b"#" * (1 << 21))
    assert "a recipe is a short YAML file" in refusal(binary)
    assert "cannot be read" in refusal(binary / "inside.yaml")


def test_bundled_recipes_are_found_from_anywhere(
    tmp_path: Path, repo_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("recipes/demo_stage0.yaml", "demo_stage0.yaml"):
        assert load_recipe(name) == load_recipe(repo_root / "recipes/demo_stage0.yaml")
    assert find_bundled("slurm/entrypoint.sh") == repo_root / "slurm/entrypoint.sh"
    assert find_bundled("recipes/none.yaml") is None
    assert "the nearest is" in refusal("recipes/demo_stge0.yaml")
    # A file of the working directory wins.
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes/demo_stage0.yaml").write_text(MINIMAL)
    assert load_recipe("recipes/demo_stage0.yaml").train.steps == 10


def test_every_recipe_of_the_repository_loads(repo_root: Path) -> None:
    recipes = {path.stem: load_recipe(path) for path in sorted((repo_root / "recipes").glob("*.yaml"))}
    for model in ("demo", "wan1_3b", "wan14b"):
        for stage in (0, 1):
            recipe: Recipe = recipes[f"{model}_stage{stage}"]
            assert recipe.train.stage == stage
            assert recipe.train.run_folder == Path(f"runs/{model}_stage{stage}")
        assert recipes[f"{model}_stage1"].checkpoint.init_from == Path(f"runs/{model}_stage0")
        assert recipes[f"{model}_stage0"].model == recipes[f"{model}_stage1"].model
        assert recipes[f"{model}_stage0"].anchor == recipes[f"{model}_stage1"].anchor
    sizes = recipes["wan14b_stage0"].model
    assert (sizes.dim, sizes.num_layers, sizes.num_heads, sizes.ffn_dim) == (5120, 40, 40, 13824)
    sizes = recipes["wan1_3b_stage0"].model
    assert (sizes.dim, sizes.num_layers, sizes.num_heads, sizes.ffn_dim) == (1536, 30, 12, 8960)


def test_loading_imports_no_torch(repo_root: Path) -> None:
    code = (
        "import sys; from sama_mega.config import load_recipe; load_recipe(sys.argv[1]); "
        "sys.exit('torch' in sys.modules or 'megatron' in sys.modules)"
    )
    path = repo_root / "recipes/demo_stage0.yaml"
    subprocess.run([sys.executable, "-c", code, str(path)], check=True, cwd=repo_root, timeout=60)
