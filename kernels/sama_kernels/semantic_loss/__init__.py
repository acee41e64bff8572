"""The semantic head (layer norm and projection) and its L1 error against the feature velocity."""

from __future__ import annotations

from torch import Tensor

from sama_kernels.dispatch import choose_backend
from sama_kernels.semantic_loss.reference import absolute_error_reference, semantic_head_reference


def semantic_head(
    hidden: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    eps: float,
    backend: str = "auto",
) -> Tensor:
    """Projects semantic positions of the last hidden state to semantic features.

    Args:
        hidden: ``[M, B, width]`` this rank's semantic positions; M may be 0.
        norm_weight: ``[width]``.
        norm_bias: ``[width]``.
        weight: ``[features, width]``.
        bias: ``[features]``.
        eps: Added to the variance.
        backend: ``auto``, ``triton`` or ``reference``.

    Returns:
        ``[M, B, features]`` in hidden's dtype.

    Source: SAMA section 3.3; ``SemanticDiffusionHead`` in Cynthiazxy123/SAMA@5c6bb5b.
    """
    if choose_backend("semantic_loss", backend, hidden.device.type) == "reference":
        return semantic_head_reference(hidden, norm_weight, norm_bias, weight, bias, eps)
    from sama_kernels.semantic_loss.autograd import semantic_head_triton

    return semantic_head_triton(hidden, norm_weight, norm_bias, weight, bias, eps)


def semantic_loss(
    hidden: Tensor,
    target: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    eps: float,
    backend: str = "auto",
) -> Tensor:
    """Sum of absolute errors of the semantic head over this rank's semantic positions.

    A sample's loss is the sum over ranks divided by (all its semantic tokens * features): each rank adds its share.

    Args:
        hidden: ``[M, B, width]`` this rank's semantic positions; M may be 0.
        target: ``[M, B, features]`` what the head should predict there.
        norm_weight: ``[width]``.
        norm_bias: ``[width]``.
        weight: ``[features, width]``.
        bias: ``[features]``.
        eps: Added to the variance.
        backend: ``auto``, ``triton`` or ``reference``.

    Returns:
        ``[B]`` float32 sums.

    Raises:
        ValueError: The target has another shape, or the backend cannot run here.
    """
    expected = (*hidden.shape[:2], weight.shape[0])
    if target.shape != expected:
        raise ValueError(f"semantic_loss: target {tuple(target.shape)} must be {expected}")
    predicted = semantic_head(hidden, norm_weight, norm_bias, weight, bias, eps=eps, backend=backend)
    if choose_backend("semantic_loss", backend, hidden.device.type) == "reference":
        return absolute_error_reference(predicted, target)
    from sama_kernels.semantic_loss.autograd import absolute_error_triton

    return absolute_error_triton(predicted, target)
