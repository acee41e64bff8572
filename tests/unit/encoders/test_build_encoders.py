"""The door to the encoders: built from a recipe, or refused with the reason."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from sama_mega.config.errors import ConfigError
from sama_mega.encoders import build_encoders


def recipe(**changes: object) -> SimpleNamespace:
    """The fields that build_encoders reads."""
    encoders = {"video": "dct", "text": "hash", "semantic": "tiny"}
    model = {"in_channels": 16, "text_dim": 64, "text_length": 24, "semantic_dim": 48}
    anchor = {"local_grid": 4, "global_token": True}
    for section in (encoders, model, anchor):
        section.update({key: value for key, value in changes.items() if key in section})
    return SimpleNamespace(
        encoders=SimpleNamespace(**encoders), model=SimpleNamespace(**model), anchor=SimpleNamespace(**anchor)
    )


def test_embedded_encoders_follow_the_recipe() -> None:
    """Sizes come from the recipe."""
    encoders = build_encoders(recipe(text_length=30, local_grid=2), "cpu")  # type: ignore[arg-type]
    assert encoders.video.encode(torch.zeros(1, 3, 5, 32, 32)).shape == (1, 16, 2, 4, 4)
    assert encoders.text.encode(["a red circle"]).shape == (1, 30, 64)
    assert encoders.text.max_tokens == 30
    assert encoders.semantic.encode(torch.zeros(1, 1, 3, 32, 32)).shape == (1, 5, 48)
    assert encoders.semantic.tokens_per_anchor == 5


@pytest.mark.parametrize(
    "field, value, name", [("video", "wan", "Wan VAE"), ("text", "umt5", "UMT5"), ("semantic", "siglip", "SigLIP")]
)
def test_pretrained_encoders_are_refused_honestly(field: str, value: str, name: str) -> None:
    """The message names the field, what is missing and what to use."""
    with pytest.raises(ConfigError, match=f"encoders.{field} .*{name}.*use"):
        build_encoders(recipe(**{field: value}), "cpu")  # type: ignore[arg-type]


def test_wrong_channels_are_refused() -> None:
    """The model must read what the codec makes."""
    with pytest.raises(ConfigError, match=r"model.in_channels \(8\)"):
        build_encoders(recipe(in_channels=8), "cpu")  # type: ignore[arg-type]
