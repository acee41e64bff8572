"""The SAMA DiT on megatron-core layers."""

from __future__ import annotations

from sama_kernels.dispatch import require_built
from sama_mega.config.errors import ConfigError
from sama_mega.config.schema import Recipe
from sama_mega.model.attention import AttentionHeads
from sama_mega.model.attention_choice import choose_attention
from sama_mega.model.config import transformer_config
from sama_mega.model.initialize import initialize_weights
from sama_mega.model.low_rank import add_low_rank
from sama_mega.model.sama_dit import ModelInput, ModelOutput, SamaDiT
from sama_mega.model.whole import WholeModel
from sama_mega.parallel.runtime import ParallelContext

__all__ = ["ModelInput", "ModelOutput", "SamaDiT", "WholeModel", "build_model"]


def build_model(recipe: Recipe, context: ParallelContext, *, initialize: bool = True) -> list[SamaDiT]:
    """Builds this rank's shard of the model: what `train`, `edit` and `verify` all use.

    Args:
        recipe: The whole recipe.
        context: The running layout.
        initialize: Whether to draw fresh weights, the same in every layout; False leaves memory as it is, for a
            caller that fills every parameter but low-rank changes.

    Returns:
        This rank's pipeline stages on the context's device, in order: one, or several when they are interleaved.

    Raises:
        ConfigError: The recipe asks for a kernel that is not built, or cannot run on the context's device.
    """
    check_kernels(recipe, context.device.type)
    assert sum(context.layout.stage_layers) == recipe.model.num_layers, (context.layout, recipe.model.num_layers)
    config = transformer_config(recipe, context.layout)
    choice = choose_attention(recipe, context)
    stages = [SamaDiT(recipe, config, context, context.layout.stage(index)) for index in context.stages]
    for stage in stages:
        for module in stage.modules():
            if isinstance(module, AttentionHeads):
                module.attention_choice = choice
        if recipe.lora.rank:
            add_low_rank(stage, recipe.lora, context)
        # No base model's checkpoint has low-rank changes: those always start somewhere.
        initialize_weights(stage, recipe.train.seed, low_rank_only=not initialize)
    return stages


def check_kernels(recipe: Recipe, device_type: str) -> None:
    """Refuses kernels that are not built, or that cannot run on this kind of device.

    Raises:
        ConfigError: Names the recipe's key and what there is.
    """
    try:
        require_built(recipe.kernels.ops, recipe.kernels.attention, device_type)
    except ValueError as error:
        raise ConfigError(str(error)) from None
