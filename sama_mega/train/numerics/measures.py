"""What is measured of one tensor, with little memory beside it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

_ELEMENTS_AT_ONCE = 1 << 24


def max_abs(tensor: Tensor) -> Tensor:
    """Largest absolute value, a scalar of the tensor's dtype; NaN if any element is, zero where there is none."""
    tensor = tensor.detach()
    return torch.linalg.vector_norm(tensor, ord=math.inf) if tensor.numel() else tensor.new_zeros(())


def is_finite(tensor: Tensor) -> bool:
    """Whether every element is; waits for the device."""
    return math.isfinite(max_abs(tensor).item())


def largest(tensors: Sequence[Tensor]) -> float | None:
    """Largest absolute value of several tensors, NaN if any element is; None without tensors."""
    values = [max_abs(tensor).item() for tensor in tensors]
    if any(math.isnan(value) for value in values):
        return math.nan
    return max(values, default=None)


def count_not_finite(tensor: Tensor) -> int:
    """Elements that are NaN or infinite; waits for the device."""
    flat = tensor.detach().reshape(-1)
    return sum(part.numel() - int(part.isfinite().sum()) for part in flat.split(_ELEMENTS_AT_ONCE))


def rows_not_finite(tensor: Tensor, axis: int) -> list[int]:
    """Places along an axis at which any element is NaN or infinite."""
    return [place for place, part in enumerate(tensor.detach().unbind(axis)) if not is_finite(part)]
