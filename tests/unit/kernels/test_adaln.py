"""Adaptive layer norm: output and every gradient against float64, at odd sizes and strides.

Shape legend: S tokens, B batch, W width.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sama_kernels.adaln import adaln
from tests.support.kernel_checks import BFLOAT16_ROUNDOFF, normal, relative_error

EPS = 1e-6
FLOAT32_LIMIT = 3e-6
"""Relative, L2."""


def exact_adaln(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """The definition in float64: centre, divide by the biased standard deviation, modulate per sample."""
    centred = x - x.sum(-1, keepdim=True) / x.shape[-1]
    variance = (centred * centred).sum(-1, keepdim=True) / x.shape[-1]
    return centred / (variance + EPS).sqrt() * (scale[None] + 1) + shift[None]


def leaves(num_tokens: int, batch: int, width: int) -> tuple[Tensor, Tensor]:
    """A token buffer of which x is a slice, and the six modulation vectors of which two are used."""
    buffer = normal(num_tokens + 2, batch, width, seed=1) * 3 + 1
    return buffer, normal(batch, 6, width, seed=2)


def run(function: object, buffer: Tensor, modulation: Tensor, upstream: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Output, and the gradients at the buffers: the views of a block's forward, strided as there."""
    buffer, modulation = buffer.clone().requires_grad_(), modulation.clone().requires_grad_()
    shift, scale = modulation.unbind(1)[1:3]
    assert not shift.is_contiguous() or shift.shape[0] == 1
    output = function(buffer[1:-1], shift, scale)
    output.backward(upstream.to(output.dtype))
    return output.detach(), buffer.grad, modulation.grad


@pytest.mark.parametrize(("num_tokens", "batch", "width"), [(7, 3, 13), (1, 1, 64), (33, 2, 129)])
def test_output_and_every_gradient(num_tokens: int, batch: int, width: int) -> None:
    buffer, modulation = leaves(num_tokens, batch, width)
    upstream = normal(num_tokens, batch, width, seed=3)
    ours = run(lambda *inputs: adaln(*inputs, eps=EPS), buffer, modulation, upstream)
    exact = run(exact_adaln, buffer.double(), modulation.double(), upstream.double())
    assert ours[0].dtype == torch.float32
    for name, mine, truth in zip(("output", "x", "modulation"), ours, exact, strict=True):
        assert relative_error(mine, truth) < FLOAT32_LIMIT, name


def test_bfloat16_tokens_are_rounded_once() -> None:
    """Statistics and modulation stay in float32: only the result, and x's gradient, are rounded."""
    buffer, modulation = leaves(9, 2, 65)
    buffer = (buffer + 30).bfloat16()  # a large mean: statistics in bfloat16 would lose everything
    upstream = normal(9, 2, 65, seed=3).bfloat16()
    ours = run(lambda *inputs: adaln(*inputs, eps=EPS), buffer, modulation, upstream)
    exact = run(exact_adaln, buffer.double(), modulation.double(), upstream.double())
    assert (ours[0].dtype, ours[1].dtype, ours[2].dtype) == (torch.bfloat16, torch.bfloat16, torch.float32)
    for mine, truth in zip(ours[:2], exact[:2], strict=True):
        allowed = BFLOAT16_ROUNDOFF * truth.abs() + 2e-5 * truth.abs().max()
        assert bool(((mine.double() - truth).abs() <= allowed).all())
    assert relative_error(ours[2], exact[2]) < 1e-5


def test_eps_is_used() -> None:
    constant = torch.full((2, 1, 5), 7.0)
    shift = torch.arange(5.0)[None]
    assert torch.equal(adaln(constant, shift, torch.ones(1, 5), eps=EPS), shift.expand(2, 1, 5))
    small = torch.tensor([[[1e-3, -1e-3]]])
    zero = torch.zeros(1, 2)
    torch.testing.assert_close(adaln(small, zero, zero, eps=1e-6), torch.tensor([[[0.5**0.5, -(0.5**0.5)]]]))
