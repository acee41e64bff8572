"""The SAMA DiT on megatron-core layers."""

from __future__ import annotations

from sama_mega.config.schema import Recipe
from sama_mega.model.config import transformer_config
from sama_mega.model.initialize import initialize_weights
from sama_mega.model.sama_dit import ModelOutput, SamaDiT
from sama_mega.parallel.runtime import ParallelContext

__all__ = ["ModelOutput", "SamaDiT", "build_model"]


def build_model(recipe: Recipe, context: ParallelContext) -> SamaDiT:
    """Builds this rank's shard of the model with fresh weights: what `train`, `edit` and `verify` all use.

    Args:
        recipe: The whole recipe.
        context: The running layout.

    Returns:
        The model on the context's device; the same weights in every layout.
    """
    model = SamaDiT(recipe, transformer_config(recipe, context.layout), context)
    initialize_weights(model, recipe.train.seed)
    return model
