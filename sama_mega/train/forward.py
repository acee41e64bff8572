"""From an encoded micro-batch to the errors of each sample.

Shape legend: B samples of a micro-batch; C T H W latents; M semantic tokens, F their features.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sama_mega.config.schema import Recipe
from sama_mega.diffusion.losses import flow_matching_error
from sama_mega.diffusion.noising import draw_noise_levels, noise_latents, noise_semantic_features
from sama_mega.diffusion.schedule import FlowMatchingSchedule
from sama_mega.train.batch import MicroBatch


@dataclass(frozen=True)
class NoisedBatch:
    """What the model reads and what it must predict.

    Attributes:
        noisy_latents: ``[B, C, T, H, W]`` float32.
        velocity_target: Same shape, float32.
        noisy_semantic: ``[B, M, F]`` float32, or None without semantic tokens.
        semantic_target: Same shape, float32, or None.
        source_latents: ``[B, C, Ts, Hs, Ws]`` float32, or None for text-to-video.
        text: ``[B, L, text_dim]`` float32.
        timesteps: ``[B]`` float32, 1000 * sigma.
        timestep_weights: ``[B]`` float32, of the flow-matching error.
    """

    noisy_latents: Tensor
    velocity_target: Tensor
    noisy_semantic: Tensor | None
    semantic_target: Tensor | None
    source_latents: Tensor | None
    text: Tensor
    timesteps: Tensor
    timestep_weights: Tensor


@dataclass(frozen=True)
class SampleErrors:
    """Errors per sample, ``[B]`` float32.

    Attributes:
        flow_matching: Mean squared error times the timestep's weight; the same on all ranks of a sample.
        semantic_share: This rank's part of the mean absolute error; the parts sum over the ranks that share the
            sequence.
    """

    flow_matching: Tensor
    semantic_share: Tensor


def noise_micro_batch(batch: MicroBatch, schedule: FlowMatchingSchedule, recipe: Recipe) -> NoisedBatch:
    """Draws a noise level a sample and noises latents and semantic features with it."""
    seed, indices, epochs = recipe.train.seed, batch.sample_indices, batch.epochs
    device, backend = batch.latents.device, recipe.kernels.ops
    levels = draw_noise_levels(schedule, seed, indices, epochs, device)
    latents = noise_latents(batch.latents, seed, indices, epochs, levels.sigmas, backend=backend)
    semantic = noise_semantic_features(
        batch.semantic_features, seed, indices, epochs, levels.sigmas, recipe.anchor.target, backend=backend
    )
    return NoisedBatch(
        noisy_latents=latents.noisy,
        velocity_target=latents.target,
        noisy_semantic=semantic.noisy,
        semantic_target=semantic.target,
        source_latents=batch.source_latents,
        text=batch.text,
        timesteps=levels.timesteps,
        timestep_weights=levels.weights,
    )


def forward_errors(model: nn.Module, noised: NoisedBatch, backend: str) -> SampleErrors:
    """Runs the model on one micro-batch and measures both errors."""
    output = model(
        noised.noisy_latents,
        noised.timesteps,
        noised.text,
        noised.source_latents,
        noised.noisy_semantic,
        noised.semantic_target,
    )
    flow_matching = flow_matching_error(
        output.velocity, noised.velocity_target, noised.timestep_weights, backend=backend
    )
    share = output.semantic_loss_share
    return SampleErrors(flow_matching, torch.zeros_like(flow_matching) if share is None else share)


def count_tokens(noised: NoisedBatch, recipe: Recipe) -> int:
    """Tokens of one sample's sequence, without padding."""
    patch = math.prod(recipe.model.patch_size)
    tokens = noised.noisy_latents[0, 0].numel() // patch
    if noised.source_latents is not None:
        tokens += noised.source_latents[0, 0].numel() // patch
    return tokens + (0 if noised.noisy_semantic is None else noised.noisy_semantic.shape[1])
