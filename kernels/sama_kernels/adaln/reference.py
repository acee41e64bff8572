"""Plain torch adaptive layer norm."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import layer_norm


def adaln_reference(x: Tensor, shift: Tensor, scale: Tensor, eps: float) -> Tensor:
    """See `sama_kernels.adaln.adaln`."""
    normed = layer_norm(x.float(), (x.shape[-1],), eps=eps)
    return (normed * (1 + scale) + shift).to(x.dtype)
