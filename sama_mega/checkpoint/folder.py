"""What a checkpoint folder is called and how it is found: `step-NNNNNNNN`, complete or absent."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from pathlib import Path

from sama_mega.checkpoint.saved_state import STATE_FILE, read_saved_state
from sama_mega.config.errors import CheckpointError

RECIPE_FILE = "recipe.yaml"
_COMPLETE = re.compile(r"^step-(\d{8,})$")


def checkpoint_name(step: int) -> str:
    """Folder name of one step's checkpoint."""
    return f"step-{step:08d}"


def checkpoint_step(path: Path) -> int | None:
    """The step that a folder's name says, or None when it is not a checkpoint's name."""
    match = _COMPLETE.match(path.name)
    return int(match.group(1)) if match else None


def complete_checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints in a folder, oldest first.

    Raises:
        CheckpointError: The folder may not be read.
    """
    try:
        if not folder.is_dir():
            return []
        found = [(step, path) for path in folder.iterdir() if (step := checkpoint_step(path)) is not None]
        return [path for _, path in sorted(found) if (path / STATE_FILE).is_file()]
    except OSError as error:
        raise CheckpointError(f"{folder} cannot be read: {error.strerror}") from error


def resolve_checkpoint(path: Path) -> Path:
    """Finds the checkpoint that a user means.

    Args:
        path: A checkpoint, a run folder or its `checkpoints` folder; of the last two the newest is taken.

    Raises:
        CheckpointError: There is none, or it is of a format that this version does not read.
    """
    try:
        found = _find_newest(path)
    except OSError as error:
        raise CheckpointError(f"checkpoint {path} cannot be read: {error.strerror}") from error
    if found is None:
        reason = "holds no complete checkpoint" if path.is_dir() else "does not exist"
        raise CheckpointError(f"checkpoint {path} {reason}: give a step-NNNNNNNN folder or a run folder")
    read_saved_state(found)
    return found


def written_at(checkpoint: Path) -> str:
    """Returns when a complete checkpoint was written, to the second: tells it from a later one of the same name."""
    seconds = int((checkpoint / STATE_FILE).stat().st_mtime)
    return datetime.fromtimestamp(seconds, UTC).isoformat()


def _find_newest(path: Path) -> Path | None:
    if (path / STATE_FILE).is_file():
        return path
    for folder in (path / "checkpoints", path):
        if found := complete_checkpoints(folder):
            return found[-1]
    return None
