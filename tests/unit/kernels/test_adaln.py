"""Adaptive and affine layer norm: output and every gradient against float64, at odd sizes and strides.

Shape legend: S tokens, B batch, W width.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

from sama_kernels import row_tiles
from sama_kernels.adaln import adaln, autograd, kernel, layer_norm
from tests.support.kernel_checks import BFLOAT16_ROUNDOFF, normal, relative_error
from tests.support.triton_checks import BACKENDS, assert_as_exact_as_eager, needs_interpreter, plant

pytestmark = pytest.mark.usefixtures("unwritten_is_nan")

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


def check_adaln(backend: str, num_tokens: int, batch: int, width: int) -> None:
    buffer, modulation = leaves(num_tokens, batch, width)
    upstream = normal(num_tokens, batch, width, seed=3)
    ours = run(partial(adaln, eps=EPS, backend=backend), buffer, modulation, upstream)
    exact = run(exact_adaln, buffer.double(), modulation.double(), upstream.double())
    assert ours[0].dtype == torch.float32
    for name, mine, truth in zip(("output", "x", "modulation"), ours, exact, strict=True):
        assert relative_error(mine, truth) < FLOAT32_LIMIT, name


def exact_layer_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    zeros = torch.zeros(x.shape[1:], dtype=x.dtype)
    return exact_adaln(x, zeros, zeros) * weight + bias


def check_layer_norm(backend: str, num_tokens: int, batch: int, width: int) -> None:
    """x is a batch-first buffer seen tokens first."""
    given = [normal(batch, num_tokens, width, seed=1) + 2, 1 + normal(width, seed=2), normal(width, seed=3)]
    upstream = normal(batch, num_tokens, width, seed=4)

    def results(function: object, *tensors: Tensor) -> list[Tensor]:
        copies = [tensor.clone().requires_grad_() for tensor in tensors]
        output = function(copies[0].transpose(0, 1), *copies[1:])
        output.backward(upstream.to(output.dtype).transpose(0, 1))
        return [output.detach(), *(copy.grad for copy in copies)]

    ours = results(partial(layer_norm, eps=EPS, backend=backend), *given)
    exact = results(exact_layer_norm, *(tensor.double() for tensor in given))
    for name, mine, truth in zip(("output", "x", "weight", "bias"), ours, exact, strict=True):
        assert relative_error(mine, truth) < FLOAT32_LIMIT, name


SIZES = [(7, 3, 13), (1, 1, 64), (33, 2, 129), (5, 2, 1531)]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("sizes", SIZES)
def test_output_and_every_gradient(backend: str, sizes: tuple[int, int, int]) -> None:
    check_adaln(backend, *sizes)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("sizes", SIZES)
def test_layer_norm_output_and_every_gradient(backend: str, sizes: tuple[int, int, int]) -> None:
    check_layer_norm(backend, *sizes)


BUGS = {
    "lanes past the width in the variance": (
        row_tiles,
        "tl.where(tail < WIDTH, tail_values - mean, 0.0)",
        "tail_values - mean",
    ),
    "a gradient that forgets the deviation": (row_tiles, "- head_normed * projection", ""),
    "a gradient that forgets the mean": (row_tiles, "tail_grad - grad_mean", "tail_grad"),
    "a dropped last token": (kernel, "num_tokens, tl.num", "num_tokens - 1, tl.num"),
    "the first sample's scale for all": (kernel, "multiplier + sample * multiplier_stride", "multiplier"),
    "a shift's gradient without the tail": (kernel, "offset_tail += dy_tail", "offset_tail += 0"),
    "sums in one place": (kernel, "sums + WIDTH", "sums"),
}


@needs_interpreter
@pytest.mark.parametrize("bug", BUGS)
def test_a_kernel_with_a_bug_fails(bug: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module, right, wrong = BUGS[bug]
    plant(monkeypatch, tmp_path, module, kernel if module is row_tiles else autograd, right, wrong)
    with pytest.raises(AssertionError):
        check_adaln("triton", 7, 3, 13)


@needs_interpreter
def test_float16_tokens_are_rounded_once() -> None:
    buffer, modulation = leaves(9, 2, 65)
    upstream = normal(9, 2, 65, seed=3).half()
    ours = run(partial(adaln, eps=EPS, backend="triton"), buffer.half(), modulation, upstream)
    exact = run(exact_adaln, buffer.half().double(), modulation.double(), upstream.double())
    assert (ours[0].dtype, ours[1].dtype, ours[2].dtype) == (torch.float16, torch.float16, torch.float32)
    for mine, truth in zip(ours[:2], exact[:2], strict=True):
        assert bool(((mine.double() - truth).abs() <= 2**-11 * truth.abs() + 1e-5).all())
    assert relative_error(ours[2], exact[2]) < 1e-5


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_tokens_have_gradients_too(backend: str) -> None:
    """A rank without semantic tokens norms none, and still sums its gradient with the others'."""
    given = [normal(0, 2, 5), normal(5), normal(5)]
    given = [tensor.requires_grad_() for tensor in given]
    layer_norm(*given, eps=EPS, backend=backend).sum().backward()
    assert [tensor.grad.abs().sum().item() for tensor in given] == [0, 0, 0]


@pytest.mark.gpu
@pytest.mark.parametrize("sizes", [(1021, 3, 5120), (997, 2, 1536), (131, 1, 77)])
def test_bfloat16_is_as_exact_as_eager(sizes: tuple[int, int, int]) -> None:
    buffer, modulation = leaves(*sizes)
    given = [buffer.bfloat16().cuda(), modulation.cuda(), normal(*sizes, seed=3).bfloat16().cuda()]

    def results(backend: str, *tensors: Tensor) -> list[Tensor]:
        exactly = tensors[0].dtype == torch.float64
        return list(run(exact_adaln if exactly else partial(adaln, eps=EPS, backend=backend), *tensors))

    assert_as_exact_as_eager(partial(results, "triton"), partial(results, "reference"), given, FLOAT32_LIMIT)


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
