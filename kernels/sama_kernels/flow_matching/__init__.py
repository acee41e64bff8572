"""Flow matching: the noisy sample, its velocity, and the per-sample weighted squared error."""

from __future__ import annotations

from torch import Tensor

from sama_kernels.dispatch import choose_backend
from sama_kernels.flow_matching.reference import add_noise_reference, weighted_mse_reference
from sama_kernels.philox import Address

__all__ = ["Address", "add_noise", "weighted_mse"]


def add_noise(x: Tensor, noise: Tensor | Address, sigma: Tensor, *, backend: str = "auto") -> tuple[Tensor, Tensor]:
    """What the model reads, (1 - sigma) * x + sigma * noise, and the velocity that it learns, noise - x; in float32.

    Args:
        x: ``[B, ...]`` clean latents or features, any float dtype. No gradient flows back to it.
        noise: Same shape as x, or which standard normal numbers to draw: a draw depends on its address alone, in any
            layout and batch, and a kernel needs no memory for it.
        sigma: ``[B]`` float32 noise levels in [0, 1], one a sample.
        backend: ``auto``, ``triton`` or ``reference``.

    Returns:
        The noisy sample in x's dtype and the velocity in float32, both in x's shape.

    Raises:
        ValueError: Shapes do not match, an address is out of range, or the backend is not built.

    Source: SAMA (arXiv 2603.19228), flow matching; Cynthiazxy123/SAMA@5c6bb5b FlowMatchScheduler.add_noise.
    """
    chosen = choose_backend("flow_matching", backend, x.device.type)
    if isinstance(noise, Tensor):
        _check_same_shape("add_noise", "noise", noise, "x", x)
    _check_one_per_sample("add_noise", "sigma", sigma, x)
    if chosen == "reference":
        return add_noise_reference(x, noise, sigma)
    from sama_kernels.flow_matching.autograd import add_noise_triton

    return add_noise_triton(x, noise, sigma)


def weighted_mse(velocity: Tensor, target: Tensor, weight: Tensor | None = None, *, backend: str = "auto") -> Tensor:
    """Per sample: weight * mean((velocity - target)^2), in float32.

    Args:
        velocity: ``[B, ...]`` the model's prediction, any float dtype.
        target: Same shape.
        weight: ``[B]`` float32, or None for ones.
        backend: ``auto``, ``triton`` or ``reference``.

    Returns:
        ``[B]`` float32, differentiable in velocity, target and weight.

    Raises:
        ValueError: Shapes do not match, or the backend is not built.
    """
    chosen = choose_backend("flow_matching", backend, velocity.device.type)
    _check_same_shape("weighted_mse", "target", target, "velocity", velocity)
    if weight is not None:
        _check_one_per_sample("weighted_mse", "weight", weight, velocity)
    if chosen == "reference":
        return weighted_mse_reference(velocity, target, weight)
    from sama_kernels.flow_matching.autograd import weighted_mse_triton

    return weighted_mse_triton(velocity, target, weight)


def _check_same_shape(operation: str, name: str, value: Tensor, other_name: str, other: Tensor) -> None:
    # Broadcasting would train on a wrong target without a word.
    if value.shape != other.shape:
        raise ValueError(
            f"{operation}: {name} {tuple(value.shape)} must have the shape of {other_name} {tuple(other.shape)}"
        )


def _check_one_per_sample(operation: str, name: str, value: Tensor, x: Tensor) -> None:
    if value.shape != x.shape[:1]:
        raise ValueError(f"{operation}: {name} {tuple(value.shape)} must hold one value a sample ({x.shape[0]})")
