"""Reading a golden folder, and the recipe that it asks for."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from sama_mega.config import ConfigError
from sama_mega.verify.golden import golden_recipe, read_golden

KERNELS = {"ops": "reference", "attention": "reference"}


@pytest.fixture(scope="module")
def golden_root(repo_root: Path) -> Path:
    return repo_root / "tests" / "golden"


@pytest.fixture
def folder(tmp_path: Path, golden_root: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(golden_root / "edit_tiny", tmp_path / "edit_tiny"))


@pytest.mark.parametrize(
    ("name", "lost"),
    [
        ("io.safetensors", "loss_weights"),
        ("io.safetensors", "semantic_velocity"),
        ("grads.safetensors", "head.head.bias"),
        ("sampling.safetensors", "final_semantic"),
    ],
)
def test_a_tensor_that_is_not_there_does_not_pass(name: str, lost: str, folder: Path) -> None:
    tensors = load_file(folder / name)
    del tensors[lost]
    save_file(tensors, folder / name)
    with pytest.raises(ConfigError, match=f"{name} lacks {lost}"):
        read_golden(folder)


def test_a_gradient_of_no_parameter(folder: Path) -> None:
    gradients = load_file(folder / "grads.safetensors")
    save_file(gradients | {"head.tail": torch.zeros(1)}, folder / "grads.safetensors")
    with pytest.raises(ConfigError, match=r"head\.tail is no parameter"):
        read_golden(folder)


def test_a_config_that_lacks_a_key(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    del config["num_layers"]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match=r"config\.json lacks num_layers"):
        read_golden(folder)


def test_what_a_folder_holds(golden_root: Path) -> None:
    edit = read_golden(golden_root / "edit_tiny")
    assert edit.gradients.keys() == edit.weights.keys()
    assert edit.sampling_config["guidance"] == 5.0
    assert {"latents", "source_latents", "velocity", "total_loss"} <= edit.inputs.keys()
    assert not edit.schedule
    anchors = read_golden(golden_root / "anchor4_tiny")
    assert (anchors.gradients, anchors.sampling, anchors.sampling_config) == ({}, {}, {})
    assert "train_sigmas" in read_golden(golden_root / "schedule").schedule


@pytest.mark.parametrize("name", ["config.json", "weights.safetensors", "io.safetensors"])
def test_a_missing_file_is_named(name: str, folder: Path) -> None:
    read_golden(folder)
    (folder / name).unlink()
    with pytest.raises(ConfigError, match=rf"{folder.name}.*{name} is missing"):
        read_golden(folder)


def test_a_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nowhere"):
        read_golden(tmp_path / "nowhere")


@pytest.mark.parametrize("name", ["weights.safetensors", "io.safetensors", "grads.safetensors"])
def test_a_damaged_file_is_named(name: str, folder: Path) -> None:
    (folder / name).write_bytes(b"\x00" * 40)
    with pytest.raises(ConfigError, match=name):
        read_golden(folder)


def test_a_config_that_is_not_json(folder: Path) -> None:
    (folder / "config.json").write_text("{dim: 64")
    with pytest.raises(ConfigError, match=r"config\.json"):
        read_golden(folder)


def test_sampling_tensors_need_their_settings(folder: Path) -> None:
    (folder / "sampling.json").unlink()
    with pytest.raises(ConfigError, match=r"sampling\.json"):
        read_golden(folder)


def test_the_recipe_of_a_folder(golden_root: Path) -> None:
    golden = read_golden(golden_root / "edit_tiny")
    recipe = golden_recipe(golden, {"tensor": 2}, KERNELS)
    model, config = recipe.model, golden.config
    assert (model.dim, model.num_heads, model.ffn_dim) == (config["dim"], config["num_heads"], config["ffn_dim"])
    assert (model.text_dim, model.time_features) == (config["text_dim"], config["freq_dim"])
    assert (model.semantic_dim, model.norm_eps) == (config["siglip_dim"], config["eps"])
    assert recipe.anchor.weight == config["semantic_loss_weight"]
    assert recipe.train.precision == "float32"
    assert (recipe.parallel.tensor, recipe.parallel.sequence) == (2, True)
    assert (recipe.kernels.ops, recipe.kernels.attention) == ("reference", "reference")


def test_a_config_that_makes_no_model(golden_root: Path, tmp_path: Path) -> None:
    golden = read_golden(golden_root / "edit_tiny")
    golden.config["num_heads"] = 3
    with pytest.raises(ConfigError, match=r"num_heads \(3\)"):
        golden_recipe(golden, {}, KERNELS)
    assert json.loads((golden_root / "edit_tiny" / "config.json").read_text())["num_heads"] == 2
