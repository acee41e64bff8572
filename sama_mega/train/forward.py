"""From an encoded micro-batch to the errors of each sample.

Shape legend: B samples of a micro-batch; C T H W latents; M semantic tokens, F their features.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sama_mega.config.schema import Recipe
from sama_mega.diffusion.losses import flow_matching_error
from sama_mega.diffusion.noising import draw_noise_levels, noise_latents, noise_semantic_features
from sama_mega.diffusion.schedule import FlowMatchingSchedule
from sama_mega.model import ModelInput, ModelOutput
from sama_mega.train.batch import MicroBatch


@dataclass(frozen=True)
class NoisedBatch:
    """What the model reads and what it must predict.

    Attributes:
        given: What the model reads, the semantic target included.
        velocity_target: ``[B, C, T, H, W]`` float32.
        timestep_weights: ``[B]`` float32, of the flow-matching error.
    """

    given: ModelInput
    velocity_target: Tensor
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
    semantic = None
    if batch.semantic_features is not None:
        semantic = noise_semantic_features(
            batch.semantic_features, seed, indices, epochs, levels.sigmas, recipe.anchor.target, backend=backend
        )
    given = ModelInput(
        noisy_latents=latents.noisy,
        timesteps=levels.timesteps,
        text=batch.text,
        source_latents=batch.source_latents,
        noisy_semantic=semantic.noisy if semantic else None,
        semantic_target=semantic.target if semantic else None,
    )
    return NoisedBatch(given, velocity_target=latents.target, timestep_weights=levels.weights)


def measure_errors(output: ModelOutput, noised: NoisedBatch, backend: str) -> SampleErrors:
    """Measures both errors of the model's output."""
    flow_matching = flow_matching_error(
        output.velocity, noised.velocity_target, noised.timestep_weights, backend=backend
    )
    share = output.semantic_loss_share
    return SampleErrors(flow_matching, torch.zeros_like(flow_matching) if share is None else share)


def count_tokens(noised: NoisedBatch, recipe: Recipe) -> int:
    """Tokens of one sample's sequence, without padding."""
    patch = math.prod(recipe.model.patch_size)
    given = noised.given
    tokens = given.noisy_latents[0, 0].numel() // patch
    if given.source_latents is not None:
        tokens += given.source_latents[0, 0].numel() // patch
    return tokens + (0 if given.noisy_semantic is None else given.noisy_semantic.shape[1])
