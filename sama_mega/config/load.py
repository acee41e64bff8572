"""Reads a recipe and its overrides into a frozen `Recipe`; errors name file, key, value, rule and fix."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from sama_mega.config import strict_yaml
from sama_mega.config.errors import ConfigError
from sama_mega.config.schema import Recipe
from sama_mega.config.strict_yaml import Document
from sama_mega.config.validate import known_keys, nearest_key, read_text, validate

_NOUN = "recipe"


def load_recipe(path: str | Path, overrides: Iterable[str] = ()) -> Recipe:
    """Load a recipe.

    Args:
        path: A YAML file. One that does not exist is looked up among the recipes of the installed package, so
            that `recipes/demo_stage0.yaml` works outside a clone.
        overrides: `section.key=value` items, the value written as YAML; the last one of a key wins. Setting
            `data.manifest` replaces the recipe's whole `data.blend`, and the other way round.

    Raises:
        ConfigError: The file cannot be read, is not YAML, or breaks a rule.
    """
    document = strict_yaml.parse_document(_read_recipe(Path(path)), str(path))
    for section, value in document.values.items():
        if value is None:  # `motion:` with every key commented out
            document.values[section] = {}
    overridden = _apply_overrides(document.values, overrides, str(path))
    places = {key: f"override '{override}'" for key, override in overridden.items()}
    return validate(Recipe, document, str(path), _NOUN, places)


def build_recipe(values: Mapping[str, Any], source: str = "recipe") -> Recipe:
    """Build a recipe from plain values, sections as dictionaries.

    Raises:
        ConfigError: The values break a rule; the message calls them `source`.
    """
    return validate(Recipe, Document(dict(values)), source, _NOUN)


def recipe_to_yaml(recipe: Recipe) -> str:
    """Write the resolved recipe, defaults filled in; `load_recipe` reads back an equal one."""
    return strict_yaml.dump(recipe.model_dump(mode="json"))


def find_bundled(relative: str | Path) -> Path | None:
    """Find a file that travels with the package, such as `recipes/demo_stage0.yaml` or `slurm/stage0.sh`.

    Returns:
        The path inside the installed package, or inside the clone that this package is imported from; None if
        neither has it.
    """
    package = Path(__file__).resolve().parents[1]
    clone = package.parent
    roots = [package / "_bundled"]
    if (clone / "pyproject.toml").is_file():
        roots.append(clone)
    return next((root / relative for root in roots if (root / relative).is_file()), None)


def _read_recipe(path: Path) -> str:
    """Read a recipe's text, looking among the bundled recipes where `path` is relative and does not exist."""
    found = path
    if not path.is_absolute() and not path.exists():
        found = find_bundled(path) or find_bundled(Path("recipes") / path) or path
    try:
        return read_text(found, _NOUN)
    except FileNotFoundError:
        if "=" in path.name:
            raise ConfigError(f"{path}: no such recipe: overrides come after it, as in RECIPE {path}") from None
        raise ConfigError(f"{path}: no such recipe{_nearest_recipe(path)}") from None


def _nearest_recipe(path: Path) -> str:
    folders = [path.parent]
    bundled = find_bundled("recipes/demo_stage0.yaml")
    if bundled:
        folders.append(bundled.parent)
    names = {file.name: folder for folder in reversed(folders) for file in sorted(folder.glob("*.yaml"))}
    close = difflib.get_close_matches(path.name, list(names), n=1)
    return f"; the nearest is {names[close[0]] / close[0]}" if close else ""


def _apply_overrides(values: dict[str, Any], overrides: Iterable[str], source: str) -> dict[str, str]:
    """Write overrides into `values` (mutated); returns the override that set each dotted key."""
    overridden: dict[str, str] = {}
    for override in overrides:
        label = f"{source}, override '{override}'"
        key, equals, text = override.partition("=")
        key = key.strip()
        section, dot, field = key.partition(".")
        known = key in known_keys(Recipe)
        if not (equals and dot and section and field) or (known and "." in field):
            raise ConfigError(f"{label}: must be written section.key=value, such as train.steps=100")
        if not known:
            raise ConfigError(f"{label}: {key} is not a recipe key{nearest_key(Recipe, key)}")
        keys = values.setdefault(section, {})
        if isinstance(keys, dict):  # anything else is refused with the section's own message
            keys[field] = strict_yaml.parse_value(text, label)
            overridden[key] = override
    _keep_the_overridden_dataset(values.get("data"), overridden)
    return overridden


def _keep_the_overridden_dataset(data: Any, overridden: Mapping[str, str]) -> None:
    """Let an overridden manifest replace the recipe's blend, and the other way round; mutates `data`."""
    for key, other in (("manifest", "blend"), ("blend", "manifest")):
        if f"data.{key}" in overridden and f"data.{other}" not in overridden and isinstance(data, dict) and data[key]:
            data.pop(other, None)
