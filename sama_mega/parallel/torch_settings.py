"""Process-wide settings of torch that a recipe chooses."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from sama_mega.config import Recipe


def apply_torch_settings(recipe: Recipe) -> None:
    """Sets the number of threads and how float32 matrices are multiplied, for the whole process.

    Args:
        recipe: `train.cpu_threads` and `train.float32_matmul_precision` are read.
    """
    if recipe.train.cpu_threads is not None:
        torch.set_num_threads(recipe.train.cpu_threads)
    torch.set_float32_matmul_precision(recipe.train.float32_matmul_precision)
