"""Residual connections: with a per-sample gate, and with the layer norm of the result in the same pass."""

from __future__ import annotations

from torch import Tensor

from sama_kernels.dispatch import choose_backend
from sama_kernels.gate_residual.reference import (
    gate_residual_norm_reference,
    gate_residual_reference,
    residual_adaln_reference,
)

__all__ = ["gate_residual", "gate_residual_norm", "residual_adaln"]


def gate_residual(x: Tensor, branch: Tensor, gate: Tensor, *, backend: str = "auto") -> Tensor:
    """X + gate * branch, in float32.

    Args:
        x: ``[S, B, width]`` residual stream.
        branch: ``[S, B, width]`` what the block computed.
        gate: ``[B, width]`` float32.
        backend: ``auto``, ``triton`` or ``reference``.

    Returns:
        ``[S, B, width]`` in x's dtype; x is not changed.
    """
    if choose_backend("gate_residual", backend, x.device.type) == "reference":
        return gate_residual_reference(x, branch, gate)
    from sama_kernels.gate_residual.autograd import gate_residual_triton

    return gate_residual_triton(x, branch, gate)


def gate_residual_norm(
    x: Tensor, branch: Tensor, gate: Tensor, weight: Tensor, bias: Tensor, *, eps: float, backend: str = "auto"
) -> tuple[Tensor, Tensor]:
    """The residual x + gate * branch, and its layer norm LN(residual) * weight + bias.

    Args:
        x: ``[S, B, width]`` residual stream.
        branch: ``[S, B, width]`` what the block computed.
        gate: ``[B, width]`` float32.
        weight: ``[width]``.
        bias: ``[width]`` in the weight's dtype.
        eps: Added to the variance.
        backend: ``auto``, ``triton`` or ``reference``.

    Returns:
        Both ``[S, B, width]`` in x's dtype; the norm is that of the rounded residual.
    """
    if choose_backend("gate_residual", backend, x.device.type) == "reference":
        return gate_residual_norm_reference(x, branch, gate, weight, bias, eps)
    from sama_kernels.gate_residual.autograd import gate_residual_norm_triton

    return gate_residual_norm_triton(x, branch, gate, weight, bias, eps)


def residual_adaln(
    x: Tensor, branch: Tensor, shift: Tensor, scale: Tensor, *, eps: float, backend: str = "auto"
) -> tuple[Tensor, Tensor]:
    """The residual x + branch, and its modulated norm LN(residual) * (1 + scale) + shift.

    Args:
        x: ``[S, B, width]`` residual stream.
        branch: ``[S, B, width]`` what the block computed, in x's dtype.
        shift: ``[B, width]`` float32.
        scale: ``[B, width]`` float32.
        eps: Added to the variance.
        backend: ``auto``, ``triton`` or ``reference``.

    Returns:
        Both ``[S, B, width]`` in x's dtype; the norm is that of the rounded residual.
    """
    if choose_backend("gate_residual", backend, x.device.type) == "reference":
        return residual_adaln_reference(x, branch, shift, scale, eps)
    from sama_kernels.gate_residual.autograd import residual_adaln_triton

    return residual_adaln_triton(x, branch, shift, scale, eps)
