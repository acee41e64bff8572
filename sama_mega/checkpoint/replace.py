"""Puts finished folders in place and takes old ones away, so that a kill at any moment leaves whole ones only.

A folder changes its visible name by one rename. Everything else goes by hidden names beside it: `.saving-*` is being
written, `.old-*` is whole and stands aside until its successor is in place, `.deleting-*` is being deleted.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
from pathlib import Path

from sama_mega.checkpoint.folder import checkpoint_step, complete_checkpoints

_HIDDEN = re.compile(r"^\.(saving|old|deleting)-(step-\d{8,})(-life\d+)?$")
_log = logging.getLogger(__name__)


def unfinished_path(folder: Path, life: int) -> Path:
    """Hidden name of a folder while one life of a run writes it."""
    return folder.with_name(f".saving-{folder.name}-life{life}")


def put_in_place(unfinished: Path, final: Path) -> None:
    """Gives a finished folder its visible name, replacing what has it now; durable once this returns.

    Raises:
        OSError: It could not be renamed; what had the name still has it.
    """
    settle(final)
    aside = _aside(final)
    replaces = final.exists()
    if replaces:
        os.replace(final, aside)
    try:
        os.replace(unfinished, final)
    except OSError:
        if replaces:
            os.replace(aside, final)
        raise
    flush_to_disk(final.parent)
    if replaces:
        discard(aside)


def settle(final: Path) -> None:
    """Ends a replacement that was interrupted: the old folder is put back, or deleted if its successor is there."""
    aside = _aside(final)
    if not aside.exists():
        return
    if final.exists():
        discard(aside)
    else:
        os.replace(aside, final)
        flush_to_disk(final.parent)


def discard(path: Path) -> None:
    """Deletes a folder under a hidden name; what cannot be deleted is left there and said."""
    doomed = path.with_name(f".deleting-{path.name.removeprefix('.old-')}")
    try:
        if doomed.exists():
            shutil.rmtree(doomed)
        os.replace(path, doomed)
        shutil.rmtree(doomed)
    except OSError as error:
        _log.warning("%s could not be deleted: %s", path, error)


def put_back_interrupted(folder: Path) -> None:
    """Gives a run's checkpoints their names back that a kill left set aside; call before looking for the newest.

    For one rank only; renames nothing else and deletes nothing that is the only one of its step.

    Raises:
        OSError: A checkpoint could not be renamed.
    """
    for match in _hidden_names(folder):
        if match.group(1) == "old":
            settle(folder / match.group(2))


def tidy_checkpoints(folder: Path, life: int) -> None:
    """Ends what killed saves of a run left behind: `put_back_interrupted`, then deletes everything hidden.

    For one rank only, and not while it saves. What a newer life has begun to write stays: between being asked whether
    it is the newest and this call, a life may have ceased to be.

    Args:
        folder: The run's checkpoints.
        life: This life's number.

    Raises:
        OSError: A checkpoint could not be put back.
    """
    put_back_interrupted(folder)
    for match in _hidden_names(folder):
        if int((match.group(3) or "-life0").removeprefix("-life")) <= life:
            _delete_leftover(folder / match.group())


def prune_checkpoints(newest: Path, keep: int) -> None:
    """Deletes a run's oldest checkpoints; for one rank only.

    Args:
        newest: The checkpoint just written. It is kept, and so is every one of a later step.
        keep: So many are kept of `newest` and those before it; at least 1.
    """
    step = checkpoint_step(newest)
    assert step is not None and keep >= 1, (newest, keep)
    before = [path for path in complete_checkpoints(newest.parent) if (checkpoint_step(path) or 0) < step]
    for old in before[: max(0, len(before) - (keep - 1))]:
        discard(old)


def flush_to_disk(path: Path) -> None:
    """Waits until a file's content, or a folder's list of names, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _hidden_names(folder: Path) -> list[re.Match[str]]:
    names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    return [match for name in names if (match := _HIDDEN.match(name))]


def _aside(final: Path) -> Path:
    return final.with_name(f".old-{final.name}")


def _delete_leftover(path: Path) -> None:
    try:
        shutil.rmtree(path)
    except OSError as error:
        _log.warning("%s is left of a save that was killed and could not be deleted: %s", path, error)
