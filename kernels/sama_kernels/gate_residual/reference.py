"""Plain torch gated residual."""

from __future__ import annotations

from torch import Tensor


def gate_residual_reference(x: Tensor, branch: Tensor, gate: Tensor) -> Tensor:
    """See `sama_kernels.gate_residual.gate_residual`."""
    return (x.float() + gate * branch.float()).to(x.dtype)
