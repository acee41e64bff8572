"""The manifests that a recipe names, as far as they exist."""

from __future__ import annotations

import sys

from sama_data.dataset import Dataset
from sama_data.manifest import load_blend
from sama_mega.config import Recipe
from sama_mega.config.errors import ConfigError


def open_manifests(recipe: Recipe, way_out: str = "") -> tuple[Dataset, list[str]]:
    """Opens a recipe's manifests, without those that are missing: each is told in a line on stderr.

    Args:
        recipe: The recipe.
        way_out: What else a user may do where there is none, for the message.

    Returns:
        The rows, and the manifests that do not exist.

    Raises:
        ConfigError: None exists.
        DataError: One exists but cannot be used.
    """
    data = recipe.data
    entries = [(data.manifest, 1.0)] if data.manifest else [(entry.manifest, entry.weight) for entry in data.blend]
    if not entries:
        raise ConfigError(f"data.manifest and data.blend name no manifest: set one of them{way_out}")
    missing = [str(path) for path, _ in entries if not path.exists()]
    for path in missing:
        print(f"{path}: no such manifest", file=sys.stderr)
    if len(missing) == len(entries):
        which = "the manifest does not exist" if len(entries) == 1 else f"none of the {len(entries)} manifests exists"
        raise ConfigError(f"{which}: make one with `sama-mega data ingest`{way_out}")
    return load_blend([(path, weight) for path, weight in entries if path.exists()]), missing
