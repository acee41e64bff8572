"""How an operation lets its caller keep what it computed: for a backward pass that runs the forward pass again."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

Compute = Callable[[], tuple[Tensor, ...]]
"""Does the work; called without gradients being recorded."""

Keep = Callable[[Compute], tuple[Tensor, ...]]
"""Returns what a computation gives: by doing it, or because it was kept when it was done before."""


def compute_now(compute: Compute) -> tuple[Tensor, ...]:
    """The `Keep` of a forward pass that is never repeated."""
    return compute()
