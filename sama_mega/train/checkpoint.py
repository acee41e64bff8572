"""What is saved of a run, and how it is taken up again in any layout."""

from __future__ import annotations

from pathlib import Path

from sama_mega.checkpoint.saved_state import SavedState, read_saved_state
from sama_mega.config.schema import Recipe
from sama_mega.model.low_rank import LOW_RANK
from sama_mega.parallel.checkpoint_io import load_sharded
from sama_mega.parallel.checkpoint_stream import CheckpointReader
from sama_mega.parallel.runtime import ParallelContext
from sama_mega.parallel.sharded_state import ShardedState, shard_parameters
from sama_mega.train.state import TrainState


def whole_state(state: TrainState) -> ShardedState:
    """All tensors of a run. In a float32 model the parameters are the masters, and are saved once, as the model.

    Every data rank describes the part of the model that it updates: so each writes its share, and that part is current
    even while the others' are still on their way (`parallel.overlap_param_gather`). Loading reads the same parts, of
    bfloat16 models too, since float32 parameters among theirs are kept nowhere else. Frozen parameters are part of both
    the model and its average, so that a checkpoint is whole.
    """
    optimizer = state.optimizer
    return {
        **model_weights(state),
        **_frozen(state, "ema."),
        **optimizer.sharded_masters("ema.", state.average.values),
        **optimizer.sharded_state("optimizer."),
    }


def model_weights(state: TrainState) -> ShardedState:
    """The model as `whole_state` has it, and nothing else: enough to start from."""
    owned = state.optimizer.owned
    parameters = [one.view_in(one.parameter) for one in owned]
    return {**_frozen(state, "model."), **state.optimizer.sharded_masters("model.", parameters)}


def describe_position(state: TrainState, recipe: Recipe, context: ParallelContext, life: int) -> SavedState:
    """What a checkpoint of this moment says beside its tensors; `life` is the present life's number."""
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
        rows_digest=state.rows_digest,
    )


def load_checkpoint(checkpoint: Path, state: TrainState) -> SavedState:
    """Restores model, optimizer, moving average and position, in place; every rank calls it.

    Raises:
        CheckpointError: It does not fit the recipe, or is damaged.
    """
    saved = read_saved_state(checkpoint)
    load_sharded(whole_state(state), checkpoint)
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
    pieces = _frozen(state, f"{weights}.")
    # Low-rank changes start afresh on a model that has none.
    if not pieces or any(LOW_RANK in key for key in CheckpointReader(checkpoint).shapes):
        pieces |= state.optimizer.sharded_masters(f"{weights}.")
    load_sharded(pieces, checkpoint)
    state.optimizer.masters_to_model()
    state.average.restart()


def _frozen(state: TrainState, prefix: str) -> ShardedState:
    """What low-rank training leaves alone; nothing where everything is trained."""
    pieces: ShardedState = {}
    for stage in state.stages:
        pieces |= shard_parameters(stage, stage.module.context, prefix, trainable=False)
    return pieces
