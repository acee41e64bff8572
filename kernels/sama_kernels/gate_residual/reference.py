"""Plain torch residual sums, alone or with the layer norm that follows."""

from __future__ import annotations

from torch import Tensor

from sama_kernels.adaln.reference import adaln_reference, layer_norm_reference


def gate_residual_reference(x: Tensor, branch: Tensor, gate: Tensor) -> Tensor:
    """See `sama_kernels.gate_residual.gate_residual`."""
    return (x.float() + gate * branch.float()).to(x.dtype)


def gate_residual_norm_reference(
    x: Tensor, branch: Tensor, gate: Tensor, weight: Tensor, bias: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """See `sama_kernels.gate_residual.gate_residual_norm`."""
    residual = gate_residual_reference(x, branch, gate)
    return residual, layer_norm_reference(residual, weight, bias, eps)


def residual_adaln_reference(
    x: Tensor, branch: Tensor, shift: Tensor, scale: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """See `sama_kernels.gate_residual.residual_adaln`."""
    residual = x + branch
    return residual, adaln_reference(residual, shift, scale, eps)
