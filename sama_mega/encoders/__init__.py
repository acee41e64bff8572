"""Encoders of video, text and anchor frames: the embedded ones, and the door to the pretrained ones."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from sama_mega.config.errors import ConfigError
from sama_mega.config.schema import BUILT_IN_ENCODERS
from sama_mega.encoders.dct import DctCodec
from sama_mega.encoders.hash_text import HashTextEncoder
from sama_mega.encoders.interface import Encoders, SemanticEncoder, TextEncoder, Tiling, VideoCodec
from sama_mega.encoders.siglip_semantic import SiglipSemanticEncoder
from sama_mega.encoders.tiny_semantic import TinySemanticEncoder
from sama_mega.encoders.umt5_text import Umt5TextEncoder
from sama_mega.encoders.wan_vae import WanVideoCodec

if TYPE_CHECKING:
    from sama_mega.config import Recipe

__all__ = ["Encoders", "SemanticEncoder", "TextEncoder", "Tiling", "VideoCodec", "build_encoders"]


def build_encoders(recipe: Recipe, device: torch.device | str, tiling: Tiling = "off") -> Encoders:
    """Builds the encoders that a recipe names, on `device`.

    Pretrained ones have the precision of the run: `train.precision`.

    Args:
        recipe: reads `encoders`, `model.{in_channels,text_dim,text_length,semantic_dim}`,
            `anchor.{local_grid,global_token}` and, for pretrained encoders, `train.precision`.
        device: where the encoders' constants live and their results appear.
        tiling: whether the Wan VAE works in tiles; the built-in codec needs none.

    Returns:
        The three encoders.

    Raises:
        ConfigError: pretrained weights cannot be loaded, or the model's widths are not the encoders'.
    """
    # All of them before the first gigabyte is read.
    paths = {role: _weights_path(recipe, role) for role in BUILT_IN_ENCODERS}
    encoders = Encoders(
        video=_build_video(recipe, paths["video"], device, tiling),
        text=_build_text(recipe, paths["text"], device),
        semantic=_build_semantic(recipe, paths["semantic"], device),
    )
    if recipe.model.in_channels != encoders.video.latent_channels:
        raise ConfigError(
            f"model.in_channels ({recipe.model.in_channels}) must equal the {recipe.encoders.video} codec's channels: "
            f"use {encoders.video.latent_channels}"
        )
    for role, width, own in (
        ("text", recipe.model.text_dim, encoders.text.text_dim),
        ("semantic", recipe.model.semantic_dim, encoders.semantic.semantic_dim),
    ):
        if width != own:
            raise ConfigError(
                f"model.{role}_dim ({width}) must equal the width of encoders.{role} "
                f"({getattr(recipe.encoders, role)}): use {own}"
            )
    return encoders


def _build_video(recipe: Recipe, path: Path | None, device: torch.device | str, tiling: Tiling) -> VideoCodec:
    if path is None:
        return DctCodec(device)
    return WanVideoCodec(path, device, _precision(recipe), tiling)


def _build_text(recipe: Recipe, path: Path | None, device: torch.device | str) -> TextEncoder:
    length = recipe.model.text_length
    if path is None:
        return HashTextEncoder(length, recipe.model.text_dim, device)
    return Umt5TextEncoder(path, length, device, _precision(recipe))


def _build_semantic(recipe: Recipe, path: Path | None, device: torch.device | str) -> SemanticEncoder:
    anchor = recipe.anchor
    if path is None:
        return TinySemanticEncoder(anchor.local_grid, recipe.model.semantic_dim, anchor.global_token, device)
    return SiglipSemanticEncoder(path, anchor.local_grid, anchor.global_token, device, _precision(recipe))


def _weights_path(recipe: Recipe, role: str) -> Path | None:
    """The folder of a pretrained encoder's weights, which must be there; None for an embedded encoder."""
    chosen = getattr(recipe.encoders, role)
    if chosen == BUILT_IN_ENCODERS[role]:
        return None
    path: Path | None = getattr(recipe.encoders, f"{role}_path")
    if path is None:
        raise ConfigError(
            f"encoders.{role} ({chosen}) needs encoders.{role}_path, the folder of its weights: set it, or use "
            f"{BUILT_IN_ENCODERS[role]}"
        )
    if not path.is_dir():
        raise ConfigError(
            f"encoders.{role}_path ({path}): no such folder: name the folder of the weights of encoders.{role} "
            f"({chosen}), or use {BUILT_IN_ENCODERS[role]}"
        )
    return path


def _precision(recipe: Recipe) -> torch.dtype:
    return torch.bfloat16 if recipe.train.precision == "bfloat16" else torch.float32
