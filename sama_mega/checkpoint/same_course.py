"""Whether a recipe may go on from a checkpoint's position, and what else changed since it was written."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from sama_mega.checkpoint.folder import RECIPE_FILE
from sama_mega.checkpoint.saved_state import read_saved_state
from sama_mega.config.errors import CheckpointError, ConfigError
from sama_mega.config.load import load_recipe
from sama_mega.config.schema import Recipe

_FIXED_KEYS = ("train.seed", "train.stage", "data.images_per_step", "data.videos_per_step")
_FIXED_PATHS = ("data.manifest", "data.blend")
_FIXED_SECTIONS = ("model.", "lora.")
_KEYS_SHOWN = 3


def require_same_course(checkpoint: Path, recipe: Recipe) -> list[str]:
    """Compares the recipe of a run that resumes with the one in its checkpoint.

    The position in the data is a number of steps: with another seed, other data or other samples a step it would mean
    other samples. Every rank may call it; nothing is sent.

    Args:
        checkpoint: A complete checkpoint.
        recipe: The present recipe.

    Returns:
        A line `key: old -> new` for each other key that changed, in the recipe's order, for the log.

    Raises:
        CheckpointError: The model, the stage, the seed, the data or the samples a step changed, or the checkpoint's
            recipe cannot be read.
    """
    old, new = _flatten(_saved_recipe(checkpoint)), _flatten(recipe)
    changed = [key for key in new if old[key] != new[key]]
    broken = [
        f"{key} is {_show(old[key])} there and {_show(new[key])} here" for key in changed if _breaks(key, old, new)
    ]
    if broken:
        more = f", and {len(broken) - _KEYS_SHOWN} more keys" if len(broken) > _KEYS_SHOWN else ""
        raise CheckpointError(
            f"cannot go on from {checkpoint}: {', '.join(broken[:_KEYS_SHOWN])}{more}; model, stage, seed, data and"
            " samples a step stay the same over a run, since its position in the data counts steps of them: set"
            f" {'it' if len(broken) == 1 else 'them'} back, or start a new train.run_folder"
        )
    return _changes(old, new)


def changed_keys(saved: Recipe, recipe: Recipe) -> list[str]:
    """A line `key: old -> new` for each key that differs between two recipes, in the recipe's order."""
    return _changes(_flatten(saved), _flatten(recipe))


def require_same_meaning(checkpoint: Path, recipe: Recipe) -> None:
    """Makes sure that weights to start from mean the same here, where no shape could tell.

    The fused projections' rows lie head by head, and a low-rank change is multiplied by `lora.alpha / lora.rank`.

    Args:
        checkpoint: A complete checkpoint.
        recipe: Of the run that starts from its weights.

    Raises:
        CheckpointError: They would be another model's, or the checkpoint's recipe cannot be read.
    """
    saved = _saved_recipe(checkpoint)
    pairs: dict[str, tuple[float, float]] = {"model.num_heads": (saved.model.num_heads, recipe.model.num_heads)}
    if saved.lora.rank == recipe.lora.rank != 0:
        pairs["lora.alpha / lora.rank"] = (saved.lora.factor, recipe.lora.factor)
    for key, (there, here) in pairs.items():
        if there != here:
            raise CheckpointError(
                f"cannot start from {checkpoint}: {key} is {there:g} there and {here:g} here, and its weights would be"
                " another model: set it as there"
            )


def require_same_rows(checkpoint: Path, rows_digest: str) -> None:
    """Makes sure that the manifests still hold the rows that a run which resumes was drawing from, in the same order.

    Args:
        checkpoint: A complete checkpoint.
        rows_digest: Of the rows now: `Dataset.order_digest`.

    Raises:
        CheckpointError: They are others, or the checkpoint is damaged.
    """
    saved = read_saved_state(checkpoint).rows_digest
    if saved and saved != rows_digest:  # format 1 did not say
        raise CheckpointError(
            f"cannot go on from {checkpoint}: the manifest has other rows now, or in another order, and the position in"
            " it would mean other samples: put the old file back, or start a new train.run_folder from this checkpoint"
            " (checkpoint.init_from)"
        )


def _saved_recipe(checkpoint: Path) -> Recipe:
    path = checkpoint / RECIPE_FILE
    if not path.is_file():
        raise CheckpointError(f"{checkpoint} is damaged: it has no {RECIPE_FILE}")
    try:
        return load_recipe(path)
    except ConfigError as error:
        raise CheckpointError(f"the recipe of a checkpoint cannot be read: {error}") from error


def _flatten(recipe: Recipe) -> dict[str, Any]:
    sections = recipe.model_dump(mode="json")
    return {f"{section}.{key}": value for section, keys in sections.items() for key, value in keys.items()}


def _changes(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    return [f"{key}: {_show(old[key])} -> {_show(new[key])}" for key in new if old[key] != new[key]]


def _breaks(key: str, old: dict[str, Any], new: dict[str, Any]) -> bool:
    if key in _FIXED_PATHS:
        return _absolute(old[key]) != _absolute(new[key])
    return key in _FIXED_KEYS or key.startswith(_FIXED_SECTIONS)


def _absolute(value: Any) -> Any:
    """A manifest or a blend with its paths spelled out, so that another way to write the same path is no change."""
    if isinstance(value, str):
        return os.path.abspath(value)
    if isinstance(value, list):
        return [entry | {"manifest": os.path.abspath(entry["manifest"])} for entry in value]
    return value


def _show(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
