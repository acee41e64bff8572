"""Writes a whole checkpoint folder, complete or absent, from any tensors; knows no run.

Every rank writes its own pieces into a hidden folder and flushes them to the disk; rank 0 adds and flushes the small
files and renames the folder when all of it is there.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import torch.distributed as dist

from sama_mega.checkpoint.folder import RECIPE_FILE
from sama_mega.checkpoint.replace import flush_to_disk, put_in_place, settle, unfinished_path
from sama_mega.checkpoint.saved_state import SavedState, write_saved_state
from sama_mega.config import recipe_to_yaml
from sama_mega.config.errors import CheckpointError
from sama_mega.config.schema import Recipe
from sama_mega.parallel.checkpoint_io import SHARD_SUFFIX, save_sharded
from sama_mega.parallel.checkpoint_stream import CheckpointWriter
from sama_mega.parallel.collectives import broadcast_object
from sama_mega.parallel.runtime import ParallelContext
from sama_mega.parallel.sharded_state import ShardedState


def write_complete(
    folder: Path,
    pieces: ShardedState,
    saved: SavedState,
    recipe: Recipe,
    context: ParallelContext,
    may_commit: Callable[[], None] | None = None,
    group: dist.ProcessGroup | None = None,
) -> None:
    """Writes a checkpoint; every rank calls it with its own pieces.

    Args:
        folder: Its name when it is complete; what is there before is replaced.
        pieces: This rank's tensors.
        saved: For `state.json`; rank 0's is written.
        recipe: For `recipe.yaml`.
        context: The running layout.
        may_commit: Called on rank 0 before anything is written and again before the folder gets its name; raises
            CheckpointError when this process may not write (any more). None: it always may.
        group: All ranks; the only group that is used, so a thread of its own may write with a group of its own. None:
            the context's, in the main thread.

    Raises:
        CheckpointError: On every rank, when any could not write or `may_commit` refused; what is there is untouched.
    """
    may_commit = may_commit or _always
    group = group or context.world_group
    unfinished = unfinished_path(folder, saved.life)
    on_first_rank(group, lambda: _prepare(unfinished, folder, may_commit))
    try:
        save_sharded(pieces, unfinished, group)
        on_first_rank(group, lambda: _complete(unfinished, folder, saved, recipe, may_commit))
    except CheckpointError:
        if context.is_first_rank:
            shutil.rmtree(unfinished, ignore_errors=True)
        raise


def write_streamed(folder: Path, fill: Callable[[CheckpointWriter], None], saved: SavedState, recipe: Recipe) -> None:
    """Writes a checkpoint tensor by tensor, in one process without process groups.

    Args:
        folder: Its name when it is complete; must not exist.
        fill: Adds every tensor.
        saved: For `state.json`.
        recipe: For `recipe.yaml`.

    Raises:
        CheckpointError: The disk refuses. After this, and after anything that `fill` raises, nothing is left.
    """
    unfinished = unfinished_path(folder, saved.life)
    try:
        _prepare(unfinished, folder, _always)
        with CheckpointWriter(unfinished) as writer:
            fill(writer)
            writer.finish()
        _complete(unfinished, folder, saved, recipe, _always)
    except OSError as error:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise CheckpointError(f"{folder} cannot be written: {error}: free the disk or choose another folder") from error
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise


def on_first_rank(group: dist.ProcessGroup, work: Callable[[], None]) -> None:
    """Runs work on a group's first rank and raises its failure on every rank, so that none waits for another.

    Raises:
        CheckpointError: On every rank; any other failure becomes one.
    """
    problem = None
    if group.rank() == 0:
        try:
            work()
        except CheckpointError as error:
            problem = str(error)
        except OSError as error:
            problem = f"the checkpoint cannot be written: {error}: free the disk or choose another folder"
        except Exception as error:
            problem = f"the checkpoint cannot be written: {error!r}"
    problem = broadcast_object(problem, group)
    if problem is not None:
        raise CheckpointError(problem)


def _prepare(unfinished: Path, folder: Path, may_commit: Callable[[], None]) -> None:
    may_commit()
    settle(folder)
    if unfinished.exists():
        shutil.rmtree(unfinished)
    unfinished.mkdir(parents=True)


def _complete(
    unfinished: Path, folder: Path, saved: SavedState, recipe: Recipe, may_commit: Callable[[], None]
) -> None:
    (unfinished / RECIPE_FILE).write_text(recipe_to_yaml(recipe))
    write_saved_state(unfinished, saved)
    for path in unfinished.iterdir():
        # Each shard was flushed by the rank that wrote it: from here another host's cache is out of reach.
        if path.suffix != SHARD_SUFFIX:
            flush_to_disk(path)
    flush_to_disk(unfinished)
    may_commit()
    put_in_place(unfinished, folder)


def _always() -> None:
    """The fence of a writer without a rival."""
