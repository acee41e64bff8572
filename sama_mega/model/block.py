"""One transformer block: modulated self-attention, text cross-attention, modulated feed-forward."""

from __future__ import annotations

import torch
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor, nn
from torch.nn.functional import gelu

from sama_kernels.adaln import adaln
from sama_kernels.gate_residual import gate_residual, gate_residual_norm, residual_adaln
from sama_kernels.qk_norm_rope import RopeTables
from sama_mega.config.schema import Recipe
from sama_mega.model.attention import CrossAttention, SelfAttention
from sama_mega.model.norms import WeightAndBias
from sama_mega.model.parallel_layers import ColumnLinear, RowLinear, empty_parameter, sees_own_tokens
from sama_mega.model.recompute import Activations
from sama_mega.parallel.runtime import ParallelContext


class FeedForward(nn.Module):
    """Linear, GELU (tanh), Linear, split over the tensor-parallel ranks along the hidden features."""

    def __init__(self, recipe: Recipe, config: TransformerConfig, context: ParallelContext) -> None:
        super().__init__()
        self.linear_in = ColumnLinear(recipe.model.dim, recipe.model.ffn_dim, config, context)
        self.linear_out = RowLinear(recipe.model.ffn_dim, recipe.model.dim, config, context)

    def forward(self, x: Tensor, activations: Activations) -> Tensor:
        """``[s, B, dim]`` -> ``[s, B, dim]``."""
        hidden = self.linear_in(x, activations.keep("ffn_input"))
        return self.linear_out(gelu(hidden, approximate="tanh"), activations.keep("ffn_output"))


class SamaBlock(nn.Module):
    """One block of the DiT.

    Args:
        recipe: The whole recipe.
        config: megatron's configuration.
        context: The running layout.

    Source: Wan2.1's ``WanAttentionBlock``; Cynthiazxy123/SAMA@5c6bb5b.
    """

    def __init__(self, recipe: Recipe, config: TransformerConfig, context: ParallelContext) -> None:
        super().__init__()
        dim = recipe.model.dim
        self.eps = recipe.model.norm_eps
        self.ops = recipe.kernels.ops
        self.modulation = empty_parameter(1, 6, dim, dtype=torch.float32, device=context.device)
        sees_own_tokens(self, config)
        self.self_attn = SelfAttention(recipe, config, context)
        self.norm3 = WeightAndBias(dim, config=config, context=context)
        self.cross_attn = CrossAttention(recipe, config, context)
        self.ffn = FeedForward(recipe, config, context)

    def forward(
        self,
        x: Tensor,
        time_modulation: Tensor,
        text: Tensor,
        rope: RopeTables,
        num_tokens: int,
        activations: Activations,
    ) -> Tensor:
        """Runs the block on this rank's tokens.

        Args:
            x: ``[s, B, dim]`` residual stream.
            time_modulation: ``[B, 6, dim]`` float32, ``time_projection(t)``.
            text: ``[L, B, dim]`` embedded text, whole on every rank.
            rope: Rotary tables of the whole sequence.
            num_tokens: Real tokens of the whole sequence.
            activations: What this pass keeps, or finds kept.

        Returns:
            ``[s, B, dim]``.
        """
        modulation = self.modulation + time_modulation
        shift_attention, scale_attention, gate_attention, shift_ffn, scale_ffn, gate_ffn = modulation.unbind(1)
        attention_input = adaln(x, shift_attention, scale_attention, eps=self.eps, backend=self.ops)
        attended = self.self_attn(attention_input, rope, num_tokens, activations)
        # Each residual sum writes the next branch's input in the same pass.
        x, query_input = gate_residual_norm(x, attended, gate_attention, *self.norm3(), eps=self.eps, backend=self.ops)
        described = self.cross_attn(query_input, text, activations)
        x, ffn_input = residual_adaln(x, described, shift_ffn, scale_ffn, eps=self.eps, backend=self.ops)
        return gate_residual(x, self.ffn(ffn_input, activations), gate_ffn, backend=self.ops)
