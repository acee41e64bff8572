"""What turns diffusers' Wan transformer into SAMA's editing model: types of tokens, and semantic tokens.

The transformer beside this folder has the target's type embedding in the bias of its patch embedding; `type_offsets`
are the types relative to that.

Shape legend: B batch, C T H W latents, M semantic tokens, F semantic features, N tokens, D model width.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import nn
from torch.nn.functional import gelu

SOURCE, SEMANTIC, TARGET = 0, 1, 2


class SemanticFeatureMLP(nn.Module):
    """Semantic features to tokens."""

    def __init__(self, semantic_dim: int, hidden_dim: int, dim: int, eps: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(semantic_dim, eps)
        self.fc1 = nn.Linear(semantic_dim, hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, dim)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """``[B, M, F]`` -> ``[B, M, D]``."""
        return self.fc2(gelu(self.fc1(self.norm(features.to(self.fc1.weight.dtype)))))


class SemanticHead(nn.Module):
    """Tokens to the semantic features' velocity."""

    def __init__(self, dim: int, semantic_dim: int, eps: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim, eps)
        self.proj = nn.Linear(dim, semantic_dim)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """``[B, M, D]`` -> ``[B, M, F]``."""
        return self.proj(self.norm(hidden.to(self.proj.weight.dtype)))


class SamaEditing(ModelMixin, ConfigMixin):
    """SAMA's own weights, and the forward pass of an edit through a `WanTransformer3DModel`.

    The arguments after `eps` say how an edit is asked for and sampled; the pipeline reads them.
    """

    _keep_in_fp32_modules: ClassVar[list[str]] = ["type_offsets"]

    @register_to_config
    def __init__(
        self,
        dim: int,
        semantic_dim: int = 1152,
        semantic_hidden_dim: int = 1024,
        semantic_tokens: int = 65,
        semantic_rope: str = "zero",
        semantic_target: str = "velocity",
        eps: float = 1e-6,
        text_length: int = 512,
        video_prefix: str = "[Video edit]",
        image_prefix: str = "[Image edit]",
        negative_prompt: str | None = None,
        num_inference_steps: int = 50,
        guidance_scale: float = 5.0,
    ) -> None:
        super().__init__()
        self.type_offsets = nn.Parameter(torch.zeros(3, dim))
        self.siglip_feat_mlp = SemanticFeatureMLP(semantic_dim, semantic_hidden_dim, dim, eps)
        self.semantic_head = SemanticHead(dim, semantic_dim, eps)

    def forward(
        self,
        transformer: Any,
        noisy_latents: torch.Tensor,
        timestep: torch.Tensor,
        text: torch.Tensor,
        source_latents: torch.Tensor,
        noisy_semantic: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Predicts the velocities of the latents and of the semantic features.

        Args:
            transformer: The `WanTransformer3DModel` of the same export.
            noisy_latents: ``[B, C, T, H, W]``.
            timestep: ``[B]``, 0 to 1000.
            text: ``[B, L, text_dim]``, zero after the prompt.
            source_latents: ``[B, C, T', H', W']``, clean.
            noisy_semantic: ``[B, M, F]``.

        Returns:
            ``[B, C, T, H, W]`` and ``[B, M, F]``, float32.
        """
        dtype = transformer.patch_embedding.weight.dtype
        segments = [
            self._embed(transformer, source_latents.to(dtype), SOURCE),
            (self.siglip_feat_mlp(noisy_semantic) + self.type_offsets[SEMANTIC]).to(dtype),
            self._embed(transformer, noisy_latents.to(dtype), TARGET),
        ]
        rotation = self._rotation(transformer, source_latents, noisy_semantic.shape[1], noisy_latents)
        time, modulation, text_tokens, _ = transformer.condition_embedder(timestep, text.to(dtype), None)
        modulation = modulation.unflatten(1, (6, -1))
        hidden = torch.cat(segments, dim=1)
        for block in transformer.blocks:
            hidden = block(hidden, text_tokens, modulation, rotation)
        _, semantic, target = hidden.split([segment.shape[1] for segment in segments], dim=1)
        velocity = self._velocity(transformer, target, time, noisy_latents.shape)
        return velocity.float(), self.semantic_head(semantic).float()

    def _embed(self, transformer: Any, latents: torch.Tensor, kind: int) -> torch.Tensor:
        patches = transformer.patch_embedding(latents).flatten(2).transpose(1, 2)
        return (patches + self.type_offsets[kind]).to(latents.dtype)

    def _rotation(
        self, transformer: Any, source: torch.Tensor, num_semantic: int, target: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosines and sines of every token; source and target share positions, semantic tokens have none."""
        of_source, of_target = transformer.rope(source), transformer.rope(target)
        shape = (1, num_semantic, *of_target[0].shape[2:])
        cosine = torch.full(shape, 0.0 if self.config.semantic_rope == "zero" else 1.0).to(of_target[0])
        of_semantic = (cosine, torch.zeros_like(cosine))
        joined = [torch.cat(parts, dim=1) for parts in zip(of_source, of_semantic, of_target, strict=True)]
        return joined[0], joined[1]

    def _velocity(self, transformer: Any, hidden: torch.Tensor, time: torch.Tensor, shape: torch.Size) -> torch.Tensor:
        """The modulated head on the target's tokens, and patches back to latents."""
        shift, scale = (transformer.scale_shift_table + time.unsqueeze(1)).chunk(2, dim=1)
        hidden = (transformer.norm_out(hidden.float()) * (1 + scale) + shift).type_as(hidden)
        batch, channels, frames, height, width = shape
        pt, ph, pw = transformer.config.patch_size
        patches = transformer.proj_out(hidden)
        patches = patches.reshape(batch, frames // pt, height // ph, width // pw, pt, ph, pw, channels)
        return patches.permute(0, 7, 1, 4, 2, 5, 3, 6).reshape(shape)
