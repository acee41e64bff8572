"""Guided Euler sampling of latents and semantic features together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import Enum
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from sama_mega.diffusion.noising import SemanticTarget, semantic_prediction_to_velocity


class Condition(Enum):
    """What one forward pass is told."""

    BOTH = "instruction and source"
    SOURCE = "source and the negative prompt"
    TEXT = "instruction, no source"


Prediction = tuple[Tensor, Tensor | None]
"""Velocities of latents and of semantic features."""
PredictAll = Callable[[Callable[[Condition], Prediction], Sequence[Condition]], list[Prediction]]
"""Makes the passes of one step, here or spread over ranks; their order is that of the conditions."""


class Predict(Protocol):
    """One forward pass of the model."""

    def __call__(
        self, latents: Tensor, semantic: Tensor | None, timestep: Tensor, condition: Condition
    ) -> tuple[Tensor, Tensor | None]:
        """Predicts both velocities.

        Args:
            latents: ``[B, C, T', H', W']`` noisy, float32.
            semantic: ``[B, tokens, semantic_dim]`` noisy, float32, or None.
            timestep: ``[B]`` float32.
            condition: What the model is told.
        """
        ...


def predict_in_turn(predict: Callable[[Condition], Prediction], conditions: Sequence[Condition]) -> list[Prediction]:
    """Makes all passes here, one after the other."""
    return [predict(condition) for condition in conditions]


@torch.no_grad()
def sample_edit(
    predict: Predict,
    initial_latents: Tensor,
    initial_semantic: Tensor | None,
    sigmas: Tensor,
    timesteps: Tensor,
    guidance: float,
    *,
    source_guidance: float = 0.0,
    predict_all: PredictAll = predict_in_turn,
    semantic_target: SemanticTarget = "velocity",
    on_step: Callable[[int], None] | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Integrates from pure noise to clean latents and features.

    Both velocities are guided. With v(I, T) what the model says of source and instruction, v(I, -) of the source and
    the negative prompt, v(-, T) of the instruction without a source, g ``guidance`` and s ``source_guidance``::

        v = v(I, -) + g * (v(I, T) - v(I, -)) + s * (v(I, T) - v(-, T))

    A scale that changes nothing (g = 1, s = 0) costs no pass. The authors write the same as ``v(I, T) + s_I * (v(I, T)
    - v(-, T)) + s_T * (v(I, T) - v(I, -))``: their ``cfg_scale_text`` is g - 1, their ``cfg_scale_source`` s.

    Args:
        predict: The model.
        initial_latents: ``[B, C, T', H', W']`` noise.
        initial_semantic: ``[B, tokens, semantic_dim]`` noise, or None for a model without semantic tokens.
        sigmas: ``[steps + 1]`` falling to 0, from `FlowMatchingSchedule.sampling_schedule`.
        timesteps: ``[steps]``.
        guidance: How much further than the negative prompt the instruction leads; 1 is none.
        source_guidance: How much further than no source the source leads; 0 is none.
        predict_all: Who makes a step's passes.
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
    conditions = needed_conditions(guidance, source_guidance)
    for step, timestep in enumerate(timesteps.tolist()):
        told = torch.full((latents.shape[0],), timestep, dtype=torch.float32, device=latents.device)
        predictions = predict_all(partial(predict, latents, semantic, told), conditions)
        velocity, semantic_out = _guided(dict(zip(conditions, predictions, strict=True)), guidance, source_guidance)
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


def needed_conditions(guidance: float, source_guidance: float) -> list[Condition]:
    """The passes of one step: a scale that changes nothing needs none."""
    conditions = [Condition.BOTH]
    if guidance != 1.0:
        conditions.append(Condition.SOURCE)
    if source_guidance != 0.0:
        conditions.append(Condition.TEXT)
    return conditions


def _guided(predictions: dict[Condition, Prediction], guidance: float, source_guidance: float) -> Prediction:
    latents = {condition: velocity for condition, (velocity, _) in predictions.items()}
    semantic = {condition: out for condition, (_, out) in predictions.items() if out is not None}
    velocity = _combined(latents, guidance, source_guidance)
    return velocity, _combined(semantic, guidance, source_guidance) if semantic else None


def _combined(velocities: dict[Condition, Tensor], guidance: float, source_guidance: float) -> Tensor:
    both = velocities[Condition.BOTH]
    guided = both
    if Condition.SOURCE in velocities:
        base = velocities[Condition.SOURCE]
        guided = base + guidance * (both - base)
    if Condition.TEXT in velocities:
        guided = guided + source_guidance * (both - velocities[Condition.TEXT])
    return guided
