"""An encoder's identity: another one wherever its results could be others, the same one wherever they could not."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from sama_mega.config.errors import ConfigError
from sama_mega.encoders import build_encoders
from sama_mega.encoders import dct as dct_module
from sama_mega.encoders.siglip_semantic import SiglipSemanticEncoder
from sama_mega.encoders.umt5_text import Umt5TextEncoder
from sama_mega.encoders.wan_vae import WanVideoCodec
from tests.support.pretrained_folders import (
    MODEL_FILE,
    VAE_FILE,
    change_config,
    change_weights,
    pretrained_encoders,
    pretrained_weights,
    write_tokenizer,
)
from tests.support.tiny_recipe import tiny_recipe


@pytest.fixture
def root(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(shutil.copytree(pretrained_weights(tmp_path_factory), tmp_path / "weights"))


def identity(root: Path | None = None, **changes: Any) -> dict[str, Any]:
    values = {key.replace("__", "."): value for key, value in changes.items()}
    if root is not None:
        values = pretrained_encoders(root) | values
    return build_encoders(tiny_recipe(0, Path("unused"), Path("unused"), changes=values), "cpu").identity()


def different(first: dict[str, Any], second: dict[str, Any]) -> set[str]:
    return {role for role in first if first[role] != second[role]}


def test_identities_survive_json() -> None:
    ours = identity()
    assert set(ours) == {"video", "text", "semantic"} and json.loads(json.dumps(ours)) == ours


def test_embedded_encoders_are_told_by_their_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = identity()
    assert different(plain, identity()) == set()
    assert different(plain, identity(model__text_length=9)) == {"text"}
    assert different(plain, identity(model__text_dim=8)) == {"text"}
    assert different(plain, identity(model__semantic_dim=8)) == {"semantic"}
    assert different(plain, identity(anchor__local_grid=3)) == {"semantic"}
    assert different(plain, identity(anchor__global_token=False)) == {"semantic"}
    monkeypatch.setattr(dct_module, "CHANNEL_STD", (1.0,) * 16)
    assert different(plain, identity()) == {"video"}


def test_float32_matrices_have_precisions(root: Path) -> None:
    before = torch.get_float32_matmul_precision()
    embedded, pretrained, halved = (
        identity(),
        identity(root, train__precision="float32"),
        identity(root, train__precision="bfloat16"),
    )
    try:
        torch.set_float32_matmul_precision("medium" if before == "highest" else "highest")
        assert different(embedded, identity()) == {"video", "semantic"}
        assert different(pretrained, identity(root, train__precision="float32")) == {"video", "text", "semantic"}
        assert different(halved, identity(root, train__precision="bfloat16")) == set()
    finally:
        torch.set_float32_matmul_precision(before)
    assert different(pretrained, halved) == {"video", "text", "semantic"}


LOADERS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "vae": (lambda root: WanVideoCodec(root, "cpu", torch.float32), VAE_FILE),
    "text_encoder": (lambda root: Umt5TextEncoder(root, 8, "cpu", torch.float32), MODEL_FILE),
    "siglip": (lambda root: SiglipSemanticEncoder(root / "siglip", 2, True, "cpu", torch.float32), MODEL_FILE),
}


@pytest.mark.parametrize("name", LOADERS)
def test_weights_and_config_are_told_by_every_byte(root: Path, name: str, tmp_path: Path) -> None:
    load, file = LOADERS[name]
    plain = load(root).identity()
    copy = Path(shutil.copytree(root, tmp_path / "elsewhere"))
    assert load(copy).identity() == plain

    def nudge(tensors: dict[str, torch.Tensor]) -> None:
        some = tensors[max(tensors)]
        some.view(-1)[-1] += 1e-3

    change_weights(copy / name / file, nudge)
    assert load(copy).identity() != plain
    change_config(root / name, dropout=0.0, dropout_rate=0.0, attention_dropout=0.25)
    assert load(root).identity() != plain


def test_a_text_encoder_is_told_by_its_tokenizer_and_length(root: Path) -> None:
    plain = Umt5TextEncoder(root, 8, "cpu", torch.float32).identity()
    assert Umt5TextEncoder(root, 9, "cpu", torch.float32).identity() != plain
    write_tokenizer(root / "tokenizer", num_words=90)
    assert Umt5TextEncoder(root, 8, "cpu", torch.float32).identity() != plain


def test_files_that_are_gone_meanwhile_are_named(root: Path) -> None:
    codec = WanVideoCodec(root, "cpu", torch.float32)
    (root / "vae" / VAE_FILE).unlink()
    with pytest.raises(ConfigError, match=rf"encoders.video_path: .*{VAE_FILE} cannot be read: No such file"):
        codec.identity()
