"""Reads a recipe and its overrides into a frozen `Recipe`; errors name file, key, value, rule and fix."""

from __future__ import annotations

import difflib
import json
import re
import typing
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from sama_mega.config import strict_yaml
from sama_mega.config.errors import ConfigError
from sama_mega.config.schema import BrokenRule, Recipe, Section
from sama_mega.config.strict_yaml import Document

_LARGEST_RECIPE_BYTES = 1 << 20
_PLAIN_RULES = {
    "missing": "is missing",
    "int_type": "must be a whole number",
    "float_type": "must be a number",
    "bool_type": "must be true or false",
    "string_type": "must be text",
    "path_type": "must be text",
    "string_too_short": "must not be empty",
    "tuple_type": "must be a list",
    "finite_number": "must be a finite number",
    "model_type": "must be a section of keys",
}


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
    document = strict_yaml.parse_document(_read_text(Path(path)), str(path))
    for section, value in document.values.items():
        if value is None:  # `motion:` with every key commented out
            document.values[section] = {}
    overridden = _apply_overrides(document.values, overrides, str(path))
    return _build(document, str(path), overridden)


def build_recipe(values: Mapping[str, Any], source: str = "recipe") -> Recipe:
    """Build a recipe from plain values, sections as dictionaries.

    Raises:
        ConfigError: The values break a rule; the message calls them `source`.
    """
    return _build(Document(dict(values)), source, {})


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


def _read_text(path: Path) -> str:
    """Read a recipe's text, looking among the bundled recipes where `path` is relative and does not exist."""
    found = path
    if not path.is_absolute() and not path.exists():
        found = find_bundled(path) or find_bundled(Path("recipes") / path) or path
    try:
        with found.open("rb") as file:
            content = file.read(_LARGEST_RECIPE_BYTES + 1)
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such recipe{_nearest_recipe(path)}") from None
    except IsADirectoryError:
        raise ConfigError(f"{path}: is a folder; give the recipe's YAML file") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    if len(content) > _LARGEST_RECIPE_BYTES:
        raise ConfigError(f"{path}: over {_LARGEST_RECIPE_BYTES} bytes; a recipe is a short YAML file")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text (byte {error.start}); a recipe is a YAML file") from error


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
        known = key in _known_keys()
        if not (equals and dot and section and field) or (known and "." in field):
            raise ConfigError(f"{label}: must be written section.key=value, such as train.steps=100")
        if not known:
            raise ConfigError(f"{label}: {key} is not a recipe key{_nearest_key(key)}")
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


def _build(document: Document, source: str, overridden: dict[str, str]) -> Recipe:
    try:
        return Recipe.model_validate(document.values)
    except ValidationError as error:
        problems = error.errors(include_url=False)
        # A misspelt required key is both unknown and missing: the unknown one tells the user more.
        problems.sort(key=lambda problem: problem["type"] != "extra_forbidden")
        dotted, sentence = _explain(problems[0])
        override = next((text for key, text in overridden.items() if _is_within(dotted, key)), None)
        if override is not None:
            place = f"{source}, override '{override}'"
        else:
            line = _line_of(dotted, document.lines) if problems[0]["type"] != "missing" else None
            place = f"{source}:{line}" if line else source
        others = f" (and {len(problems) - 1} more to fix)" if len(problems) > 1 else ""
        raise ConfigError(f"{place}: {sentence}{others}") from None


def _explain(problem: Mapping[str, Any]) -> tuple[str, str]:
    """Dotted key and sentence of one pydantic problem."""
    dotted = _dotted(problem["loc"])
    cause = problem.get("ctx", {}).get("error")
    if isinstance(cause, BrokenRule):
        dotted = f"{dotted}.{cause.key}" if dotted else cause.key
        return dotted, f"{dotted} ({_show(cause.value)}) {cause.rule}"
    if problem["type"] == "extra_forbidden":
        return dotted, f"{dotted} ({_show(problem['input'])}) is not a recipe key{_nearest_key(dotted)}"
    if problem["type"] == "missing":
        return dotted, f"{dotted} is missing"
    if problem["type"] == "value_error":
        rule = str(cause)
    elif problem["type"] == "literal_error":
        rule = f"must be one of {problem['ctx']['expected']}"
    else:
        rule = _PLAIN_RULES.get(problem["type"], problem["msg"].replace("Input should", "must"))
    return dotted, f"{dotted} ({_show(problem['input'])}) {rule}"


def _dotted(location: tuple[int | str, ...]) -> str:
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location).lstrip(".")


def _is_within(dotted: str, key: str) -> bool:
    """Whether `dotted` is `key` or an item of it."""
    return dotted == key or dotted.startswith(f"{key}[")


def _line_of(dotted: str, lines: Mapping[str, int]) -> int | None:
    """Line of the key, or of the nearest thing around it that has one."""
    while dotted and dotted not in lines:
        dotted = dotted[: max(dotted.rfind("."), dotted.rfind("["), 0)]
    return lines.get(dotted)


def _show(value: object) -> str:
    text = json.dumps(value, default=str, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _sections_in(annotation: Any) -> Iterator[type[Section]]:
    if isinstance(annotation, type) and issubclass(annotation, Section):
        yield annotation
    for argument in typing.get_args(annotation):
        yield from _sections_in(argument)


def _known_keys(section: type[Section] = Recipe, prefix: str = "") -> list[str]:
    """Every dotted key of a recipe, sections included, list indices left out."""
    keys: list[str] = []
    for name, info in section.model_fields.items():
        keys.append(f"{prefix}{name}")
        for inner in _sections_in(info.annotation):
            keys += _known_keys(inner, f"{prefix}{name}.")
    return keys


def _nearest_key(dotted: str) -> str:
    """`; the nearest is KEY`, looking beside the unknown key first, then in all sections."""
    plain = re.sub(r"\[\d+\]", "", dotted)
    parent, _, leaf = plain.rpartition(".")
    known = _known_keys()
    beside = {key.rpartition(".")[2]: key for key in known if key.rpartition(".")[0] == parent}
    close = [beside[name] for name in difflib.get_close_matches(leaf, list(beside), n=1)]
    close += [key for key in known if key.rpartition(".")[2] == leaf]
    close += difflib.get_close_matches(plain, known, n=1)
    if close:
        return f"; the nearest is {close[0]}"
    if not beside:
        return f"; the sections are {', '.join(Recipe.model_fields)}"
    return f"; {parent or 'a recipe'} has {', '.join(beside)}"
