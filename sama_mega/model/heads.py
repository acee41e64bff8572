"""The two outputs: the latents' velocity and the semantic features' velocity."""

from __future__ import annotations

import torch
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor, nn

from sama_kernels.adaln import adaln
from sama_kernels.semantic_loss import semantic_head, semantic_loss
from sama_mega.config.schema import Recipe
from sama_mega.model.norms import WeightAndBias
from sama_mega.model.parallel_layers import Linear, empty_parameter, sees_own_tokens
from sama_mega.parallel.runtime import ParallelContext


class VelocityHead(nn.Module):
    """Modulated layer norm and a linear to patches, on this rank's tokens."""

    def __init__(self, recipe: Recipe, config: TransformerConfig, context: ParallelContext) -> None:
        super().__init__()
        model = recipe.model
        patch_t, patch_h, patch_w = model.patch_size
        self.eps, self.ops = model.norm_eps, recipe.kernels.ops
        self.modulation = empty_parameter(1, 2, model.dim, dtype=torch.float32, device=context.device)
        num_outputs = model.out_channels * patch_t * patch_h * patch_w
        self.head = Linear(model.dim, num_outputs, dtype=config.params_dtype, device=context.device)
        sees_own_tokens(self, config)

    def forward(self, hidden: Tensor, time: Tensor) -> Tensor:
        """``[s, B, dim]`` and time ``[B, dim]`` -> ``[s, B, P]``, features ordered (pt, ph, pw, c)."""
        shift, scale = (self.modulation + time[:, None]).unbind(1)
        return self.head(adaln(hidden, shift, scale, eps=self.eps, backend=self.ops))


class SemanticHead(nn.Module):
    """Layer norm and projection to semantic features, on this rank's semantic positions."""

    def __init__(self, recipe: Recipe, config: TransformerConfig, context: ParallelContext) -> None:
        super().__init__()
        model = recipe.model
        self.eps, self.ops = model.norm_eps, recipe.kernels.ops
        self.norm = WeightAndBias(model.dim, config=config, context=context)
        self.proj = WeightAndBias(model.semantic_dim, model.dim, config=config, context=context)

    def forward(self, hidden: Tensor, target: Tensor | None = None) -> Tensor:
        """Predicts, or measures the prediction's error.

        Args:
            hidden: ``[m, B, dim]``.
            target: ``[m, B, semantic_dim]`` or None.

        Returns:
            The predicted velocity ``[m, B, semantic_dim]``, or with a target the sums of absolute errors ``[B]``,
            float32.
        """
        weights = (*self.norm(), *self.proj())
        if target is None:
            return semantic_head(hidden, *weights, eps=self.eps, backend=self.ops)
        return semantic_loss(hidden, target, *weights, eps=self.eps, backend=self.ops)
