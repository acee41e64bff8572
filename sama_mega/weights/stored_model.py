"""A checkpoint's weights, one released tensor after the other, whatever layout wrote them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from sama_mega.checkpoint.folder import RECIPE_FILE, resolve_checkpoint
from sama_mega.config.errors import CheckpointError, ConfigError
from sama_mega.config.load import load_recipe
from sama_mega.config.schema import Recipe
from sama_mega.model.name_map import unfuse
from sama_mega.parallel.checkpoint_stream import CheckpointReader
from sama_mega.parameters.names import released_names
from sama_mega.parameters.shapes import low_rank_modules, low_rank_shapes, our_shapes
from sama_mega.weights.formats import list_problems
from sama_mega.weights.lora import merge
from sama_mega.weights.lora_file import Change
from sama_mega.weights.source import in_memory

Weights = Literal["ema", "model"]


@dataclass(frozen=True)
class StoredModel:
    """Weights of a checkpoint.

    Attributes:
        checkpoint: Its folder.
        recipe: That made it.
        weights: Which of its two sets.
        reader: Of its tensors.
    """

    checkpoint: Path
    recipe: Recipe
    weights: Weights
    reader: CheckpointReader

    def read(self, name: str, dtype: torch.dtype) -> Tensor:
        """One whole parameter by our name, its low-rank change added where the run trained one."""
        module = name.removesuffix(".weight")
        if module not in low_rank_modules(self.recipe.model, self.recipe.lora):
            return self.reader.read(f"{self.weights}.{name}", dtype)
        down, up = (in_memory(factor) for factor in self.low_rank(module))
        whole = self.reader.read(f"{self.weights}.{name}", torch.float32)
        return merge(whole, [Change(up, down, self.recipe.lora.factor)]).to(dtype)

    def low_rank(self, module: str) -> tuple[Tensor, Tensor]:
        """``down`` and ``up`` of one linear's low-rank change, whole, float32."""
        down, up = (
            self.reader.read(f"{self.weights}.{module}.low_rank.{factor}", torch.float32) for factor in ("down", "up")
        )
        return down, up

    def released(self, names: list[str], dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
        """Released name and tensor of our parameters, one parameter in memory at a time.

        Args:
            names: Ours.
            dtype: Of the tensors.
        """
        for name in names:
            parts = released_names(name)
            yield from zip(parts, unfuse(self.read(name, dtype), len(parts), self.recipe.model.num_heads), strict=True)


def open_stored_model(path: Path, weights: Weights) -> StoredModel:
    """Opens a checkpoint for export, strictly.

    Args:
        path: A checkpoint or a run folder.
        weights: ``ema`` or ``model``.

    Raises:
        CheckpointError: It is none, or its tensors are not those of its recipe's model.
        ConfigError: Its model has no counterpart among the published ones.
    """
    checkpoint = resolve_checkpoint(path)
    recipe = load_recipe(checkpoint / RECIPE_FILE)
    if recipe.model.roles != "segment":
        raise ConfigError(
            f"{checkpoint}: model.roles is {recipe.model.roles}: only models with type embeddings (segment) can be"
            " exported, because published code knows no other"
        )
    if recipe.anchor.num_frames == 0:
        raise ConfigError(
            f"{checkpoint}: anchor.num_frames is 0: only models with semantic tokens can be exported, because published"
            " code knows no other"
        )
    reader = CheckpointReader(checkpoint)
    prefix = f"{weights}."
    stored = {key.removeprefix(prefix): shape for key, shape in reader.shapes.items() if key.startswith(prefix)}
    wanted = our_shapes(recipe.model) | low_rank_shapes(recipe.model, recipe.lora)
    misshapen = [
        f"{name}: {list(stored[name])}, must be {list(shape)}"
        for name, shape in wanted.items()
        if name in stored and stored[name] != shape
    ]
    problems = list_problems(
        {
            "missing": sorted(wanted.keys() - stored.keys()),
            "unused": sorted(stored.keys() - wanted.keys()),
            "wrong shape": misshapen,
        }
    )
    if problems:
        raise CheckpointError(f"{checkpoint} does not hold the {weights} weights of its recipe: {problems}")
    return StoredModel(checkpoint, recipe, weights, reader)
