"""Residual connection with a per-sample gate."""

from __future__ import annotations

from torch import Tensor

from sama_kernels.dispatch import choose_backend
from sama_kernels.gate_residual.reference import gate_residual_reference


def gate_residual(x: Tensor, branch: Tensor, gate: Tensor, *, backend: str = "auto") -> Tensor:
    """X + gate * branch, in float32.

    Args:
        x: ``[S, B, width]`` residual stream.
        branch: ``[S, B, width]`` what the block computed.
        gate: ``[B, width]`` float32.
        backend: ``auto`` or ``reference``.

    Returns:
        ``[S, B, width]`` in x's dtype; x is not changed.
    """
    choose_backend("gate_residual", backend, x.device.type)
    return gate_residual_reference(x, branch, gate)
