"""Plain torch flow matching."""

from __future__ import annotations

from torch import Tensor


def add_noise_reference(x: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
    """See `sama_kernels.flow_matching.add_noise`."""
    level = per_sample(sigma, x)
    return ((1 - level) * x.float() + level * noise.float()).to(x.dtype)


def velocity_target_reference(x: Tensor, noise: Tensor) -> Tensor:
    """See `sama_kernels.flow_matching.velocity_target`."""
    return noise.float() - x.float()


def weighted_mse_reference(velocity: Tensor, target: Tensor, weight: Tensor | None) -> Tensor:
    """See `sama_kernels.flow_matching.weighted_mse`."""
    error = (velocity.float() - target.float()).square().flatten(1).mean(dim=1)
    return error if weight is None else error * weight.float()


def per_sample(value: Tensor, like: Tensor) -> Tensor:
    """Reshapes ``[B]`` to ``[B, 1, ...]`` float32, so that it broadcasts over a batch of samples."""
    return value.float().view(-1, *([1] * (like.dim() - 1)))
