"""Guided Euler sampling of latents and semantic features together."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from sama_mega.diffusion.noising import SemanticTarget, semantic_prediction_to_velocity


class Predict(Protocol):
    """One forward pass of the model, with the instruction or with the negative prompt."""

    def __call__(
        self, latents: Tensor, semantic: Tensor | None, timestep: Tensor, conditional: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Predicts both velocities.

        Args:
            latents: ``[B, C, T', H', W']`` noisy, float32.
            semantic: ``[B, tokens, semantic_dim]`` noisy, float32, or None.
            timestep: ``[B]`` float32.
            conditional: True for the instruction, False for the negative prompt.
        """
        ...


@torch.no_grad()
def sample_edit(
    predict: Predict,
    initial_latents: Tensor,
    initial_semantic: Tensor | None,
    sigmas: Tensor,
    timesteps: Tensor,
    guidance: float,
    *,
    semantic_target: SemanticTarget = "velocity",
    on_step: Callable[[int], None] | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Integrates from pure noise to clean latents and features.

    Args:
        predict: The model.
        initial_latents: ``[B, C, T', H', W']`` noise.
        initial_semantic: ``[B, tokens, semantic_dim]`` noise, or None for a model without semantic tokens.
        sigmas: ``[steps + 1]`` falling to 0, from `FlowMatchingSchedule.sampling_schedule`.
        timesteps: ``[steps]``.
        guidance: Classifier-free guidance scale for both velocities; 1 skips the unconditional pass.
        semantic_target: What the semantic head predicts, `anchor.target`.
        on_step: Called with the number of finished steps after each, for a progress bar.

    Returns:
        Final latents and features, float32.

    Raises:
        ValueError: sigmas and timesteps do not belong together.

    Source: Cynthiazxy123/SAMA@5c6bb5b, WanVideoPipeline.__call__.
    """
    if sigmas.shape[0] != timesteps.shape[0] + 1:
        raise ValueError(f"{sigmas.shape[0]} sigmas for {timesteps.shape[0]} timesteps: one more is needed")
    latents = initial_latents.float()
    semantic = None if initial_semantic is None else initial_semantic.float()
    levels = sigmas.tolist()
    for step, timestep in enumerate(timesteps.tolist()):
        told = torch.full((latents.shape[0],), timestep, dtype=torch.float32, device=latents.device)
        velocity, semantic_out = _guided(predict, latents, semantic, told, guidance)
        size = levels[step + 1] - levels[step]
        latents = latents + velocity.float() * size
        if semantic is not None:
            if semantic_out is None:
                raise ValueError("the model returned no semantic velocity for the semantic features it was given")
            moved = semantic_prediction_to_velocity(semantic_out.float(), semantic, levels[step], semantic_target)
            semantic = semantic + moved * size
        if on_step is not None:
            on_step(step + 1)
    return latents, semantic


def _guided(
    predict: Predict, latents: Tensor, semantic: Tensor | None, timestep: Tensor, guidance: float
) -> tuple[Tensor, Tensor | None]:
    velocity, semantic_out = predict(latents, semantic, timestep, True)
    if guidance == 1.0:
        return velocity, semantic_out
    base, semantic_base = predict(latents, semantic, timestep, False)
    velocity = base + guidance * (velocity - base)
    if semantic_out is not None and semantic_base is not None:
        semantic_out = semantic_base + guidance * (semantic_out - semantic_base)
    return velocity, semantic_out
