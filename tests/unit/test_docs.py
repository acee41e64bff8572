"""What the documentation quotes from the code stands there: messages, recipe keys and their defaults."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from sama_mega.config.schema import Recipe
from sama_mega.config.validate import known_keys

REPOSITORY = Path(__file__).resolve().parents[2]
SOURCES = ("sama_mega", "data/sama_data", "kernels/sama_kernels")
PAGES = [*sorted(str(page.relative_to(REPOSITORY)) for page in (REPOSITORY / "docs").glob("*.md")), "README.md"]
VALUE = "\0"
"""Stands for a value in a message."""


def literals(tree: ast.AST) -> Iterator[str]:
    """Every text of a module; of a formatted one the parts between its values."""
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield "".join(part.value if isinstance(part, ast.Constant) else VALUE for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield re.sub(r"%[\d.]*[sdfr]", VALUE, node.value)


@cache
def messages() -> tuple[str, ...]:
    """All texts of the code and lines of the scripts."""
    files = [path for folder in SOURCES for path in sorted((REPOSITORY / folder).rglob("*.py"))]
    found = {text for path in files for text in literals(ast.parse(path.read_text(encoding="utf-8")))}
    scripts = sorted((REPOSITORY / "slurm").glob("*.sh"))
    return (*found, *(line for script in scripts for line in script.read_text().splitlines()))


def is_said(quotation: str) -> bool:
    """Whether one text of the code has all of the quotation's parts, in their order."""
    parts = [part for part in quotation.split("...") if part.strip()]
    pattern = re.compile(".*".join(map(re.escape, parts)), re.DOTALL)
    return any(pattern.search(text) for text in messages())


def quotations() -> list[str]:
    text = (REPOSITORY / "docs/troubleshooting.md").read_text(encoding="utf-8")
    return [row[1] for row in re.finditer(r"^\| `([^`]+)`", text, re.MULTILINE)]


def test_messages_are_found_where_they_are_and_only_there() -> None:
    assert is_said("data.manifest is not set: name a manifest (data.manifest=PATH) or a data.blend")
    assert is_said("cannot go on from ...: the manifest has other rows now")
    assert not is_said("cannot go on from ...: the manifest has fewer rows now")
    assert not is_said("has other rows now...cannot go on from")


@pytest.mark.parametrize("quotation", quotations())
def test_quoted_messages_stand_in_the_code(quotation: str) -> None:
    assert is_said(quotation), "docs/troubleshooting.md quotes what no text of the code says: put the new words there"


@pytest.mark.parametrize("page", PAGES)
def test_recipe_keys_in_the_pages_exist(page: str) -> None:
    sections, keys = set(Recipe.model_fields), set(known_keys(Recipe))
    text = re.sub(r"^```.*?^```", "", (REPOSITORY / page).read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    named = re.findall(r"`([a-z_]+\.[a-z_0-9]+)(?:[=:][^`]*)?`", text)
    wrong = {key for key in named if key.partition(".")[0] in sections and key not in keys}
    assert not wrong


def test_defaults_in_the_method_are_those_of_the_recipe() -> None:
    """A number in brackets behind a key."""
    text = (REPOSITORY / "docs/method.md").read_text(encoding="utf-8")
    said = re.findall(r"`([a-z_]+)\.([a-z_]+)`\s+\(([^)a-z]*)\)", text)
    assert len(said) > 10
    for section, key, value in said:
        default = Recipe.model_fields[section].annotation.model_fields[key].default
        if section == "model" and key == "patch_size":
            default = list(default)
            value = f"[{value}]"
        assert json.loads(value) == default, f"{section}.{key}"
