"""Layer norm without parameters, then a per-sample scale and shift."""

from __future__ import annotations

from torch import Tensor

from sama_kernels.adaln.reference import adaln_reference
from sama_kernels.dispatch import choose_backend


def adaln(x: Tensor, shift: Tensor, scale: Tensor, *, eps: float, backend: str = "auto") -> Tensor:
    """LN(x) * (1 + scale) + shift, statistics and modulation in float32.

    Args:
        x: ``[S, B, width]``.
        shift: ``[B, width]`` float32.
        scale: ``[B, width]`` float32.
        eps: Added to the variance.
        backend: ``auto`` or ``reference``.

    Returns:
        ``[S, B, width]`` in x's dtype.

    Source: DiT's adaptive layer norm as Wan2.1 uses it.
    """
    choose_backend("adaln", backend, x.device.type)
    return adaln_reference(x, shift, scale, eps)
