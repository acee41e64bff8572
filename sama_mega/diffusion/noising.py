"""From clean latents and features to what the model reads and what it must predict.

Shapes: B samples; latents [B, C, T', H', W']; semantic features [B, tokens, semantic_dim].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from sama_kernels.flow_matching import Address, add_noise
from sama_kernels.philox import Index, random_integer_batch, random_uniform_batch
from sama_mega.diffusion.schedule import FlowMatchingSchedule
from sama_mega.diffusion.streams import Stream
from sama_mega.parallel.transfer import to_device

__all__ = [
    "NoiseLevels",
    "Noised",
    "SemanticTarget",
    "draw_noise_levels",
    "draw_text_dropout",
    "noise_latents",
    "noise_semantic_features",
    "semantic_prediction_to_velocity",
]

SemanticTarget = Literal["velocity", "clean"]


@dataclass(frozen=True)
class NoiseLevels:
    """One noise level a sample; each tensor is ``[B]`` float32.

    Attributes:
        sigmas: In (0, 1].
        timesteps: What the model is told.
        weights: Of the flow-matching loss.
    """

    sigmas: Tensor
    timesteps: Tensor
    weights: Tensor


@dataclass(frozen=True)
class Noised:
    """A noisy input and what the model must predict from it, of one shape."""

    noisy: Tensor
    target: Tensor


def draw_noise_levels(
    schedule: FlowMatchingSchedule,
    seed: int,
    sample_indices: Index,
    epochs: Index,
    device: torch.device | str = "cpu",
) -> NoiseLevels:
    """Draws a training level for each sample, uniform over the schedule's levels.

    Args:
        schedule: Where the levels come from.
        seed: The run's.
        sample_indices: ``[B]``.
        epochs: ``[B]``, how often each sample was seen before.
        device: Of the result.
    """
    upper = schedule.num_train_timesteps
    level = random_integer_batch(seed, sample_indices, epochs, Stream.TIMESTEP, upper)
    tables = (schedule.train_sigmas, schedule.train_timesteps, schedule.train_weights)
    sigmas, timesteps, weights = to_device(torch.stack([table[level] for table in tables]), device)
    return NoiseLevels(sigmas, timesteps, weights)


def draw_text_dropout(
    seed: int, sample_indices: Sequence[int], epochs: Sequence[int], probability: float
) -> list[bool]:
    """Which samples lose their instruction and keep only the prompt's prefix, one answer a sample."""
    draws = random_uniform_batch(seed, sample_indices, epochs, Stream.TEXT_DROPOUT, (1,))
    # The draws are made on the host; numpy() would refuse a device's, so nothing can wait here.
    return [draw < probability for draw in draws[:, 0].numpy().tolist()]


def noise_latents(
    latents: Tensor, seed: int, sample_indices: Index, epochs: Index, sigmas: Tensor, *, backend: str = "auto"
) -> Noised:
    """Noises target latents.

    Args:
        latents: ``[B, C, T', H', W']``.
        seed: The run's.
        sample_indices: ``[B]``.
        epochs: ``[B]``.
        sigmas: ``[B]`` float32 on the latents' device.
        backend: Of `sama_kernels.flow_matching`.

    Returns:
        The noisy latents in the latents' dtype, and the velocity in float32.
    """
    noise = Address(seed, sample_indices, epochs, Stream.LATENT_NOISE)
    return Noised(*add_noise(latents, noise, sigmas, backend=backend))


def noise_semantic_features(
    features: Tensor,
    seed: int,
    sample_indices: Index,
    epochs: Index,
    sigmas: Tensor,
    target: SemanticTarget = "velocity",
    *,
    backend: str = "auto",
) -> Noised:
    """Noises the raw semantic features in their own space, at the latents' noise level.

    Args:
        features: ``[B, tokens, semantic_dim]``.
        seed: The run's.
        sample_indices: ``[B]``.
        epochs: ``[B]``.
        sigmas: ``[B]`` float32, those of the latents.
        target: What the semantic head predicts: the features' velocity (released code) or the features (paper).
        backend: Of `sama_kernels.flow_matching`.

    Returns:
        The noisy features in the features' dtype, and the target in float32.

    Raises:
        ValueError: The target is neither ``velocity`` nor ``clean``.
    """
    noise = Address(seed, sample_indices, epochs, Stream.SEMANTIC_NOISE)
    noisy, velocity = add_noise(features, noise, sigmas, backend=backend)
    if target == "velocity":
        return Noised(noisy, velocity)
    if target == "clean":
        return Noised(noisy, features.float())
    raise ValueError(f"anchor.target ({target!r}) must be 'velocity' or 'clean'")


def semantic_prediction_to_velocity(prediction: Tensor, noisy: Tensor, sigma: float, target: SemanticTarget) -> Tensor:
    """The velocity that a semantic prediction means, for sampling.

    From noisy = (1 - sigma) clean + sigma noise: velocity = noise - clean = (noisy - clean) / sigma.

    Args:
        prediction: ``[B, tokens, semantic_dim]`` the head's output.
        noisy: The features that it read, same shape.
        sigma: Their noise level, above 0.
        target: What the head was trained to predict.
    """
    if target == "velocity":
        return prediction
    if target == "clean":
        return (noisy - prediction) / sigma
    raise ValueError(f"anchor.target ({target!r}) must be 'velocity' or 'clean'")
