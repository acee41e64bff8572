"""Edits clips with a model: encode, sample from noise, decode.

Shape legend: B clips, T H W frames and size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sama_data.prompts import EDIT_PREFIXES
from sama_data.rows import Kind
from sama_kernels.philox import random_normal_batch
from sama_mega.config.errors import ConfigError
from sama_mega.config.schema import Recipe
from sama_mega.diffusion.sampler import Condition, PredictAll, predict_in_turn, sample_edit
from sama_mega.diffusion.schedule import FlowMatchingSchedule
from sama_mega.diffusion.streams import Stream
from sama_mega.encoders.interface import Encoders
from sama_mega.model import ModelInput, ModelOutput


class EditNotFiniteError(ConfigError):
    """The model gave NaN or infinity: there is no edit to show or to score."""


@dataclass(frozen=True)
class SamplingSettings:
    """How an edit is sampled.

    Attributes:
        steps: Euler steps.
        guidance: Of the instruction; 1 is none.
        seed: Of the initial noise.
        source_guidance: Of the source; 0 is none.

    Raises:
        ConfigError: A guidance is not finite.
    """

    steps: int
    guidance: float
    seed: int
    source_guidance: float = 0.0

    def __post_init__(self) -> None:
        """Holds the guidance to its rule."""
        for option, value in (("--guidance", self.guidance), ("--source-guidance", self.source_guidance)):
            if not math.isfinite(value):
                raise ConfigError(f"{option} ({value}) must be a finite number")


class Editor:
    """A model and its encoders, ready to edit; under tensor parallelism every rank calls it alike.

    Args:
        recipe: The recipe that the model was trained with.
        model: Predicts velocities: a `WholeModel`.
        encoders: Frozen encoders.
        device: Where to compute.
        predict_all: Who makes the passes of a guided step.
    """

    def __init__(
        self,
        recipe: Recipe,
        model: Callable[[ModelInput], ModelOutput],
        encoders: Encoders,
        device: torch.device,
        predict_all: PredictAll = predict_in_turn,
    ) -> None:
        self._recipe = recipe
        self._model = model
        self._encoders = encoders
        self._device = device
        self._predict_all = predict_all
        self._schedule = FlowMatchingSchedule(recipe.diffusion.num_train_timesteps, recipe.diffusion.shift)

    @torch.no_grad()
    def edit(
        self,
        sources: Tensor,
        prompts: Sequence[str],
        settings: SamplingSettings,
        *,
        kind: Kind = "video",
        num_frames: int | None = None,
        on_step: Callable[[int], None] | None = None,
    ) -> Tensor:
        """Edits clips of one shape.

        Args:
            sources: ``[B, 3, T, H, W]`` float32 in [-1, 1], T = 4k+1.
            prompts: B prompts, prefix included.
            settings: How to sample; clip i draws its noise from (seed, i), whatever else is in the batch.
            kind: What is edited: an image has another negative prompt, unless the recipe sets one.
            num_frames: Frames of the result, 4k+1; the source's by default (a sped-up source gives more).
            on_step: Called with the number of finished sampling steps.

        Returns:
            ``[B, 3, T, H, W]`` float32 in [-1, 1].

        Raises:
            EditNotFiniteError: A value of the result is not finite.
        """
        source_latents = self._encoders.video.encode(sources.to(self._device))
        shape = list(source_latents.shape[1:])
        if num_frames is not None:
            shape[1] = 1 + (num_frames - 1) // self._encoders.video.temporal_stride
        own_negative = self._recipe.diffusion.negative_prompt
        negative = EDIT_PREFIXES[kind] if own_negative is None else own_negative
        text = self._encoders.text.encode(list(prompts)).to(self._device)
        negative_text = self._encoders.text.encode([negative] * len(prompts)).to(self._device)

        def predict(
            latents: Tensor, semantic: Tensor | None, timestep: Tensor, condition: Condition
        ) -> tuple[Tensor, Tensor | None]:
            told = negative_text if condition is Condition.SOURCE else text
            source = None if condition is Condition.TEXT else source_latents
            output = self._model(ModelInput(latents, timestep, told, source, semantic))
            return output.velocity, output.semantic_velocity

        sigmas, timesteps = self._schedule.sampling_schedule(settings.steps)
        latents, _ = sample_edit(
            predict,
            self._noise(settings.seed, len(prompts), shape, Stream.SAMPLING_LATENT),
            self._semantic_noise(settings.seed, len(prompts)),
            sigmas,
            timesteps,
            settings.guidance,
            source_guidance=settings.source_guidance,
            predict_all=self._predict_all,
            semantic_target=self._recipe.anchor.target,
            on_step=on_step,
        )
        edited = self._encoders.video.decode(latents)
        if not (latents.isfinite().all() and edited.isfinite().all()):
            raise EditNotFiniteError(
                f"the model's edit is not finite after {settings.steps} steps with guidance {settings.guidance:g}:"
                " lower the guidance, or take a checkpoint from before its run diverged"
            )
        return edited

    def _noise(self, seed: int, num_clips: int, shape: Sequence[int], stream: Stream) -> Tensor:
        return random_normal_batch(seed, list(range(num_clips)), 0, stream, shape, self._device)

    def _semantic_noise(self, seed: int, num_clips: int) -> Tensor | None:
        shape = self._recipe.anchor.num_tokens, self._recipe.model.semantic_dim
        return self._noise(seed, num_clips, shape, Stream.SAMPLING_SEMANTIC) if shape[0] else None


def pixels_from_frames(frames: Tensor) -> Tensor:
    """``[T, H, W, 3]`` uint8 -> ``[3, T, H, W]`` float32 in [-1, 1]."""
    return frames.permute(3, 0, 1, 2).float() / 127.5 - 1


def frames_from_pixels(pixels: Tensor) -> Tensor:
    """``[3, T, H, W]`` float32 in [-1, 1] -> ``[T, H, W, 3]`` uint8 on the CPU, rounded."""
    return ((pixels.permute(1, 2, 3, 0) + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).cpu()
