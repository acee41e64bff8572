"""One autograd function for every backend: what attention saves for its backward pass, and what its caller may keep."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sama_kernels.keep import Keep


@dataclass(frozen=True)
class Backend:
    """What computes attention, as two functions that record no gradients.

    Attributes:
        forward: ``(q, k, v)``, ``[B, S or L, h, D]`` each -> the output ``[B, S, h, D]`` in their dtype, and what
            backward needs besides, log-sum-exps among it.
        backward: ``(gradient of the output, q, k, v, output, *what else forward gave)`` -> gradients of q, k, v.
    """

    forward: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, ...]]
    backward: Callable[..., tuple[Tensor, Tensor, Tensor]]


class Attention(torch.autograd.Function):
    """Attention by one backend.

    Args of `apply`:
        q: ``[B, S, h, D]``.
        k: ``[B, L, h, D]``.
        v: ``[B, L, h, D]``.
        backend: What computes it.
        keep: Of all that its forward function gives.

    Returns:
        ``[B, S, h, D]``.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, backend: Backend, keep: Keep) -> Tensor:
        """See the class."""
        output, *rest = keep(lambda: backend.forward(q, k, v))
        ctx.save_for_backward(q, k, v, output, *rest)
        ctx.backend = backend
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """See the class."""
        return *ctx.backend.backward(gradients[0], *ctx.saved_tensors), None, None
