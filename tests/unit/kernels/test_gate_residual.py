"""Gated residual: output and every gradient against float64, at odd sizes and strides."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sama_kernels.gate_residual import gate_residual
from tests.support.kernel_checks import BFLOAT16_ROUNDOFF, normal, relative_error

FLOAT32_LIMIT = 1e-6
"""Relative, L2."""


def exact_gate_residual(x: Tensor, branch: Tensor, gate: Tensor) -> Tensor:
    return x + torch.einsum("bw,sbw->sbw", gate, branch)


def run(function: object, x: Tensor, branch: Tensor, modulation: Tensor, upstream: Tensor) -> list[Tensor]:
    """Output and all gradients; x is every second token of a buffer, branch transposed, the gate a strided row."""
    x, branch, modulation = (tensor.clone().requires_grad_() for tensor in (x, branch, modulation))
    output = function(x[::2], branch.transpose(0, 1), modulation.unbind(1)[2])
    output.backward(upstream.to(output.dtype))
    return [output.detach(), x.grad, branch.grad, modulation.grad]


def inputs(num_tokens: int, batch: int, width: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return (
        normal(2 * num_tokens, batch, width, seed=1),
        normal(batch, num_tokens, width, seed=2),
        normal(batch, 6, width, seed=3),
        normal(num_tokens, batch, width, seed=4),
    )


@pytest.mark.parametrize(("num_tokens", "batch", "width"), [(5, 3, 17), (1, 1, 2), (31, 2, 127)])
def test_output_and_every_gradient(num_tokens: int, batch: int, width: int) -> None:
    given = inputs(num_tokens, batch, width)
    ours = run(gate_residual, *given)
    exact = run(exact_gate_residual, *(tensor.double() for tensor in given))
    for name, mine, truth in zip(("output", "x", "branch", "gate"), ours, exact, strict=True):
        assert mine.dtype == torch.float32
        assert relative_error(mine, truth) < FLOAT32_LIMIT, name


def test_bfloat16_tokens_are_rounded_once() -> None:
    """In bfloat16 a branch much smaller than x would be lost before the sum, and the gate rounded first."""
    x, branch, modulation, upstream = inputs(9, 2, 33)
    given = (x.bfloat16(), branch.bfloat16(), modulation, upstream.bfloat16())
    ours = run(gate_residual, *given)
    exact = run(exact_gate_residual, *(tensor.double() for tensor in given))
    assert [tensor.dtype for tensor in ours] == [torch.bfloat16] * 3 + [torch.float32]
    for mine, truth in zip(ours[:3], exact[:3], strict=True):
        allowed = BFLOAT16_ROUNDOFF * truth.abs() + 1e-6 * truth.abs().max()
        assert bool(((mine.double() - truth).abs() <= allowed).all())
    assert relative_error(ours[3], exact[3]) < FLOAT32_LIMIT


def test_x_is_left_alone() -> None:
    x, branch = normal(3, 2, 4), normal(3, 2, 4, seed=1)
    before = x.clone()
    output = gate_residual(x, branch, torch.ones(2, 4))
    assert torch.equal(x, before)
    assert output.data_ptr() != x.data_ptr()
    assert torch.equal(gate_residual(x, branch, torch.zeros(2, 4)), x)
