"""`state.json`: everything of a run that is not a tensor, with a format number."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from sama_mega.config.errors import CheckpointError

STATE_FILE = "state.json"
FORMAT = 2
"""Of the whole checkpoint folder; raised when an older version could not load a new one."""


@dataclass(frozen=True)
class SavedState:
    """What `state.json` holds besides its format.

    Attributes:
        step: Finished optimizer steps.
        samples_seen: Samples of all those steps.
        data_position: The next step's number: order, shards and noise are pure functions of it and of the seed.
        seed: The run's seed; every random draw is keyed by it, so there is no generator state to keep.
        optimizer_updates: Steps that the optimizer took (a skipped step is not one).
        average_updates: Updates of the moving average.
        layout: Degrees of the run that wrote it, for the reader; any layout can load it.
        life: Life number of the run that wrote it.
        rows_digest: Of the manifests' rows in their order, which `data_position` counts in; "" in format 1.
    """

    step: int
    samples_seen: int
    data_position: int
    seed: int
    optimizer_updates: int
    average_updates: int
    layout: dict[str, int]
    life: int
    rows_digest: str = ""


def write_saved_state(checkpoint: Path, saved: SavedState) -> None:
    """Writes `state.json` into a folder; for one rank only."""
    (checkpoint / STATE_FILE).write_text(json.dumps({"format": FORMAT, **asdict(saved)}, indent=2) + "\n")


def read_saved_state(checkpoint: Path) -> SavedState:
    """Reads `state.json`.

    Raises:
        CheckpointError: It is missing, damaged, or of another version; the message says which.
    """
    path = checkpoint / STATE_FILE
    try:
        values = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} cannot be read: it holds no JSON object")
    number = values.pop("format", None)
    _require_known_format(path, number)
    if number == 1:
        values.setdefault("rows_digest", "")
    _require_fields(path, values)
    return SavedState(**values)


def _require_known_format(path: Path, number: Any) -> None:
    if number is None:
        raise CheckpointError(
            f"{path} has no format: it was written by an older version (this one reads format {FORMAT})"
        )
    if not _is_count(number) or number < 1:
        raise CheckpointError(f"{path} cannot be read: format is {number!r}, not a whole number of at least 1")
    if number > FORMAT:
        raise CheckpointError(
            f"{path} was written by a newer version (format {number}; this one reads {FORMAT}): update sama-mega"
        )


def _require_fields(path: Path, values: dict[str, Any]) -> None:
    names = [field.name for field in fields(SavedState)]
    missing = [name for name in names if name not in values]
    if missing:
        raise CheckpointError(f"{path} lacks {', '.join(missing)}: it was written by an older version or cut short")
    unknown = sorted(values.keys() - set(names))
    if unknown:
        raise CheckpointError(f"{path} has {', '.join(unknown)}, which format {FORMAT} does not: it was edited")
    for name in names:
        if not _CHECKS.get(name, _is_count)(values[name]):
            raise CheckpointError(f"{path} cannot be read: {name} is {values[name]!r}")


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 0


def _is_layout(value: Any) -> bool:
    return isinstance(value, dict) and all(_is_count(degree) for degree in value.values())


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


_CHECKS: dict[str, Callable[[Any], bool]] = {"layout": _is_layout, "rows_digest": _is_text}
