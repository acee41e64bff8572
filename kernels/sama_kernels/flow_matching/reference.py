"""Plain torch flow matching."""

from __future__ import annotations

import torch
from torch import Tensor

from sama_kernels.philox import Address, random_normal_batch


@torch.no_grad()
def add_noise_reference(x: Tensor, noise: Tensor | Address, sigma: Tensor) -> tuple[Tensor, Tensor]:
    """See `sama_kernels.flow_matching.add_noise`."""
    if isinstance(noise, Address):
        noise = random_normal_batch(noise.seed, noise.sample_indices, noise.epochs, noise.stream, x.shape[1:], x.device)
    clean, added, level = x.float(), noise.float(), per_sample(sigma, x)
    return ((1 - level) * clean + level * added).to(x.dtype), added - clean


def weighted_mse_reference(velocity: Tensor, target: Tensor, weight: Tensor | None) -> Tensor:
    """See `sama_kernels.flow_matching.weighted_mse`."""
    error = (velocity.float() - target.float()).square().flatten(1).mean(dim=1)
    return error if weight is None else error * weight.float()


def per_sample(value: Tensor, like: Tensor) -> Tensor:
    """Reshapes ``[B]`` to ``[B, 1, ...]`` float32, so that it broadcasts over a batch of samples."""
    return value.float().view(-1, *([1] * (like.dim() - 1)))
