"""The recipe's model in megatron-core's terms."""

from __future__ import annotations

import torch
from megatron.core.transformer.transformer_config import TransformerConfig

from sama_mega.config.schema import Recipe
from sama_mega.parallel.layout import Layout

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def transformer_config(recipe: Recipe, layout: Layout) -> TransformerConfig:
    """Builds megatron's configuration for one layout.

    Dropouts are off (megatron's default is 0.1) and initialisation is ours: `initialize_weights` makes the same
    weights in every layout. Gradients are summed, not averaged, because the losses are already weighted over the
    global batch.

    Args:
        recipe: The whole recipe.
        layout: Resolved degrees.

    Returns:
        The configuration that the parallel linears, DDP and the optimizer share.
    """
    dtype = PRECISIONS[recipe.train.precision]
    return TransformerConfig(
        num_layers=recipe.model.num_layers,
        hidden_size=recipe.model.dim,
        num_attention_heads=recipe.model.num_heads,
        ffn_hidden_size=recipe.model.ffn_dim,
        tensor_model_parallel_size=layout.tensor,
        context_parallel_size=layout.context,
        pipeline_model_parallel_size=layout.pipeline,
        virtual_pipeline_model_parallel_size=layout.interleave if layout.interleave > 1 else None,
        # With two pipeline ranks both neighbours are the same rank: one batch of messages could mix them up.
        batch_p2p_comm=layout.interleave == 1,
        overlap_p2p_comm=layout.interleave > 1,
        batch_p2p_sync=False,
        sequence_parallel=layout.sequence and layout.tensor > 1,
        params_dtype=dtype,
        pipeline_dtype=dtype,
        bf16=dtype is torch.bfloat16,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        perform_initialization=False,
        use_cpu_initialization=False,
        gradient_accumulation_fusion=False,
        calculate_per_token_loss=True,
    )
