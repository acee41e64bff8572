"""Checkpoints: a folder `step-NNNNNNNN` that is complete or absent.

A checkpoint is written under a hidden name and renamed when it is whole, so that a kill or a full disk leaves the
one before untouched. It loads in another layout.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from sama_mega.config import recipe_to_yaml
from sama_mega.config.errors import CheckpointError
from sama_mega.config.schema import Recipe
from sama_mega.parallel.checkpoint_folder import (
    RECIPE_FILE,
    STATE_FILE,
    SavedState,
    checkpoint_name,
    complete_checkpoints,
    read_saved_state,
)
from sama_mega.parallel.checkpoint_io import load_sharded, save_sharded
from sama_mega.parallel.collectives import broadcast_object
from sama_mega.parallel.runtime import ParallelContext
from sama_mega.parallel.sharded_state import ShardedState, shard_parameters
from sama_mega.train.run_folder import RunFolder
from sama_mega.train.state import TrainState

_UNFINISHED_PREFIX = ".saving-"


def save_checkpoint(folder: RunFolder, state: TrainState, recipe: Recipe, context: ParallelContext, life: int) -> Path:
    """Writes the newest checkpoint and removes the oldest ones; every rank calls it.

    Raises:
        CheckpointError: On every rank, when any could not write or a newer life of the run has begun; earlier
            checkpoints are untouched.
    """
    final = folder.checkpoints / checkpoint_name(state.step)
    unfinished = folder.checkpoints / f"{_UNFINISHED_PREFIX}{final.name}-life{life}"
    _on_first_rank(context, lambda: _prepare(folder, unfinished, life))
    try:
        save_sharded(_whole_state(state, context), unfinished)
        _on_first_rank(
            context,
            lambda: _complete(folder, unfinished, final, _describe(state, recipe, context, life), recipe),
        )
    except CheckpointError:
        if context.is_first_rank:
            shutil.rmtree(unfinished, ignore_errors=True)
        raise
    if context.is_first_rank:
        for old in complete_checkpoints(folder.checkpoints)[: -recipe.checkpoint.keep]:
            shutil.rmtree(old, ignore_errors=True)
    return final


def load_checkpoint(checkpoint: Path, state: TrainState, context: ParallelContext) -> SavedState:
    """Restores model, optimizer, moving average and position, in place; every rank calls it.

    Raises:
        CheckpointError: It does not fit the recipe, or is damaged.
    """
    saved = read_saved_state(checkpoint)
    load_sharded(_whole_state(state, context), checkpoint)
    state.optimizer.finish_loading(saved.optimizer_updates)
    state.average.num_updates = saved.average_updates
    state.step = saved.step
    state.samples_seen = saved.samples_seen
    return saved


def load_initial_weights(checkpoint: Path, weights: str, state: TrainState) -> None:
    """Starts a run from another run's weights; optimizer, average and position stay fresh.

    Args:
        checkpoint: A complete checkpoint.
        weights: ``ema`` or ``model``.
        state: Mutated.

    Raises:
        CheckpointError: It does not fit the recipe, or is damaged.
    """
    load_sharded(state.optimizer.sharded_masters(f"{weights}."), checkpoint)
    state.optimizer.masters_to_model()
    state.average.restart()


def _whole_state(state: TrainState, context: ParallelContext) -> ShardedState:
    """All tensors of a run. In a float32 model the parameters are the masters, and are saved once, as the model."""
    return {
        **shard_parameters(state.model.module, context, prefix="model."),
        **state.optimizer.sharded_masters("ema.", state.average.values),
        **state.optimizer.sharded_state("optimizer."),
    }


def _describe(state: TrainState, recipe: Recipe, context: ParallelContext, life: int) -> SavedState:
    layout = {name: getattr(context.layout, name) for name in ("tensor", "context", "pipeline", "data")}
    return SavedState(
        step=state.step,
        samples_seen=state.samples_seen,
        data_position=state.step,
        seed=recipe.train.seed,
        optimizer_updates=state.optimizer.steps_taken,
        average_updates=state.average.num_updates,
        layout=layout,
        life=life,
    )


def _prepare(folder: RunFolder, unfinished: Path, life: int) -> None:
    _refuse_an_older_life(folder, life)
    for leftover in folder.checkpoints.glob(f"{_UNFINISHED_PREFIX}*"):
        shutil.rmtree(leftover, ignore_errors=True)
    unfinished.mkdir(parents=True)


def _complete(folder: RunFolder, unfinished: Path, final: Path, saved: SavedState, recipe: Recipe) -> None:
    (unfinished / RECIPE_FILE).write_text(recipe_to_yaml(recipe))
    (unfinished / STATE_FILE).write_text(json.dumps(asdict(saved), indent=2) + "\n")
    for path in unfinished.iterdir():
        _flush_to_disk(path)
    _flush_to_disk(unfinished)
    _refuse_an_older_life(folder, saved.life)
    if final.exists():
        shutil.rmtree(final)
    os.replace(unfinished, final)
    _flush_to_disk(final.parent)


def _refuse_an_older_life(folder: RunFolder, life: int) -> None:
    newest = folder.newest_life()
    if newest > life:
        raise CheckpointError(
            f"{folder.root}: life {newest} of this run has begun, so life {life} may not save: end this process"
        )


def _flush_to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _on_first_rank(context: ParallelContext, work: Callable[[], None]) -> None:
    """Runs work on rank 0 and raises its failure on every rank, so that none waits for another."""
    problem = None
    if context.is_first_rank:
        try:
            work()
        except CheckpointError as error:
            problem = str(error)
        except OSError as error:
            problem = f"the checkpoint cannot be written: {error}: free the disk or change train.run_folder"
    problem = broadcast_object(problem, context.world_group)
    if problem is not None:
        raise CheckpointError(problem)
