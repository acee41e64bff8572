"""From latents, text, timesteps and semantic features to the block's inputs.

Shape legend: B batch, C channels, T H W latent frames and size, N tokens of a segment, P features of a patch.
"""

from __future__ import annotations

from typing import Any

import torch
from megatron.core.tensor_parallel.mappings import (
    all_gather_last_dim_from_tensor_parallel_region,
    gather_from_tensor_model_parallel_region,
)
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor, nn
from torch.nn.functional import gelu, linear, silu

from sama_mega.config.schema import Recipe
from sama_mega.model.norms import AffineLayerNorm
from sama_mega.model.parallel_layers import (
    ColumnLinear,
    Linear,
    empty_parameter,
    sees_own_tokens,
    sum_gradient_over_tensor_ranks,
)
from sama_mega.parallel.runtime import ParallelContext
from sama_mega.parallel.token_layout import Grid


def patch_grid(latents: Tensor, patch_size: Grid) -> Grid:
    """Patch grid (t, h, w) of latents ``[B, C, T, H, W]``."""
    frames, height, width = (size // patch for size, patch in zip(latents.shape[2:], patch_size, strict=True))
    return frames, height, width


def patchify(latents: Tensor, patch_size: Grid) -> Tensor:
    """``[B, C, T, H, W]`` -> ``[N, B, P]``, a patch's features ordered (c, pt, ph, pw)."""
    batch, channels = latents.shape[:2]
    (t, h, w), (pt, ph, pw) = patch_grid(latents, patch_size), patch_size
    cut = latents.reshape(batch, channels, t, pt, h, ph, w, pw)
    return cut.permute(2, 4, 6, 0, 1, 3, 5, 7).reshape(t * h * w, batch, channels * pt * ph * pw)


def unpatchify(patches: Tensor, grid: Grid, patch_size: Grid) -> Tensor:
    """``[N, B, P]`` with a patch's features ordered (pt, ph, pw, c) -> ``[B, C, T, H, W]``."""
    (t, h, w), (pt, ph, pw) = grid, patch_size
    batch = patches.shape[1]
    cut = patches.reshape(t, h, w, batch, pt, ph, pw, -1)
    return cut.permute(3, 7, 0, 4, 1, 5, 2, 6).reshape(batch, -1, t * pt, h * ph, w * pw)


class PatchEmbedding(nn.Module):
    """Linear over patches; the weight keeps the released convolution's shape ``[dim, C, pt, ph, pw]``."""

    def __init__(self, recipe: Recipe, config: TransformerConfig, context: ParallelContext) -> None:
        super().__init__()
        model = recipe.model
        shape = (model.dim, model.in_channels, *model.patch_size)
        self.weight = empty_parameter(*shape, dtype=config.params_dtype, device=context.device)
        self.bias = empty_parameter(model.dim, dtype=config.params_dtype, device=context.device)
        sees_own_tokens(self, config)

    def forward(self, patches: Tensor) -> Tensor:
        """``[n, B, P]`` -> ``[n, B, dim]``."""
        return linear(patches.to(self.weight.dtype), self.weight.flatten(1), self.bias)


class SemanticFeatureMLP(nn.Module):
    """Layer norm, Linear, GELU (erf), Linear from semantic features to the model's width.

    Source: ``SigLIPFeatMLP`` in Cynthiazxy123/SAMA@5c6bb5b.
    """

    def __init__(self, recipe: Recipe, config: TransformerConfig, context: ParallelContext) -> None:
        super().__init__()
        model = recipe.model
        options: dict[str, Any] = {"dtype": config.params_dtype, "device": context.device}
        self.norm = AffineLayerNorm(model.semantic_dim, model.norm_eps, config, context)
        self.fc1 = Linear(model.semantic_dim, model.semantic_hidden_dim, **options)
        self.fc2 = Linear(model.semantic_hidden_dim, model.dim, **options)
        sees_own_tokens(self, config)

    def forward(self, features: Tensor) -> Tensor:
        """``[n, B, semantic_dim]`` float32 -> ``[n, B, dim]``."""
        return self.fc2(gelu(self.fc1(self.norm(features))))


class TextEmbedding(nn.Module):
    """Linear, GELU (tanh), Linear; whole on every rank, and so is its gradient."""

    def __init__(self, recipe: Recipe, config: TransformerConfig, context: ParallelContext) -> None:
        super().__init__()
        options: dict[str, Any] = {"dtype": config.params_dtype, "device": context.device}
        self.linear_in = Linear(recipe.model.text_dim, recipe.model.dim, **options)
        self.linear_out = Linear(recipe.model.dim, recipe.model.dim, **options)

    def forward(self, text: Tensor) -> Tensor:
        """``[B, L, text_dim]`` -> ``[L, B, dim]``."""
        text = text.transpose(0, 1).to(self.linear_in.weight.dtype)
        return self.linear_out(gelu(self.linear_in(text), approximate="tanh"))


class TimeEmbedding(nn.Module):
    """Timestep to the shared time vector and to the blocks' modulation, in float32 throughout.

    The projection's weight is large (157 million numbers at 14B) and its output small: the tensor ranks split the one
    and gather the other.
    """

    def __init__(self, recipe: Recipe, config: TransformerConfig, context: ParallelContext) -> None:
        super().__init__()
        dim = recipe.model.dim
        options: dict[str, Any] = {"dtype": torch.float32, "device": context.device}
        self.num_features = recipe.model.time_features
        self.linear_in = Linear(self.num_features, dim, **options)
        self.linear_out = Linear(dim, dim, **options)
        self.projection = ColumnLinear(dim, 6 * dim, config, context, gather_sequence=False, dtype=torch.float32)
        self._context = context
        # Not tokens' modules, but their gradients come from the modulation of this rank's tokens.
        for module in (self.linear_in, self.linear_out):
            sees_own_tokens(module, config)

    def forward(self, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        """``[B]`` in 0..1000 -> the time vector ``[B, dim]`` and the modulation ``[B, 6, dim]``, float32."""
        features = sinusoidal_features(timesteps, self.num_features)
        time = self.linear_out(silu(self.linear_in(features)))
        return time, self._project(time).unflatten(-1, (6, -1))

    def _project(self, time: Tensor) -> Tensor:
        """``[B, dim]`` -> ``[B, 6 * dim]``, whole on every rank."""
        layout, group = self._context.layout, self._context.tensor_group
        if layout.tensor == 1:
            return self.projection(silu(time))
        if layout.sequence:
            # Every rank's gradient of the modulation, and of the time vector, is its own tokens' part of a sum.
            return all_gather_last_dim_from_tensor_parallel_region(self.projection(silu(time)), group=group)
        projected = self.projection(sum_gradient_over_tensor_ranks(silu(time), self._context))
        return gather_from_tensor_model_parallel_region(projected, group=group)


def sinusoidal_features(timesteps: Tensor, num_features: int) -> Tensor:
    """Timesteps ``[B]`` -> ``[B, num_features]`` float32: cosines first, computed in float64.

    Source: Wan2.1's ``sinusoidal_embedding_1d``.
    """
    half = num_features // 2
    exponents = torch.arange(half, dtype=torch.float64, device=timesteps.device) / half
    angles = torch.outer(timesteps.double(), 10000.0**-exponents)
    return torch.cat([angles.cos(), angles.sin()], dim=-1).float()
