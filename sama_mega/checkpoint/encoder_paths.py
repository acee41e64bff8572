"""Where the pretrained encoders of a checkpoint's recipe lie, from wherever the checkpoint is opened."""

from __future__ import annotations

from pathlib import Path

from sama_mega.config.errors import ConfigError
from sama_mega.config.schema import BUILT_IN_ENCODERS, Recipe


def find_encoder_weights(recipe: Recipe, checkpoint: Path) -> Recipe:
    """Makes the recipe's relative paths of encoder weights absolute.

    They began where the training ran. That folder usually lies above the checkpoint, so all folders above it are
    searched, the nearest first, and then the current one.

    Args:
        recipe: Of the checkpoint.
        checkpoint: Its folder.

    Raises:
        ConfigError: A folder of weights is nowhere.
    """
    for role in BUILT_IN_ENCODERS:
        recipe = find_weights_of(role, recipe, checkpoint)
    return recipe


def find_weights_of(role: str, recipe: Recipe, checkpoint: Path) -> Recipe:
    """The same for one encoder.

    Args:
        role: ``video``, ``text`` or ``semantic``.
        recipe: Of the checkpoint.
        checkpoint: Its folder.

    Raises:
        ConfigError: Its folder of weights is nowhere.
    """
    key = f"{role}_path"
    path: Path | None = getattr(recipe.encoders, key)
    if path is None:
        return recipe
    found = {key: _find(f"encoders.{key}", path, checkpoint)}
    return recipe.model_copy(update={"encoders": recipe.encoders.model_copy(update=found)})


def _find(key: str, path: Path, checkpoint: Path) -> Path:
    # An absolute path stays what it is, whatever it is joined to.
    places = [parent / path for parent in (*checkpoint.absolute().parents, Path.cwd())]
    for place in places:
        if place.is_dir():
            return place
    if path.is_absolute():
        raise ConfigError(f"{key} ({path}) of {checkpoint}: no such folder: put the encoder's weights there")
    raise ConfigError(
        f"{key} ({path}) of {checkpoint}: no such folder above the checkpoint or in {Path.cwd()}: start where the"
        " training did, or put the encoder's weights there"
    )
