"""Encoders of video, text and anchor frames: the embedded ones, and the door to the pretrained ones."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from sama_mega.config.errors import ConfigError
from sama_mega.encoders.dct import DctCodec
from sama_mega.encoders.hash_text import HashTextEncoder
from sama_mega.encoders.interface import Encoders, SemanticEncoder, TextEncoder, VideoCodec
from sama_mega.encoders.tiny_semantic import TinySemanticEncoder

if TYPE_CHECKING:
    from sama_mega.config import Recipe

__all__ = ["Encoders", "SemanticEncoder", "TextEncoder", "VideoCodec", "build_encoders"]

_EMBEDDED = {"video": "dct", "text": "hash", "semantic": "tiny"}
_PRETRAINED = {"wan": "the Wan VAE", "umt5": "UMT5", "siglip": "SigLIP"}


def build_encoders(recipe: Recipe, device: torch.device | str) -> Encoders:
    """Builds the encoders that a recipe names, on `device`.

    Args:
        recipe: reads `encoders`, `model.{in_channels,text_dim,text_length,semantic_dim}` and
            `anchor.{local_grid,global_token}`.
        device: where the encoders' constants live and their results appear.

    Returns:
        The three encoders.

    Raises:
        ConfigError: a pretrained encoder is asked for, or the model's channels are not the codec's.
    """
    for role, embedded in _EMBEDDED.items():
        chosen = getattr(recipe.encoders, role)
        if chosen != embedded:
            raise ConfigError(
                f"encoders.{role} ({chosen}): the loader of {_PRETRAINED.get(chosen, chosen)} is not part of this "
                f"version: use {embedded}"
            )
    if recipe.model.in_channels != DctCodec.latent_channels:
        raise ConfigError(
            f"model.in_channels ({recipe.model.in_channels}) must equal the dct codec's channels: "
            f"use {DctCodec.latent_channels}"
        )
    return Encoders(
        video=DctCodec(device),
        text=HashTextEncoder(recipe.model.text_length, recipe.model.text_dim, device),
        semantic=TinySemanticEncoder(
            recipe.anchor.local_grid, recipe.model.semantic_dim, recipe.anchor.global_token, device
        ),
    )
