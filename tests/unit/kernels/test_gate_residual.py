"""Residual sums, alone and with the norm that follows: results and gradients against float64, at odd strides."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

from sama_kernels.gate_residual import autograd, gate_residual, gate_residual_norm, kernel, residual_adaln
from tests.support.kernel_checks import BFLOAT16_ROUNDOFF, normal, relative_error
from tests.support.triton_checks import BACKENDS, assert_as_exact_as_eager, needs_interpreter, plant

pytestmark = pytest.mark.usefixtures("unwritten_is_nan")

EPS = 1e-6

FLOAT32_LIMIT = 1e-6
"""Relative, L2."""
NORM_LIMIT = 3e-6
"""The same behind a norm."""
SIZES = [(5, 3, 17), (1, 1, 2), (31, 2, 127)]
NORM_SIZES = [(5, 3, 17), (1, 1, 64), (31, 2, 127)]


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


def check_gate(backend: str, num_tokens: int, batch: int, width: int) -> None:
    given = inputs(num_tokens, batch, width)
    ours = run(partial(gate_residual, backend=backend), *given)
    exact = run(exact_gate_residual, *(tensor.double() for tensor in given))
    for name, mine, truth in zip(("output", "x", "branch", "gate"), ours, exact, strict=True):
        assert mine.dtype == torch.float32
        assert relative_error(mine, truth) < FLOAT32_LIMIT, name


def exact_norm(x: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / ((centred * centred).mean(-1, keepdim=True) + EPS).sqrt()


def exact_gate_residual_norm(
    x: Tensor, branch: Tensor, modulation: Tensor, weight: Tensor, bias: Tensor
) -> tuple[Tensor, Tensor]:
    residual = exact_gate_residual(x, branch, modulation[:, 2])
    return residual, exact_norm(residual) * weight + bias


def exact_residual_adaln(x: Tensor, branch: Tensor, modulation: Tensor) -> tuple[Tensor, Tensor]:
    residual = x + branch
    return residual, exact_norm(residual) * (1 + modulation[:, 4]) + modulation[:, 3]


def our_gate_residual_norm(backend: str, x: Tensor, branch: Tensor, modulation: Tensor, *affine: Tensor) -> object:
    return gate_residual_norm(x, branch, modulation[:, 2], *affine, eps=EPS, backend=backend)


def our_residual_adaln(backend: str, x: Tensor, branch: Tensor, modulation: Tensor) -> object:
    return residual_adaln(x, branch, modulation[:, 3], modulation[:, 4], eps=EPS, backend=backend)


FUSED = {
    "gate_residual_norm": (our_gate_residual_norm, exact_gate_residual_norm),
    "residual_adaln": (our_residual_adaln, exact_residual_adaln),
}


def run_fused(function: object, *given: Tensor) -> list[Tensor]:
    """Two upstream gradients come last. x is every second token of a buffer, branch transposed -> both results, grads.

    A norm's gradient is what a cancellation leaves: the second result's share is the larger one.
    """
    *given, upstream, upstream_normed = given
    copies = [tensor.clone().requires_grad_() for tensor in given]
    results = function(copies[0][::2], copies[1].transpose(0, 1), *copies[2:])
    torch.autograd.backward(results, [upstream.to(results[0].dtype), 3 * upstream_normed.to(results[1].dtype)])
    return [*(result.detach() for result in results), *(copy.grad for copy in copies)]


def fused_inputs(name: str, num_tokens: int, batch: int, width: int) -> list[Tensor]:
    *given, upstream = inputs(num_tokens, batch, width)
    if name == "gate_residual_norm":
        given += [1 + normal(width, seed=5), normal(width, seed=6)]
    return [*given, upstream, normal(num_tokens, batch, width, seed=7)]


def check_fused(name: str, backend: str, num_tokens: int, batch: int, width: int) -> None:
    given = fused_inputs(name, num_tokens, batch, width)
    ours = run_fused(partial(FUSED[name][0], backend), *given)
    exact = run_fused(FUSED[name][1], *(tensor.double() for tensor in given))
    for place, (mine, truth) in enumerate(zip(ours, exact, strict=True)):
        assert mine.dtype == torch.float32
        assert relative_error(mine, truth) < NORM_LIMIT, place


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("sizes", SIZES)
def test_output_and_every_gradient(backend: str, sizes: tuple[int, int, int]) -> None:
    check_gate(backend, *sizes)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("sizes", NORM_SIZES)
@pytest.mark.parametrize("name", FUSED)
def test_fused_results_and_every_gradient(name: str, backend: str, sizes: tuple[int, int, int]) -> None:
    check_fused(name, backend, *sizes)


BUGS = {
    "gate_residual": {
        "a branch without its gate": ("head += gate_head * branch_head", "head += branch_head"),
        "a dropped last token": ("num_tokens, tl.num", "num_tokens - 1, tl.num"),
        "the first sample's gate for all": ("gate + sample * gate_stride", "gate"),
        "a gate's gradient without the tail": ("sum_tail += tail * branch_tail", "sum_tail += 0"),
    },
    "gate_residual_norm": {
        "a residual whose later gradient is lost": ("dx_head += later_head", "dx_head += 0"),
        "a gate's gradient before the norm's": ("gate_sum_head += dx_head", "gate_sum_head += later_head"),
        "sums in one place": ("sums + 2 * WIDTH", "sums"),
    },
    "residual_adaln": {
        "a scale without its one": ("scale_tail += ADDED", "scale_tail += 0"),
        "another token's statistics": ("tl.load(statistics + row * 2)", "tl.load(statistics)"),
        "a branch that is not added": ("head += branch_head", "head += 0"),
    },
}


@needs_interpreter
@pytest.mark.parametrize(("name", "bug"), [(name, bug) for name, bugs in BUGS.items() for bug in bugs])
def test_a_kernel_with_a_bug_fails(name: str, bug: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch, tmp_path, kernel, autograd, *BUGS[name][bug])
    with pytest.raises(AssertionError):
        check_gate("triton", 5, 3, 17) if name == "gate_residual" else check_fused(name, "triton", 5, 3, 17)


@needs_interpreter
def test_the_fused_norm_is_that_of_the_rounded_residual() -> None:
    """Backward normalises the stored row again; in float16 the unrounded one is another."""
    x, branch, modulation, _ = inputs(9, 2, 33)
    x, branch = x[:9].half(), branch.transpose(0, 1).half()
    weight, bias = normal(33, seed=5), normal(33, seed=6)
    ours = gate_residual_norm(x, branch, modulation[:, 2], weight, bias, eps=EPS, backend="triton")
    plain = gate_residual_norm(x, branch, modulation[:, 2], weight, bias, eps=EPS, backend="reference")
    assert torch.equal(ours[0], plain[0])
    assert relative_error(ours[1], plain[1].double()) < 1e-4


@pytest.mark.parametrize("backend", BACKENDS)
def test_fused_and_separate_agree(backend: str) -> None:
    x, branch, modulation, _ = inputs(5, 2, 16)
    x, branch, gate = x[:5], branch.transpose(0, 1), modulation[:, 2]
    residual, _ = gate_residual_norm(x, branch, gate, torch.ones(16), torch.zeros(16), eps=EPS, backend=backend)
    torch.testing.assert_close(residual, gate_residual(x, branch, gate, backend=backend))
    residual, _ = residual_adaln(x, branch, gate, gate, eps=EPS, backend=backend)
    assert torch.equal(residual, x + branch)


@pytest.mark.gpu
@pytest.mark.parametrize("sizes", [(1021, 3, 5120), (997, 2, 1536), (131, 1, 77)])
@pytest.mark.parametrize("name", ["gate_residual", *FUSED])
def test_bfloat16_is_as_exact_as_eager(name: str, sizes: tuple[int, int, int]) -> None:
    given = list(inputs(*sizes)) if name == "gate_residual" else fused_inputs(name, *sizes)
    # The modulation stays in float32.
    given = [(tensor if place == 2 else tensor.bfloat16()).cuda() for place, tensor in enumerate(given)]

    def results(backend: str, *tensors: Tensor) -> list[Tensor]:
        exactly = tensors[0].dtype == torch.float64
        if name == "gate_residual":
            return run(exact_gate_residual if exactly else partial(gate_residual, backend=backend), *tensors)
        ours, exact = FUSED[name]
        return run_fused(exact if exactly else partial(ours, backend), *tensors)

    assert_as_exact_as_eager(partial(results, "triton"), partial(results, "reference"), given, NORM_LIMIT)


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
