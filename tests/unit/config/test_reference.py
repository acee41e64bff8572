"""The recipe reference: every key has a meaning, and types are said as they are checked."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import pytest
from pydantic import Field, PositiveFloat, PositiveInt

from sama_mega.config.field_types import AutoOrPositive, Bucket, Name, RecipePath, Section, Share
from sama_mega.config.reference import keys_without_meaning, render_reference, say_type
from sama_mega.config.schema import Recipe
from sama_mega.config.validate import known_keys


def test_every_key_has_a_meaning() -> None:
    missing = keys_without_meaning()
    assert not missing, f"say below the field in sama_mega/config/schema.py, in one line, what {missing[0]} does"


def test_a_key_without_a_meaning_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Recipe.model_fields["train"].annotation.model_fields["steps"], "description", None)
    assert keys_without_meaning() == ["train.steps"]


def test_every_key_has_a_row_in_its_section() -> None:
    rows, heading = set(), ""
    for line in render_reference().splitlines():
        if line.startswith("#"):
            heading = line.lstrip("# ").removeprefix("An item of ")
        elif line.startswith("| `"):
            rows.add(f"{heading}.{line.split('`')[1]}")
    assert rows == {key for key in known_keys(Recipe) if "." in key}


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        (PositiveInt, "whole number ≥ 1"),
        (PositiveFloat | None, "null or number > 0"),
        (Share, "number ≥ 0, ≤ 1"),
        (Annotated[float, Field(gt=0.0, lt=1.0)], "number > 0, < 1"),
        (AutoOrPositive, "`auto` or whole number ≥ 1"),
        (Literal["a", "b", "c"], "`a`, `b` or `c`"),
        (tuple[Bucket, ...], "list, each list of 2, each whole number ≥ 1"),
        (RecipePath | None, "null or path"),
        (Name, "text, not empty"),
        (bool, "true or false"),
    ],
)
def test_types_are_said_in_words(kind: Any, said: str) -> None:
    class Example(Section):
        field: kind

    info = Example.model_fields["field"]
    assert say_type(info.annotation, info.metadata) == said
