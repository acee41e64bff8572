"""What each published format calls a tensor, against the released checkpoint's names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from sama_mega.model.diffusers_names import diffusers_name, released_name_of_diffusers

SourceFormat = Literal["diffusers", "wan", "sama"]
TargetFormat = Literal["diffusers", "sama"]

NAMES_SHOWN = 3
"""At most this many names of a kind go into one message."""


def released_name(source_format: SourceFormat, stored: str) -> str | None:
    """The released checkpoint's name of a stored tensor; None where the format knows no such tensor."""
    return released_name_of_diffusers(stored) if source_format == "diffusers" else stored


def stored_name(source_format: SourceFormat, released: str) -> str | None:
    """Undoes `released_name`; None where the format has no such tensor."""
    return diffusers_name(released) if source_format == "diffusers" else released


def show_some(names: list[str]) -> str:
    """A few names, and how many more there are."""
    more = f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
    return ", ".join(names[:NAMES_SHOWN]) + more


def list_problems(problems: Mapping[str, list[str]]) -> str:
    """How many there are of every kind, and a few of their names; empty where there are none."""
    return "; ".join(f"{kind} {len(names)} ({show_some(names)})" for kind, names in problems.items() if names)
