"""Plain torch layer norm, with a sample's scale and shift or with weight and bias."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional


def adaln_reference(x: Tensor, shift: Tensor, scale: Tensor, eps: float) -> Tensor:
    """See `sama_kernels.adaln.adaln`."""
    normed = functional.layer_norm(x.float(), (x.shape[-1],), eps=eps)
    return (normed * (1 + scale) + shift).to(x.dtype)


def layer_norm_reference(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """See `sama_kernels.adaln.layer_norm`."""
    return functional.layer_norm(x.float(), (x.shape[-1],), weight.float(), bias.float(), eps).to(x.dtype)
