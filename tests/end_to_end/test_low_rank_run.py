"""Low-rank training from an imported model to the files that other code reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from sama_mega.config import load_recipe
from sama_mega.model import ModelInput, WholeModel, build_model
from sama_mega.parallel.checkpoint_io import load_sharded
from sama_mega.parallel.sharded_state import shard_parameters
from tests.support.tiny_recipe import alone, assert_bitwise_equal, call_main, recipe_path, tiny_overrides, tiny_world
from tests.support.wan_weights import checkpoint_tensors, write_tiny_recipe, write_wan_transformer

STEPS, LIMIT = 2, 1e-5
CHANGES: dict[str, Any] = {
    "train.precision": "float32",
    "optimizer.learning_rate": 3e-2,
    "optimizer.ema_decay": 0.5,
    "lora.rank": 3,
    "lora.alpha": 5.0,
}
Capture = pytest.CaptureFixture[str]


def train(start: Path, run: Path, world: Path, steps: int, changes: dict[str, Any]) -> Path:
    """Trains stage 1; returns the newest checkpoint."""
    overrides = tiny_overrides(run, world, steps, CHANGES | {"checkpoint.init_from": str(start)} | changes)
    assert call_main("train", recipe_path(1), *overrides) == 0
    return max((run / "checkpoints").glob("step-*"))


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with Wan's `transformer`, `imported`, and `trained`, a checkpoint."""
    folder = tmp_path_factory.mktemp("low_rank")
    recipe = write_tiny_recipe(folder / "recipe.yaml", CHANGES)
    write_wan_transformer(folder / "transformer")
    options = ["--out", folder / "imported", "--recipe", recipe]
    assert call_main("import", "diffusers", folder / "transformer", *options) == 0
    world = tiny_world(tmp_path_factory) / "pairs.jsonl"
    (folder / "world").symlink_to(world)
    train(folder / "imported", folder / "run", world, STEPS, {}).rename(folder / "trained")
    return folder


def world_of(work: Path) -> Path:
    return (work / "world").resolve()


def predict(checkpoint: Path) -> Tensor:
    """Text-to-video by a checkpoint's average."""
    recipe = load_recipe(checkpoint / "recipe.yaml")
    generator = torch.Generator().manual_seed(3)
    latents, text = torch.randn(1, 16, 2, 4, 4, generator=generator), torch.randn(1, 16, 16, generator=generator)
    with alone(recipe) as context:
        stages = build_model(recipe, context, initialize=False)
        load_sharded(shard_parameters(stages[0], context, "ema."), checkpoint)
        return WholeModel(stages)(ModelInput(latents, torch.tensor([300.0]), text)).velocity


def difference(ours: Tensor, expected: Tensor) -> float:
    return ((ours - expected).abs().max() / expected.abs().max()).item()


def test_only_the_changes_are_trained_and_a_checkpoint_is_whole(work: Path) -> None:
    imported = checkpoint_tensors(work / "imported")
    for weights in ("ema", "model"):
        trained = checkpoint_tensors(work / "trained", weights)
        assert_bitwise_equal({name: trained[name] for name in imported}, imported)
        changes = {name: one for name, one in trained.items() if name not in imported}
        assert len(changes) == 2 * 7 * 2
        assert all(".low_rank." in name and one.any() for name, one in changes.items())
    optimizer = checkpoint_tensors(work / "trained", "optimizer")
    assert len(optimizer) == 2 * len(changes) and all(".low_rank." in name for name in optimizer)


def test_fresh_changes_change_nothing(work: Path, tmp_path: Path) -> None:
    still = {"optimizer.learning_rate": 1e-30, "optimizer.weight_decay": 0.0}
    fresh = train(work / "imported", tmp_path / "run", world_of(work), 1, still)
    assert difference(predict(fresh), predict(work / "imported")) < 1e-7
    assert difference(predict(work / "trained"), predict(work / "imported")) > 1e-3


def test_a_stopped_run_goes_on_as_if_it_had_not(work: Path, tmp_path: Path) -> None:
    for steps in (1, STEPS):
        resumed = train(work / "imported", tmp_path / "run", world_of(work), steps, {})
    for section in ("model", "ema", "optimizer"):
        assert_bitwise_equal(checkpoint_tensors(resumed, section), checkpoint_tensors(work / "trained", section))


def test_another_run_takes_the_changes_over(work: Path, tmp_path: Path) -> None:
    still = {"optimizer.learning_rate": 1e-30, "optimizer.weight_decay": 0.0}
    further = train(work / "trained", tmp_path / "run", world_of(work), 1, still)
    assert difference(predict(further), predict(work / "trained")) < 1e-7


@pytest.mark.parametrize("target", ["diffusers", "sama"])
def test_the_exported_file_added_to_the_base_is_the_merged_model(target: str, work: Path, tmp_path: Path) -> None:
    lora, merged, base = (tmp_path / f"{name}.safetensors" for name in ("lora", "merged", "base"))
    assert call_main("export", work / "trained", target, "--lora", "--dtype", "fp32", "--out", lora) == 0
    assert call_main("export", work / "trained", "sama", "--dtype", "fp32", "--out", merged) == 0
    assert call_main("export", work / "imported", "sama", "--dtype", "fp32", "--out", base) == 0
    recipe = ["--recipe", work / "recipe.yaml"]
    assert call_main("import", "sama", base, "--lora", lora, "--out", tmp_path / "again", *recipe) == 0
    assert call_main("import", "sama", merged, "--out", tmp_path / "merged", *recipe) == 0
    assert len(load_file(lora)) == 2 * 2 * 10
    again, expected = checkpoint_tensors(tmp_path / "again"), checkpoint_tensors(tmp_path / "merged")
    imported = checkpoint_tensors(work / "imported")
    changed = {name for name in imported if not torch.equal(expected[name], imported[name])}
    assert len(changed) == 2 * 7
    for name in imported:
        torch.testing.assert_close(again[name], expected[name], rtol=1e-6, atol=1e-7)
    assert difference(predict(tmp_path / "merged"), predict(work / "trained")) < LIMIT


def test_diffusers_finds_the_pairs_by_its_own_names(work: Path, tmp_path: Path) -> None:
    from diffusers import WanTransformer3DModel
    from diffusers.loaders import WanLoraLoaderMixin

    lora = tmp_path / "lora.safetensors"
    assert call_main("export", work / "trained", "diffusers", "--lora", "--out", lora) == 0
    tensors = WanLoraLoaderMixin.lora_state_dict(load_file(lora))
    assert tensors.keys() == load_file(lora).keys() and all(one.dtype == torch.bfloat16 for one in tensors.values())
    linears = dict(WanTransformer3DModel.from_pretrained(work / "transformer").named_modules())
    for name, tensor in tensors.items():
        module, _, factor = name.removeprefix("transformer.").removesuffix(".weight").rpartition(".")
        weight = linears[module].weight
        assert tensor.shape == ((3, weight.shape[1]) if factor == "lora_A" else (weight.shape[0], 3)), name


def test_what_is_refused(work: Path, tmp_path: Path, capfd: Capture) -> None:
    out = tmp_path / "lora.safetensors"
    for checkpoint, file, word in (
        (work / "imported", out, "holds no low-rank changes: lora.rank is 0"),
        (work / "trained", tmp_path / "lora", "must end in .safetensors"),
    ):
        assert call_main("export", checkpoint, "diffusers", "--lora", "--out", file) == 2
        assert word in capfd.readouterr().err
    assert not out.exists()
    train(work / "imported", tmp_path / "run", world_of(work), 1, {})
    for start, run, changes, word in (
        (work / "trained", "other", {"lora.rank": 0, "lora.alpha": None}, ".low_rank."),
        (work / "trained", "other", {"lora.rank": 4}, ".low_rank."),
        (work / "trained", "other", {"lora.alpha": 10.0}, "lora.alpha / lora.rank is 1.66667 there and 3.33333 here"),
        (work / "imported", "other", {"model.num_heads": 1}, "model.num_heads is 2 there and 1 here"),
        (work / "imported", "run", {"lora.rank": 4}, "lora.rank is 3 there and 4 here"),
    ):
        overrides = CHANGES | {"checkpoint.init_from": str(start)} | changes
        arguments = tiny_overrides(tmp_path / run, world_of(work), 2, overrides)
        capfd.readouterr()
        assert call_main("train", recipe_path(1), *arguments) == 2
        assert word in capfd.readouterr().err
