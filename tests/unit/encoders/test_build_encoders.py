"""The door to the encoders: built from a recipe, or refused with the reason."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from sama_mega.config.errors import ConfigError
from sama_mega.encoders import build_encoders
from sama_mega.encoders.siglip_semantic import SiglipSemanticEncoder
from sama_mega.encoders.umt5_text import Umt5TextEncoder
from sama_mega.encoders.wan_vae import WanVideoCodec
from tests.support.pretrained_folders import pretrained_encoders, pretrained_weights
from tests.support.tiny_recipe import TINY, tiny_recipe


def recipe(**changes: object) -> SimpleNamespace:
    """The fields that build_encoders reads."""
    encoders: dict[str, object] = {"video": "dct", "text": "hash", "semantic": "tiny"}
    model = {"in_channels": 16, "text_dim": 64, "text_length": 24, "semantic_dim": 48}
    encoders |= {"video_path": None, "text_path": None, "semantic_path": None}
    anchor = {"local_grid": 4, "global_token": True}
    for section in (encoders, model, anchor):
        section.update({key: value for key, value in changes.items() if key in section})
    return SimpleNamespace(
        encoders=SimpleNamespace(**encoders),
        model=SimpleNamespace(**model),
        anchor=SimpleNamespace(**anchor),
        train=SimpleNamespace(precision="float32"),
    )


def test_embedded_encoders_follow_the_recipe() -> None:
    """Sizes come from the recipe."""
    encoders = build_encoders(recipe(text_length=30, local_grid=2), "cpu")  # type: ignore[arg-type]
    assert encoders.video.encode(torch.zeros(1, 3, 5, 32, 32)).shape == (1, 16, 2, 4, 4)
    assert encoders.text.encode(["a red circle"]).shape == (1, 30, 64)
    assert encoders.text.max_tokens == 30
    assert encoders.semantic.encode(torch.zeros(1, 1, 3, 32, 32)).shape == (1, 5, 48)
    assert encoders.semantic.tokens_per_anchor == 5


PRETRAINED = [("video", "wan", "dct"), ("text", "umt5", "hash"), ("semantic", "siglip", "tiny")]


@pytest.mark.parametrize(("role", "chosen", "embedded"), PRETRAINED)
def test_pretrained_encoders_need_the_folder_of_their_weights(
    role: str, chosen: str, embedded: str, tmp_path: Path
) -> None:
    """The message names the key to set, and what needs no weights."""
    with pytest.raises(ConfigError, match=rf"encoders.{role} \({chosen}\) needs encoders.{role}_path.*use {embedded}"):
        build_encoders(recipe(**{role: chosen}), "cpu")  # type: ignore[arg-type]
    absent = {role: chosen, f"{role}_path": tmp_path / "nowhere"}
    with pytest.raises(ConfigError, match=rf"encoders.{role}_path \(.*nowhere\): no such folder"):
        build_encoders(recipe(**absent), "cpu")  # type: ignore[arg-type]
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=rf"encoders.{role}_path \(.*empty\) holds neither config.json nor"):
        build_encoders(recipe(**absent | {f"{role}_path": tmp_path / "empty"}), "cpu")  # type: ignore[arg-type]


def test_all_folders_are_looked_for_before_the_first_is_read(tmp_path: Path) -> None:
    chosen = {"video": "wan", "video_path": tmp_path, "semantic": "siglip", "semantic_path": tmp_path / "nowhere"}
    with pytest.raises(ConfigError, match=r"encoders.semantic_path .*no such folder"):
        build_encoders(recipe(**chosen), "cpu")  # type: ignore[arg-type]


@pytest.mark.parametrize(("precision", "dtype"), [("float32", torch.float32), ("bfloat16", torch.bfloat16)])
def test_pretrained_encoders_have_the_runs_precision(
    precision: str, dtype: torch.dtype, tmp_path_factory: pytest.TempPathFactory
) -> None:
    changes = pretrained_encoders(pretrained_weights(tmp_path_factory)) | {"train.precision": precision}
    encoders = build_encoders(tiny_recipe(0, Path("unused"), Path("unused"), changes=changes), "cpu")
    assert (type(encoders.video), type(encoders.text), type(encoders.semantic)) == (
        WanVideoCodec,
        Umt5TextEncoder,
        SiglipSemanticEncoder,
    )
    models = (encoders.video._vae, encoders.text._model, encoders.semantic._tower)  # type: ignore[attr-defined]
    assert {parameter.dtype for model in models for parameter in model.parameters()} == {dtype}
    assert encoders.text.max_tokens == TINY["model.text_length"]
    assert encoders.semantic.tokens_per_anchor == 5


@pytest.mark.parametrize(("key", "width"), [("model.text_dim", 24), ("model.semantic_dim", 20)])
def test_other_widths_than_the_weights_are_refused(
    key: str, width: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    changes = pretrained_encoders(pretrained_weights(tmp_path_factory)) | {key: 28}
    wrong = tiny_recipe(0, Path("unused"), Path("unused"), changes=changes)
    with pytest.raises(ConfigError, match=rf"{key} \(28\) must equal .*use {width}"):
        build_encoders(wrong, "cpu")


def test_wrong_channels_are_refused() -> None:
    """The model must read what the codec makes."""
    with pytest.raises(ConfigError, match=r"model.in_channels \(8\)"):
        build_encoders(recipe(in_channels=8), "cpu")  # type: ignore[arg-type]
