"""Recipes: strict YAML to frozen typed objects. Knows no component and imports no torch."""

from __future__ import annotations

from sama_mega.config.errors import CheckpointError, ConfigError, UserError
from sama_mega.config.load import build_recipe, find_bundled, load_recipe, recipe_to_yaml
from sama_mega.config.schema import Recipe

__all__ = [
    "CheckpointError",
    "ConfigError",
    "Recipe",
    "UserError",
    "build_recipe",
    "find_bundled",
    "load_recipe",
    "recipe_to_yaml",
]
