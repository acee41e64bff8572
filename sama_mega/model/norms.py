"""Norms, and parameters that a fused operation takes as arguments.

A parameter is always reached by calling the module that owns it, never as an attribute from outside: under
`parallel.overlap_param_gather` the call is what waits for a parameter that is still arriving.
"""

from __future__ import annotations

from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor, nn
from torch.nn.functional import layer_norm

from sama_mega.model.parallel_layers import empty_parameter, sees_own_tokens, split_over_tensor_ranks
from sama_mega.parallel.runtime import ParallelContext


class AffineLayerNorm(nn.Module):
    """Layer norm with weight and bias over this rank's tokens, statistics in float32."""

    def __init__(self, width: int, eps: float, config: TransformerConfig, context: ParallelContext) -> None:
        super().__init__()
        self.eps = eps
        self.weight = empty_parameter(width, dtype=config.params_dtype, device=context.device)
        self.bias = empty_parameter(width, dtype=config.params_dtype, device=context.device)
        sees_own_tokens(self, config)

    def forward(self, x: Tensor) -> Tensor:
        """``[s, B, width]`` -> the same shape in the weight's dtype."""
        normed = layer_norm(x.float(), (x.shape[-1],), self.weight.float(), self.bias.float(), self.eps)
        return normed.to(self.weight.dtype)


class FullWidthNormWeight(nn.Module):
    """This rank's slice of an RMSNorm weight that spans all heads; calling it gives the weight."""

    def __init__(self, local_width: int, config: TransformerConfig, context: ParallelContext) -> None:
        super().__init__()
        self.weight = empty_parameter(local_width, dtype=config.params_dtype, device=context.device)
        split_over_tensor_ranks(self.weight, 0)

    def forward(self) -> Tensor:
        """The weight, ``[local width]``."""
        return self.weight


class WeightAndBias(nn.Module):
    """Weight and bias of a norm or linear inside a fused operation, whole on every rank; calling it gives both."""

    def __init__(self, *shape: int, config: TransformerConfig, context: ParallelContext) -> None:
        super().__init__()
        self.weight = empty_parameter(*shape, dtype=config.params_dtype, device=context.device)
        self.bias = empty_parameter(shape[0], dtype=config.params_dtype, device=context.device)
        sees_own_tokens(self, config)

    def forward(self) -> tuple[Tensor, Tensor]:
        """``[*shape]`` and ``[shape[0]]``."""
        return self.weight, self.bias


class SegmentEmbedding(nn.Module):
    """The learned type embedding: one row each for source, semantic and target tokens; calling it gives the rows."""

    def __init__(self, dim: int, config: TransformerConfig, context: ParallelContext) -> None:
        super().__init__()
        self.weight = empty_parameter(3, dim, dtype=config.params_dtype, device=context.device)
        sees_own_tokens(self, config)

    def forward(self) -> Tensor:
        """``[3, dim]``."""
        return self.weight
