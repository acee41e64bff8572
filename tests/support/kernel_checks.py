"""What the tests of the kernels share: inputs, and one error measure."""

from __future__ import annotations

import torch
from torch import Tensor

BFLOAT16_ROUNDOFF = 2.0**-8
"""Relative, of one rounding: half the distance between neighbours."""


def normal(*shape: int, seed: int = 0) -> Tensor:
    """Standard normal numbers, float32, the same at every call."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def relative_error(ours: Tensor, exact: Tensor) -> float:
    """||ours - exact|| / ||exact|| against a float64 tensor of the same shape."""
    assert ours.shape == exact.shape
    return ((ours.double() - exact).norm() / exact.norm()).item()
