"""Which components an exported folder has, by where the recipe's encoders lie."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.video_processor import VideoProcessor
from PIL import Image

from sama_mega.config.errors import ConfigError
from sama_mega.weights.export_diffusers import export_diffusers
from sama_mega.weights.import_weights import import_weights
from sama_mega.weights.standalone.pipeline_sama_edit import SamaEditPipeline
from sama_mega.weights.stored_model import open_stored_model
from tests.support.pretrained_folders import pretrained_encoders, pretrained_weights
from tests.support.wan_weights import load_pipeline, write_tiny_recipe, write_wan_transformer


def export_with(folder: Path, changes: dict[str, Any]) -> Path:
    write_wan_transformer(folder / "transformer", text_dim=changes.get("model.text_dim", 16))
    recipe = write_tiny_recipe(folder / "recipe.yaml", changes)
    import_weights("diffusers", folder / "transformer", folder / "imported", str(recipe))
    return export_diffusers(open_stored_model(folder / "imported", "ema"), folder / "exported", torch.float32)


def components(exported: Path) -> dict[str, str | None]:
    index = json.loads((exported / "model_index.json").read_text())
    return {name: index[name][1] for name in ("vae", "text_encoder", "tokenizer")}


def test_built_in_encoders_leave_their_places_empty(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    exported = export_with(tmp_path, {})
    assert components(exported) == {"vae": None, "text_encoder": None, "tokenizer": None}
    pipe = load_pipeline(exported, tmp_path_factory)
    with pytest.raises(ValueError, match=r"the pipeline has no vae: give from_pretrained\(\.\.\., vae=\.\.\.\)"):
        pipe([], "make it red")
    card = (exported / "README.md").read_text()
    assert "vae=vae, text_encoder=text_encoder" in card and "Imported and not trained since." in card


def test_components_of_their_own_with_the_tokenizer_inside(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    weights = pretrained_weights(tmp_path_factory)
    text = tmp_path / "my_text_encoder"
    shutil.copytree(weights / "text_encoder", text)
    shutil.copy(weights / "tokenizer" / "tokenizer.json", text)
    changes = pretrained_encoders(weights)
    changes |= {"encoders.video_path": str(weights / "vae"), "encoders.text_path": str(text)}
    exported = export_with(tmp_path, changes)
    assert None not in components(exported).values()
    assert [path.name for path in (exported / "tokenizer").iterdir()] == ["tokenizer.json"]
    # Gigabytes are not copied where the disk can give a file a second name.
    name = "diffusion_pytorch_model.safetensors"
    assert (exported / "vae" / name).samefile(weights / "vae" / name)
    prompt = load_pipeline(exported, tmp_path_factory).encode_prompt("[Video edit] make it bigger")
    assert prompt.shape == (1, 16, changes["model.text_dim"]) and prompt[0, 0].any() and not prompt[0, -1].any()


def test_encoders_that_are_gone_are_left_out_with_a_word(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    changes = {"encoders.video": "wan", "encoders.video_path": str(tmp_path / "gone")}
    assert components(export_with(tmp_path, changes))["vae"] is None
    assert f"the export is without vae: {tmp_path / 'gone'}" in caplog.text


def test_encoders_are_found_from_any_folder(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A recipe's paths begin where the training ran."""
    shutil.copytree(pretrained_weights(tmp_path_factory) / "vae", tmp_path / "parts" / "vae")
    monkeypatch.chdir(tmp_path.parent)
    # No edit needs the semantic encoder.
    changes = {"encoders.video": "wan", "encoders.video_path": "parts/vae"}
    changes |= {"encoders.semantic": "siglip", "encoders.semantic_path": "parts/gone"}
    assert components(export_with(tmp_path, changes))["vae"] == "AutoencoderKLWan"


def test_frames_of_every_kind_are_the_same_pixels() -> None:
    pipe: Any = SimpleNamespace(video_processor=VideoProcessor(vae_scale_factor=16))
    frames = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), dtype=np.uint8)
    expected, _ = SamaEditPipeline._pixels(pipe, [Image.fromarray(one) for one in frames])
    tensor = torch.from_numpy(frames).permute(0, 3, 1, 2)
    for same in (frames, tensor, frames / np.float32(255), tensor / 255):
        for given in (same, list(same)):
            torch.testing.assert_close(SamaEditPipeline._pixels(pipe, given)[0], expected, atol=1e-6, rtol=0)


def test_an_export_is_not_taken_for_plain_wan(tmp_path: Path) -> None:
    """The target's type lies in its bias, and its semantic parts beside it."""
    exported = export_with(tmp_path, {})
    for path in (exported, exported / "transformer"):
        with pytest.raises(ConfigError, match="part of an exported editing model"):
            import_weights("diffusers", path, tmp_path / "again", str(tmp_path / "recipe.yaml"))
    assert not (tmp_path / "again").exists()


def test_the_pipeline_refuses_what_it_would_cut_or_trip_over(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    weights = pretrained_weights(tmp_path_factory)
    pipe = load_pipeline(export_with(tmp_path, pretrained_encoders(weights)), tmp_path_factory)
    frames = [Image.new("RGB", (32, 32))]
    for source, instruction, words in (
        ([], "red", "source_video is empty"),
        (frames, ["red"], "must be one string, not list"),
        (frames, "very " * 40 + "red", "tokens with its prefix and the model reads 16: shorten it"),
    ):
        with pytest.raises(ValueError, match=words):
            pipe(source, instruction)
