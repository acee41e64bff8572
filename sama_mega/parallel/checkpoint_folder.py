"""What a checkpoint folder is called and holds besides tensors: `step-NNNNNNNN`, complete or absent."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

from sama_mega.config.errors import CheckpointError

STATE_FILE = "state.json"
RECIPE_FILE = "recipe.yaml"
_COMPLETE = re.compile(r"^step-(\d{8,})$")


@dataclass(frozen=True)
class SavedState:
    """`state.json`: everything of a run that is not a tensor.

    Attributes:
        step: Finished optimizer steps.
        samples_seen: Samples of all those steps.
        data_position: The next step's number: order, shards and noise are pure functions of it and of the seed.
        seed: The run's seed; every random draw is keyed by it, so there is no generator state to keep.
        optimizer_updates: Steps that the optimizer took (a skipped step is not one).
        average_updates: Updates of the moving average.
        layout: Degrees of the run that wrote it, for the reader; any layout can load it.
        life: Life number of the run that wrote it.
    """

    step: int
    samples_seen: int
    data_position: int
    seed: int
    optimizer_updates: int
    average_updates: int
    layout: dict[str, int]
    life: int


def checkpoint_name(step: int) -> str:
    """Folder name of one step's checkpoint."""
    return f"step-{step:08d}"


def complete_checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints in a folder, oldest first."""
    if not folder.is_dir():
        return []
    found = [(int(match.group(1)), path) for path in folder.iterdir() if (match := _COMPLETE.match(path.name))]
    return [path for _, path in sorted(found) if (path / STATE_FILE).is_file()]


def resolve_checkpoint(path: Path) -> Path:
    """Finds the checkpoint that a user means.

    Args:
        path: A checkpoint, a run folder or its `checkpoints` folder; of the last two the newest is taken.

    Raises:
        CheckpointError: There is none.
    """
    if (path / STATE_FILE).is_file():
        return path
    for folder in (path / "checkpoints", path):
        found = complete_checkpoints(folder)
        if found:
            return found[-1]
    reason = "holds no complete checkpoint" if path.is_dir() else "does not exist"
    raise CheckpointError(f"checkpoint {path} {reason}: give a step-NNNNNNNN folder or a run folder")


def read_saved_state(checkpoint: Path) -> SavedState:
    """Reads `state.json`.

    Raises:
        CheckpointError: It is missing or damaged.
    """
    try:
        return SavedState(**json.loads((checkpoint / STATE_FILE).read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise CheckpointError(f"{checkpoint / STATE_FILE} cannot be read: {error}") from error
