"""A run's checkpoints: what is saved of it, which are kept, and how they are taken up again in any layout."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from sama_mega.checkpoint.folder import checkpoint_name
from sama_mega.checkpoint.replace import prune_checkpoints, tidy_checkpoints
from sama_mega.checkpoint.saved_state import SavedState, read_saved_state
from sama_mega.checkpoint.write import on_first_rank, write_complete
from sama_mega.config.errors import CheckpointError
from sama_mega.config.schema import Recipe
from sama_mega.parallel.checkpoint_io import load_sharded
from sama_mega.parallel.runtime import ParallelContext
from sama_mega.parallel.sharded_state import ShardedState
from sama_mega.train.run_folder import RunFolder
from sama_mega.train.state import TrainState


def save_checkpoint(folder: RunFolder, state: TrainState, recipe: Recipe, context: ParallelContext, life: int) -> Path:
    """Writes the newest checkpoint and removes the oldest ones; every rank calls it.

    Raises:
        CheckpointError: On every rank, when any could not write or a newer life of the run has begun; earlier
            checkpoints are untouched.
    """
    final = folder.checkpoints / checkpoint_name(state.step)
    may_commit = partial(_refuse_an_older_life, folder, life)
    on_first_rank(context, lambda: _tidy(folder, life))
    saved = _describe(state, recipe, context, life)
    write_complete(final, _whole_state(state), saved, recipe, context, may_commit)
    if context.is_first_rank:
        prune_checkpoints(final, recipe.checkpoint.keep)
    return final


def load_checkpoint(checkpoint: Path, state: TrainState, context: ParallelContext) -> SavedState:
    """Restores model, optimizer, moving average and position, in place; every rank calls it.

    Raises:
        CheckpointError: It does not fit the recipe, or is damaged.
    """
    saved = read_saved_state(checkpoint)
    load_sharded(_whole_state(state), checkpoint)
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


def _whole_state(state: TrainState) -> ShardedState:
    """All tensors of a run. In a float32 model the parameters are the masters, and are saved once, as the model.

    Every data rank describes the part of the model that it updates: so each writes its share, and that part is current
    even while the others' are still on their way (`parallel.overlap_param_gather`). Loading reads the same parts, of
    bfloat16 models too, since float32 parameters among theirs are kept nowhere else.
    """
    optimizer = state.optimizer
    return {
        **optimizer.sharded_masters("model.", [owned.view_in(owned.parameter) for owned in optimizer.owned]),
        **optimizer.sharded_masters("ema.", state.average.values),
        **optimizer.sharded_state("optimizer."),
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


def _tidy(folder: RunFolder, life: int) -> None:
    _refuse_an_older_life(folder, life)
    tidy_checkpoints(folder.checkpoints)


def _refuse_an_older_life(folder: RunFolder, life: int) -> None:
    newest = folder.newest_life()
    if newest > life:
        raise CheckpointError(
            f"{folder.root}: life {newest} of this run has begun, so life {life} may not save: end this process"
        )
