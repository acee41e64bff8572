"""Which backend of attention is fastest on this device for a shape: tried once, on the shape itself."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sama_kernels.attention import attention, unavailable
from sama_kernels.dispatch import BUILT

_MOST_SCORES = 2**36
"""Queries x keys x heads of a trial: fewer heads rank the same, and a long sequence takes its time with each."""
_TRIALS = 3
_LARGEST_DIFFERENCES = {"output": 0.02, "gradient of q": 0.05, "gradient of k": 0.05, "gradient of v": 0.05}
"""Relative, L2, from torch's: two bfloat16 implementations stay well below, a broken one does not."""


@dataclass(frozen=True)
class AttentionShape:
    """What a call of attention looks like, on one rank.

    Attributes:
        queries, keys: Tokens.
        heads, head_dim: Of this rank.
        batch: Samples.
        dtype: ``bfloat16`` or another name of torch's.
    """

    queries: int
    keys: int
    heads: int
    head_dim: int
    batch: int
    dtype: str


@dataclass(frozen=True)
class Trial:
    """One backend on one shape.

    Attributes:
        backend: Its name.
        seconds: Forward and backward, the fastest trial; None: it did not run.
        reason: Why not.
        lasting: Whether it would be so another time; False where memory was short, which others may have taken.
    """

    backend: str
    seconds: float | None
    reason: str | None = None
    lasting: bool = True


def measure_backends(shape: AttentionShape, device: torch.device) -> list[Trial]:
    """Times every backend but the reference, forward and backward.

    Args:
        shape: Of the calls to come; a trial may have fewer heads.
        device: A CUDA device.

    Returns:
        One trial a backend, in the order of preference; a backend that is not available, fails or differs from
        torch's in its output or a gradient has no time.
    """
    inputs = _inputs(shape, device)
    upstream = attention(*inputs, backend="torch").detach()
    expected = _forward_backward("torch", inputs, upstream)
    trials = [_try(backend, inputs, upstream, expected) for backend in BUILT["attention"] if backend != "reference"]
    torch.cuda.empty_cache()
    return trials


def fastest(trials: list[Trial]) -> str:
    """The backend that took the least time."""
    timed = [(trial.seconds, trial.backend) for trial in trials if trial.seconds is not None]
    return min(timed)[1] if timed else "torch"


def _inputs(shape: AttentionShape, device: torch.device) -> list[Tensor]:
    heads = max(1, min(shape.heads, _MOST_SCORES // (shape.queries * shape.keys * shape.batch)))
    generator = torch.Generator(device).manual_seed(0)
    sizes = [(shape.batch, tokens, heads, shape.head_dim) for tokens in (shape.queries, shape.keys, shape.keys)]
    return [
        torch.randn(size, generator=generator, device=device, dtype=getattr(torch, shape.dtype)).requires_grad_()
        for size in sizes
    ]


def _try(backend: str, inputs: list[Tensor], upstream: Tensor, expected: tuple[Tensor, ...]) -> Trial:
    reason = unavailable(backend, inputs[0].device, inputs[0].dtype)
    if reason is not None:
        return Trial(backend, None, reason)
    try:
        reason = _differs(_forward_backward(backend, inputs, upstream), expected)
        if reason is not None:
            return Trial(backend, None, reason)
        return Trial(backend, min(_seconds(backend, inputs, upstream) for _ in range(_TRIALS)))
    except Exception as error:  # Whatever a library raises for a shape that it does not take.
        lines = str(error).strip().splitlines()
        lasting = not isinstance(error, torch.OutOfMemoryError)
        return Trial(backend, None, f"{type(error).__name__}: {lines[0] if lines else ''}", lasting)


def _differs(results: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> str | None:
    """The first result that is not torch's, in words; not a number never is."""
    for (name, limit), result, right in zip(_LARGEST_DIFFERENCES.items(), results, expected, strict=True):
        difference = ((result - right).float().norm() / right.float().norm()).item()
        if not difference < limit:
            return f"its {name} differs from torch's by {difference:.3g}"
    return None


def _forward_backward(backend: str, inputs: list[Tensor], upstream: Tensor) -> tuple[Tensor, ...]:
    """The output and the gradients of q, k and v."""
    output = attention(*inputs, backend=backend)
    return output.detach(), *torch.autograd.grad(output, inputs, upstream)


def _seconds(backend: str, inputs: list[Tensor], upstream: Tensor) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    _forward_backward(backend, inputs, upstream)
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / 1000
