"""The recipe reference, `docs/recipes.md`, from the types of the recipe: keys, rules, defaults and meanings."""

from __future__ import annotations

import inspect
import json
import types
import typing
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, Union

from annotated_types import Ge, Gt, Le, Lt, MinLen
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from sama_mega.config.schema import Recipe, Section

_PREAMBLE = """\
# Recipes

A recipe is one YAML file and one whole run. Below is every key: what it may be, what it is where a recipe does not say,
and what it does. This page is written from `sama_mega/config/schema.py` by `make reference`; a test holds it to that.

```yaml
model: {dim: 128, num_layers: 4, num_heads: 4, ffn_dim: 320}
data:
  manifest: my/pairs.jsonl
train: {stage: 1, steps: 1000, run_folder: runs/mine}
```

Any value can be replaced on the command line, written as in YAML, after the recipe:

```bash
sama-mega check recipes/demo_stage1.yaml train.steps=20 'data.buckets=[[64, 64], [112, 64]]' checkpoint.init_from=null
```

Nothing is guessed: an unknown key, a wrong type or a broken rule ends the command with status 2 and one line that names
the file, the line, the key, its value, the rule and, for a misspelt key, the nearest one. Paths are relative to where
the command is started. The recipe with everything filled in is `recipe.yaml` in the run folder and in every checkpoint.
"""

_NUMBERS = {int: "whole number", float: "number"}
_WORDS: dict[Any, str] = {bool: "true or false", str: "text", Path: "path"}
_TABLE_HEAD = ["", "| key | may be | default | meaning |", "|---|---|---|---|"]


def render_reference() -> str:
    """The text of `docs/recipes.md`."""
    lines = [_PREAMBLE]
    for name, info in Recipe.model_fields.items():
        assert isinstance(info.annotation, type) and issubclass(info.annotation, Section), name
        lines += [f"## {name}", "", *_section(name, info.annotation), ""]
    return "\n".join(lines)


def keys_without_meaning() -> list[str]:
    """Dotted keys whose field in the schema has no docstring."""
    return [
        f"{name}.{key}"
        for name, section in _sections()
        for key, info in section.model_fields.items()
        if not info.description
    ]


def _sections() -> Iterator[tuple[str, type[Section]]]:
    for name, info in Recipe.model_fields.items():
        assert isinstance(info.annotation, type) and issubclass(info.annotation, Section), name
        yield name, info.annotation
        for key, field in info.annotation.model_fields.items():
            yield from ((f"{name}.{key}", item) for item in _sections_in(field.annotation))


def _section(name: str, section: type[Section]) -> list[str]:
    """What a section is, its table, and the tables of sections that its keys list."""
    lines = [inspect.cleandoc(section.__doc__ or ""), *_TABLE_HEAD]
    for key, info in section.model_fields.items():
        allowed, default, meaning = (
            text.replace("|", "\\|")
            for text in (say_type(info.annotation, info.metadata), _default(info), info.description or "")
        )
        lines.append(f"| `{key}` | {allowed} | {default} | {meaning} |")
    for key, info in section.model_fields.items():
        for item in _sections_in(info.annotation):
            lines += ["", f"### An item of {name}.{key}", "", *_section(f"{name}.{key}", item)]
    return lines


def say_type(annotation: Any, metadata: Sequence[Any] = ()) -> str:
    """What values a type takes, in words.

    Args:
        annotation: A type of a recipe's field.
        metadata: The bounds that stand beside it.
    """
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return say_type(arguments[0], _flat(arguments[1:]))
    if origin is Literal:
        return _either([f"`{value}`" for value in arguments])
    if origin in (Union, types.UnionType):
        nullable = type(None) in arguments  # first, so that it does not seem to belong to a list's items
        return _either(["null"] * nullable + [say_type(kind) for kind in arguments if kind is not type(None)])
    if origin is tuple:
        count = "" if arguments[-1] is Ellipsis else f" of {len(arguments)}"
        return f"list{count}, each {say_type(arguments[0])}"
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return "a section of the keys below"
    if annotation in _NUMBERS:
        return _NUMBERS[annotation] + _bounds(annotation, metadata)
    return _WORDS[annotation] + (", not empty" if any(isinstance(rule, MinLen) for rule in metadata) else "")


def _flat(metadata: Sequence[Any]) -> list[Any]:
    """Bounds of a type; pydantic's `Field` holds several."""
    return [rule for item in metadata for rule in (item.metadata if isinstance(item, FieldInfo) else [item])]


def _bounds(kind: type, metadata: Sequence[Any]) -> str:
    said = []
    for rule in metadata:
        match rule:
            case Gt(gt=0) if kind is int:
                said.append(" ≥ 1")
            case Gt(gt=bound):
                said.append(f" > {bound:g}")
            case Ge(ge=bound):
                said.append(f" ≥ {bound:g}")
            case Lt(lt=bound):
                said.append(f" < {bound:g}")
            case Le(le=bound):
                said.append(f" ≤ {bound:g}")
    return ",".join(said)


def _either(choices: Sequence[str]) -> str:
    return " or ".join([", ".join(choices[:-1]), choices[-1]] if len(choices) > 1 else choices)


def _default(info: FieldInfo) -> str:
    if info.default is PydanticUndefined:
        return "required"
    value = list(info.default) if isinstance(info.default, tuple) else info.default
    return f"`{value if isinstance(value, str) else json.dumps(value)}`"


def _sections_in(annotation: Any) -> Iterator[type[Section]]:
    for argument in typing.get_args(annotation):
        if isinstance(argument, type) and issubclass(argument, Section):
            yield argument
