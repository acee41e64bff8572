"""What recipe fields are made of: the base of all sections, types with their rules, and the error of a broken rule."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, PositiveInt, Strict

LATENT_STRIDE = 8
"""Pixels per latent position, in height and in width."""
FRAMES_PER_LATENT = 4
"""Frames per latent frame after the first, so that clips have 4k+1 frames."""


class BrokenRule(ValueError):
    """A rule that a recipe breaks, with the key that the user should look at."""

    def __init__(self, key: str, value: object, rule: str) -> None:
        """Name the `key` (in its section; dotted where rules cross sections), its `value` and the `rule`."""
        super().__init__(rule)
        self.key = key
        self.value = value
        self.rule = rule


class Section(BaseModel):
    """Base of all recipe sections: frozen, no unknown keys, no silent conversions, no infinities.

    The docstring below a field is its meaning in `docs/recipes.md`.
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


def _check_path(path: Path) -> Path:
    if str(path) in ("", "."):
        raise ValueError("must name a file or folder; write null for none")
    return path


def _check_auto_or_positive(value: Any) -> Any:
    if value != "auto" and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
        raise ValueError("must be auto or a whole number of at least 1")
    return value


def _check_stage(value: Any) -> Any:
    if type(value) is not int or value not in (0, 1):  # Literal alone would take true and 1.0
        raise ValueError("must be 0 (pre-training) or 1 (editing)")
    return value


Share = Annotated[float, Field(ge=0.0, le=1.0)]
"""A probability or a share of a whole."""
ShareBelowOne = Annotated[float, Field(ge=0.0, lt=1.0)]
"""A decay rate: 1 would never take in anything new."""
RecipePath = Annotated[Path, Strict(False), AfterValidator(_check_path)]
"""A path; strictness is off because YAML can only give text."""
Name = Annotated[str, Field(min_length=1)]
"""Text that must not be empty."""
AutoOrPositive = Annotated[Literal["auto"] | PositiveInt, BeforeValidator(_check_auto_or_positive)]
"""`auto` or a whole number of at least 1."""
Stage = Annotated[Literal[0, 1], BeforeValidator(_check_stage)]
"""0: pre-training on raw videos and image edits; 1: editing."""
LoraTarget = Literal[
    "self_attn.linear_qkv",
    "self_attn.o",
    "cross_attn.q",
    "cross_attn.linear_kv",
    "cross_attn.o",
    "ffn.linear_in",
    "ffn.linear_out",
]
"""A linear of every block."""
Bucket = Annotated[tuple[PositiveInt, PositiveInt], Strict(False)]
"""Width and height in pixels; strictness is off because YAML gives lists."""
