"""Opens a checkpoint for editing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from sama_mega.checkpoint.encoder_paths import find_encoder_weights
from sama_mega.checkpoint.folder import RECIPE_FILE, resolve_checkpoint
from sama_mega.config import load_recipe
from sama_mega.config.schema import Recipe
from sama_mega.diffusion.sampler import predict_in_turn
from sama_mega.encoders import Encoders, Tiling, build_encoders
from sama_mega.inference.editor import Editor
from sama_mega.inference.guidance_ranks import PassesOverRanks
from sama_mega.model import WholeModel, build_model
from sama_mega.parallel.checkpoint_io import load_sharded
from sama_mega.parallel.collectives import broadcast_object
from sama_mega.parallel.runtime import ParallelContext, start_parallel, stop_parallel
from sama_mega.parallel.sharded_state import ShardedState, shard_parameters
from sama_mega.parallel.torch_settings import apply_torch_settings


@dataclass(frozen=True)
class OpenCheckpoint:
    """A checkpoint in memory.

    Attributes:
        path: The checkpoint's folder.
        recipe: Its recipe, laid out for the ranks that opened it.
        encoders: Its encoders.
        editor: Ready to edit.
        context: The running layout.
    """

    path: Path
    recipe: Recipe
    encoders: Encoders
    editor: Editor
    context: ParallelContext


@contextmanager
def open_checkpoint(
    path: Path,
    weights: str,
    num_ranks: int = 1,
    *,
    tensor: int | None = None,
    context: int = 1,
    tiling: Tiling = "off",
) -> Iterator[OpenCheckpoint]:
    """Loads a checkpoint's model on the ranks that are there.

    Ranks beyond tensor x context are data ranks: they share the passes of guided steps.

    Args:
        path: A checkpoint or a run folder, whose newest is taken: that which rank 0 finds.
        weights: ``ema`` or ``model``.
        num_ranks: Ranks that call this together.
        tensor: Ranks that share the weights; None takes all that `context` leaves.
        context: Ranks that share the tokens.
        tiling: Whether the Wan VAE works in tiles.

    Raises:
        CheckpointError: There is no complete checkpoint, or it is damaged.
        ConfigError: Its model cannot be split over so many ranks, or the weights of an encoder are missing.
    """
    found = resolve_checkpoint(path)
    layout = [
        f"parallel.tensor={max(1, num_ranks // context) if tensor is None else tensor}",
        f"parallel.context={context}",
        "parallel.pipeline=1",
        "parallel.interleave=1",
        "parallel.stage_layers=null",
        "parallel.ulysses=auto",
        "parallel.data=auto",
    ]
    recipe = _load_recipe(found, layout)
    apply_torch_settings(recipe)
    ranks = start_parallel(recipe)
    try:
        # A run that still trains may have saved between two ranks' looks.
        checkpoint = broadcast_object(found, ranks.world_group)
        if checkpoint != found:
            recipe = _load_recipe(checkpoint, layout)
        stages = build_model(recipe, ranks, initialize=False)
        pieces: ShardedState = {}
        for stage in stages:
            pieces |= shard_parameters(stage.eval(), ranks, prefix=f"{weights}.")
        load_sharded(pieces, checkpoint)
        encoders = build_encoders(recipe, ranks.device, tiling)
        predict_all = PassesOverRanks(ranks.data_group) if ranks.layout.data > 1 else predict_in_turn
        editor = Editor(recipe, WholeModel(stages), encoders, ranks.device, predict_all)
        yield OpenCheckpoint(checkpoint, recipe, encoders, editor, ranks)
    finally:
        stop_parallel()


def _load_recipe(checkpoint: Path, layout: list[str]) -> Recipe:
    return find_encoder_weights(load_recipe(checkpoint / RECIPE_FILE, layout), checkpoint)
