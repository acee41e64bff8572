"""Folders of pretrained weights: found, read strictly, or refused with one line that says what is wrong."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from sama_mega.config.errors import ConfigError
from sama_mega.encoders.siglip_semantic import SiglipSemanticEncoder
from sama_mega.encoders.umt5_text import Umt5TextEncoder
from sama_mega.encoders.wan_vae import WanVideoCodec
from tests.support.pretrained_folders import (
    MODEL_FILE,
    VAE_FILE,
    change_config,
    change_weights,
    pretrained_weights,
    write_tokenizer,
    write_wan_vae,
)

LENGTH = 12


@pytest.fixture
def weights(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy to be spoilt."""
    return Path(shutil.copytree(pretrained_weights(tmp_path_factory), tmp_path / "weights"))


def load_vae(root: Path) -> WanVideoCodec:
    return WanVideoCodec(root / "vae", "cpu", torch.float32)


def load_text(root: Path) -> Umt5TextEncoder:
    return Umt5TextEncoder(root / "text_encoder", LENGTH, "cpu", torch.float32)


def load_siglip(root: Path) -> SiglipSemanticEncoder:
    return SiglipSemanticEncoder(root / "siglip", 2, True, "cpu", torch.float32)


LOADERS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "vae": (load_vae, VAE_FILE),
    "text_encoder": (load_text, MODEL_FILE),
    "siglip": (load_siglip, MODEL_FILE),
}


def refusal(load: Callable[[Path], Any], root: Path) -> str:
    """The one line."""
    with pytest.raises(ConfigError) as caught:
        load(root)
    message = str(caught.value)
    assert "\n" not in message
    return message


# --- strictness, alike for all three ---------------------------------------------------------------


@pytest.mark.parametrize("name", LOADERS)
def test_every_tensor_must_be_there(weights: Path, name: str) -> None:
    load, file = LOADERS[name]
    lost: list[str] = []
    change_weights(weights / name / file, lambda tensors: lost.append(tensors.popitem()[0]))
    message = refusal(load, weights)
    assert str(weights / name) in message and "lacks 1 of" in message
    assert lost[0].removeprefix("vision_model.") in message


@pytest.mark.parametrize("name", LOADERS)
def test_no_tensor_may_be_left_over(weights: Path, name: str) -> None:
    load, file = LOADERS[name]
    change_weights(weights / name / file, lambda tensors: tensors.update(stranger=torch.zeros(2)))
    message = refusal(load, weights)
    assert str(weights / name) in message and "1 tensors" in message and "such as stranger" in message


@pytest.mark.parametrize("name", LOADERS)
def test_every_tensor_must_have_its_shape(weights: Path, name: str) -> None:
    load, file = LOADERS[name]
    changed: list[str] = []

    def widen(tensors: dict[str, torch.Tensor]) -> None:
        changed.append(sorted(tensors)[0])
        tensors[changed[0]] = torch.zeros(3, 999)

    change_weights(weights / name / file, widen)
    message = refusal(load, weights)
    assert changed[0].removeprefix("vision_model.") in message and "[3, 999]" in message and "asks for" in message


@pytest.mark.parametrize("name", LOADERS)
def test_pickles_are_not_read(weights: Path, name: str) -> None:
    load, file = LOADERS[name]
    torch.save(load_file(weights / name / file), weights / name / "pytorch_model.bin")
    (weights / name / file).unlink()
    message = refusal(load, weights)
    assert "pytorch_model.bin" in message and "safetensors" in message and "not read" in message
    (weights / name / "pytorch_model.bin").unlink()
    assert "holds no weights" in refusal(load, weights)


@pytest.mark.parametrize("name", LOADERS)
def test_a_damaged_file_is_named(weights: Path, name: str) -> None:
    load, file = LOADERS[name]
    with (weights / name / file).open("r+b") as stream:
        stream.truncate(300)
    message = refusal(load, weights)
    assert str(weights / name / file) in message and "cannot be read" in message


@pytest.mark.parametrize("name", LOADERS)
def test_the_config_must_be_this_models(weights: Path, name: str) -> None:
    load, _ = LOADERS[name]
    config = weights / name / "config.json"
    text = config.read_text()
    change_config(weights / name, _class_name="AutoencoderKL", model_type="clip")
    assert str(weights / name) in refusal(load, weights) and "must be" in refusal(load, weights)
    config.write_text("{")
    assert f"{config} cannot be read" in refusal(load, weights)
    config.write_text("[]")
    assert "must hold a JSON object" in refusal(load, weights)
    config.unlink()
    assert "config.json" in refusal(load, weights)
    config.write_text(text)
    load(weights)


@pytest.mark.parametrize("name", ["text_encoder", "siglip"])
def test_a_config_with_nonsense_in_it_is_refused(weights: Path, name: str) -> None:
    change_config(weights / name, d_model="wide", hidden_size="wide")
    message = refusal(LOADERS[name][0], weights)
    assert "does not describe this model" in message and "wide" in message


@pytest.mark.parametrize("name", LOADERS)
def test_a_missing_package_is_named(weights: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    package = "diffusers" if name == "vae" else "transformers"
    monkeypatch.setitem(sys.modules, package, None)
    message = refusal(LOADERS[name][0], weights)
    assert f"package {package}" in message and "pip install 'sama-mega[encoders]'" in message


@pytest.mark.parametrize("name", LOADERS)
def test_weights_may_lie_in_several_files(weights: Path, name: str) -> None:
    load, file = LOADERS[name]
    tensors = load_file(weights / name / file)
    whole = load(weights)
    places = {}
    for number, stored in enumerate(sorted(tensors)):
        places[stored] = f"part-{number % 2}.safetensors"
    for part in set(places.values()):
        save_file({key: tensors[key] for key in tensors if places[key] == part}, weights / name / part)
    (weights / name / file).unlink()
    index = weights / name / f"{file}.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": places}))
    ours = load(weights)
    model = "_vae" if name == "vae" else "_tower" if name == "siglip" else "_model"
    expected = getattr(whole, model).state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in getattr(ours, model).state_dict().items())
    (weights / name / "part-1.safetensors").unlink()
    assert "lacks part-1.safetensors" in refusal(load, weights)
    index.write_text("{}")
    assert "weight_map" in refusal(load, weights)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", LOADERS)
def test_loaded_models_are_frozen_whole_and_of_the_wanted_precision(
    weights: Path, name: str, dtype: torch.dtype
) -> None:
    makers: dict[str, Callable[[], Any]] = {
        "vae": lambda: WanVideoCodec(weights, "cpu", dtype)._vae,
        "text_encoder": lambda: Umt5TextEncoder(weights, LENGTH, "cpu", dtype)._model,
        "siglip": lambda: SiglipSemanticEncoder(weights / "siglip", 2, True, "cpu", dtype)._tower,
    }
    model = makers[name]()
    parameters = list(model.parameters())
    assert parameters and not model.training
    assert {(parameter.dtype, parameter.device.type, parameter.requires_grad) for parameter in parameters} == {
        (dtype, "cpu", False)
    }
    # Nothing hangs on the file: it may be moved away while the run goes on.
    change_weights(weights / name / LOADERS[name][1], lambda tensors: [value.zero_() for value in tensors.values()])
    assert any(parameter.abs().sum() > 0 for parameter in parameters)


# --- what only one of them has ---------------------------------------------------------------------


def test_a_text_encoder_needs_its_own_tokenizer(weights: Path) -> None:
    tokenizer = weights / "tokenizer" / "tokenizer.json"
    write_tokenizer(weights / "tokenizer", num_words=97)
    assert "97 words and the weights 96" in refusal(load_text, weights)
    write_tokenizer(weights / "tokenizer", ends_prompts=False)
    assert "end a prompt with token 1" in refusal(load_text, weights)
    tokenizer.write_text("{}")
    assert f"{tokenizer} cannot be read" in refusal(load_text, weights)
    tokenizer.unlink()
    message = refusal(load_text, weights)
    assert "no tokenizer.json" in message and str(tokenizer.parent) in message
    write_tokenizer(weights / "text_encoder")
    load_text(weights)


def test_a_text_encoder_saved_with_its_decoder_is_read(weights: Path) -> None:
    expected = load_text(weights).encode(["a red circle"])

    def add_decoder(tensors: dict[str, torch.Tensor]) -> None:
        tensors["decoder.final_layer_norm.weight"] = torch.zeros(3)
        tensors["lm_head.weight"] = torch.zeros(3)

    change_weights(weights / "text_encoder" / MODEL_FILE, add_decoder)
    assert torch.equal(load_text(weights).encode(["a red circle"]), expected)


@pytest.mark.parametrize("both", [False, True])
def test_the_word_table_may_have_either_of_its_names(weights: Path, both: bool) -> None:
    expected = load_text(weights).encode(["a red circle"])

    def rename(tensors: dict[str, torch.Tensor]) -> None:
        tensors["encoder.embed_tokens.weight"] = (
            tensors["shared.weight"].clone() if both else tensors.pop("shared.weight")
        )

    change_weights(weights / "text_encoder" / MODEL_FILE, rename)
    ours = load_text(weights)
    assert torch.equal(ours.encode(["a red circle"]), expected)
    table, words = ours._model.shared.weight, ours._model.encoder.embed_tokens.weight
    assert table.data_ptr() == words.data_ptr()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"temperal_downsample": [False, False, True]}, "a latent of 2 frames and 8 pixels"),
        ({"dim_mult": [1, 1, 1], "temperal_downsample": [True, True]}, "a latent of 4 frames and 4 pixels"),
    ],
)
def test_a_vae_of_other_strides_is_refused(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    write_wan_vae(tmp_path / "vae", **changes)
    message = refusal(load_vae, tmp_path)
    assert words in message and "must be 4 and 8" in message


def test_a_vae_needs_a_statistic_of_every_channel(weights: Path) -> None:
    change_config(weights / "vae", latents_mean=[0.0] * 15)
    assert "z_dim (16)" in refusal(load_vae, weights)


def test_siglips_pixels_must_be_scaled_plainly(weights: Path) -> None:
    file = weights / "siglip" / "preprocessor_config.json"
    file.write_text(json.dumps({"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}))
    load_siglip(weights)
    file.write_text(json.dumps({"image_mean": [0.48, 0.45, 0.4]}))
    message = refusal(load_siglip, weights)
    assert "image_mean" in message and "0.48" in message


def test_a_grid_finer_than_siglips_is_refused(weights: Path) -> None:
    with pytest.raises(ConfigError, match=r"anchor.local_grid \(6\) must be at most the 5 patches"):
        SiglipSemanticEncoder(weights / "siglip", 6, True, "cpu", torch.float32)
