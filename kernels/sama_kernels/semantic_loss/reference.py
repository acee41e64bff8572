"""Plain torch semantic head and its L1 error."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import layer_norm, linear


def semantic_head_reference(
    hidden: Tensor, norm_weight: Tensor, norm_bias: Tensor, weight: Tensor, bias: Tensor, eps: float
) -> Tensor:
    """See `sama_kernels.semantic_loss.semantic_head`."""
    normed = layer_norm(hidden.float(), (hidden.shape[-1],), norm_weight.float(), norm_bias.float(), eps)
    return linear(normed.to(hidden.dtype), weight, bias)


def absolute_error_reference(predicted: Tensor, target: Tensor) -> Tensor:
    """Sums of absolute errors ``[B]`` float32 of ``[M, B, F]`` predictions in any dtype."""
    return (predicted.float() - target.float()).abs().sum(dim=(0, 2))
