"""Flow matching: the noisy sample, its velocity, and the per-sample weighted squared error."""

from __future__ import annotations

from torch import Tensor

from sama_kernels.dispatch import choose_backend
from sama_kernels.flow_matching.reference import (
    add_noise_reference,
    velocity_target_reference,
    weighted_mse_reference,
)

__all__ = ["add_noise", "velocity_target", "weighted_mse"]


def add_noise(x: Tensor, noise: Tensor, sigma: Tensor, *, backend: str = "auto") -> Tensor:
    """(1 - sigma) * x + sigma * noise, in float32.

    Args:
        x: ``[B, ...]`` clean latents or features, any float dtype.
        noise: Same shape as x.
        sigma: ``[B]`` float32 noise levels in [0, 1], one a sample.
        backend: ``auto`` or ``reference``.

    Returns:
        Same shape and dtype as x.

    Raises:
        ValueError: Shapes do not match, or the backend is not built.

    Source: SAMA (arXiv 2603.19228), flow matching; Cynthiazxy123/SAMA@5c6bb5b FlowMatchScheduler.add_noise.
    """
    choose_backend("flow_matching", backend, x.device.type)
    _check_same_shape("add_noise", "noise", noise, "x", x)
    _check_one_per_sample("add_noise", "sigma", sigma, x)
    return add_noise_reference(x, noise, sigma)


def velocity_target(x: Tensor, noise: Tensor, *, backend: str = "auto") -> Tensor:
    """The velocity that the model learns: noise - x, in float32.

    Args:
        x: ``[B, ...]`` clean latents or features, any float dtype.
        noise: Same shape as x.
        backend: ``auto`` or ``reference``.

    Returns:
        Same shape as x, float32.

    Raises:
        ValueError: Shapes do not match, or the backend is not built.
    """
    choose_backend("flow_matching", backend, x.device.type)
    _check_same_shape("velocity_target", "noise", noise, "x", x)
    return velocity_target_reference(x, noise)


def weighted_mse(velocity: Tensor, target: Tensor, weight: Tensor | None = None, *, backend: str = "auto") -> Tensor:
    """Per sample: weight * mean((velocity - target)^2), in float32.

    Args:
        velocity: ``[B, ...]`` the model's prediction, any float dtype.
        target: Same shape.
        weight: ``[B]`` float32, or None for ones.
        backend: ``auto`` or ``reference``.

    Returns:
        ``[B]`` float32, differentiable in velocity, target and weight.

    Raises:
        ValueError: Shapes do not match, or the backend is not built.
    """
    choose_backend("flow_matching", backend, velocity.device.type)
    _check_same_shape("weighted_mse", "target", target, "velocity", velocity)
    if weight is not None:
        _check_one_per_sample("weighted_mse", "weight", weight, velocity)
    return weighted_mse_reference(velocity, target, weight)


def _check_same_shape(operation: str, name: str, value: Tensor, other_name: str, other: Tensor) -> None:
    # Broadcasting would train on a wrong target without a word.
    if value.shape != other.shape:
        raise ValueError(
            f"{operation}: {name} {tuple(value.shape)} must have the shape of {other_name} {tuple(other.shape)}"
        )


def _check_one_per_sample(operation: str, name: str, value: Tensor, x: Tensor) -> None:
    if value.shape != x.shape[:1]:
        raise ValueError(f"{operation}: {name} {tuple(value.shape)} must hold one value a sample ({x.shape[0]})")
