"""Layer norm, then a per-sample scale and shift, or a weight and bias that all samples share."""

from __future__ import annotations

from torch import Tensor

from sama_kernels.adaln.reference import adaln_reference, layer_norm_reference
from sama_kernels.dispatch import choose_backend

__all__ = ["adaln", "layer_norm"]


def adaln(x: Tensor, shift: Tensor, scale: Tensor, *, eps: float, backend: str = "auto") -> Tensor:
    """LN(x) * (1 + scale) + shift, statistics and modulation in float32.

    Args:
        x: ``[S, B, width]``.
        shift: ``[B, width]`` float32.
        scale: ``[B, width]`` float32.
        eps: Added to the variance.
        backend: ``auto``, ``triton`` or ``reference``.

    Returns:
        ``[S, B, width]`` in x's dtype.

    Source: DiT's adaptive layer norm as Wan2.1 uses it.
    """
    if choose_backend("adaln", backend, x.device.type) == "reference":
        return adaln_reference(x, shift, scale, eps)
    from sama_kernels.adaln.autograd import adaln_triton

    return adaln_triton(x, shift, scale, eps)


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, *, eps: float, backend: str = "auto") -> Tensor:
    """LN(x) * weight + bias, in float32.

    Args:
        x: ``[S, B, width]``; S may be 0.
        weight: ``[width]``.
        bias: ``[width]`` in the weight's dtype.
        eps: Added to the variance.
        backend: ``auto``, ``triton`` or ``reference``.

    Returns:
        ``[S, B, width]`` in x's dtype.
    """
    if choose_backend("adaln", backend, x.device.type) == "reference":
        return layer_norm_reference(x, weight, bias, eps)
    from sama_kernels.adaln.autograd import layer_norm_triton

    return layer_norm_triton(x, weight, bias, eps)
