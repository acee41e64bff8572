"""Array sweeps: `KEY=V1,V2` options to the overrides and the folder name of every element."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import product

from sama_mega.config.errors import ConfigError

_OPENING, _CLOSING, _QUOTES = "[{", "]}", "'\""
_LONGEST_NAME = 100
# Each element gets its own; a chain sets what stage 1 starts from.
_OWN_KEYS = ("train.run_folder", "train.stage")


@dataclass(frozen=True)
class Sweep:
    """Values of one recipe key.

    Attributes:
        key: `section.key`.
        values: YAML texts.
    """

    key: str
    values: tuple[str, ...]


def parse_sweep(text: str) -> Sweep:
    """Read `KEY=V1,V2`; a comma inside brackets or quotes belongs to its value.

    Raises:
        ConfigError: It is written otherwise, or the key cannot be swept.
    """
    label = f"--sweep {text!r}"
    key, equals, values_text = text.partition("=")
    key = key.strip()
    if not equals or not key:
        raise ConfigError(f"{label}: must be written section.key=value,value such as train.seed=1,2,3")
    if key in _OWN_KEYS:
        raise ConfigError(f"{label}: {key} cannot be swept: submit sets it for every element")
    values = [value.strip() for value in _split(values_text, label)]
    if not all(values):
        raise ConfigError(f"{label}: a value is empty: write null for none, or remove a comma")
    if len(set(values)) < len(values):
        twice = next(value for value in values if values.count(value) > 1)
        raise ConfigError(f"{label}: {twice} is listed twice: keep one")
    return Sweep(key, tuple(values))


def combinations(sweeps: Sequence[Sweep]) -> list[tuple[str, ...]]:
    """Overrides of every element: the product of all sweeps, the last one's values varying fastest.

    Raises:
        ConfigError: A key is swept twice.
    """
    keys = [sweep.key for sweep in sweeps]
    for key in keys:
        if keys.count(key) > 1:
            raise ConfigError(f"--sweep {key} is given twice: list all of its values in one")
    pairs = ([f"{sweep.key}={value}" for value in sweep.values] for sweep in sweeps)
    return list(product(*pairs))


def element_name(index: int, overrides: Iterable[str]) -> str:
    """Folder name of an element: `003-learning_rate=1e-4,seed=2`."""
    pairs = [override.partition("=") for override in overrides]
    text = ",".join(f"{key.rpartition('.')[2]}={value}" for key, _, value in pairs)
    return f"{index:03d}-{re.sub(r'[^A-Za-z0-9._=,+-]+', '_', text)[:_LONGEST_NAME]}"


def _split(text: str, label: str) -> list[str]:
    """Parts between the commas that are outside brackets and quotes."""
    parts, depth, quote = [""], 0, ""
    for character in text:
        if quote:
            quote = "" if character == quote else quote
        elif character in _QUOTES:
            quote = character
        elif character in _OPENING:
            depth += 1
        elif character in _CLOSING:
            depth -= 1
        elif character == "," and depth == 0:
            parts.append("")
            continue
        parts[-1] += character
    if quote or depth:
        raise ConfigError(f"{label}: a quote or a bracket is not closed")
    return parts
