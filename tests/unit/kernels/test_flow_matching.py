"""flow_matching: noise given and noise drawn, values, every gradient, and refusals."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

from sama_kernels.flow_matching import Address, add_noise, autograd, kernel, weighted_mse
from sama_kernels.philox import random_normal_batch
from tests.support.kernel_checks import normal, relative_error
from tests.support.triton_checks import BACKENDS, assert_as_exact_as_eager, needs_interpreter, plant

pytestmark = pytest.mark.usefixtures("unwritten_is_nan")

EACH_BACKEND = pytest.mark.parametrize("backend", BACKENDS)
FLOAT32_LIMIT = 1e-6
"""Relative, L2."""
ADDRESS = Address(seed=2**63 + 0xABCDEF0123, sample_indices=[2**40 + 9, 7, 1], epochs=[3, 2**31, 0], stream=2)


@EACH_BACKEND
def test_noise_levels_zero_and_one_are_the_ends(backend: str) -> None:
    x, noise = normal(3, 5, 7), normal(3, 5, 7, seed=1)
    noisy, velocity = add_noise(x, noise, torch.tensor([0.0, 1.0, 0.25]), backend=backend)
    assert torch.equal(noisy[0], x[0])
    assert torch.equal(noisy[1], noise[1])
    torch.testing.assert_close(noisy[2], 0.75 * x[2] + 0.25 * noise[2])
    assert torch.equal(velocity, noise - x)


@EACH_BACKEND
@pytest.mark.parametrize("shape", [(3, 5, 7), (3, 1), (3, 2, 1031), (3, 8, 4, 128)])
def test_drawn_noise_is_the_generators(backend: str, shape: tuple[int, ...]) -> None:
    """A kernel's logarithms and cosines may round otherwise; its integers may not: they make other numbers."""
    check_drawn(backend, shape)


def check_drawn(backend: str, shape: tuple[int, ...]) -> None:
    x = normal(*shape)
    noise = random_normal_batch(ADDRESS.seed, ADDRESS.sample_indices, ADDRESS.epochs, ADDRESS.stream, shape[1:])
    sigma = torch.tensor([1.0, 0.3, 0.7])
    noisy, velocity = add_noise(x, ADDRESS, sigma, backend=backend)
    level = sigma.view(-1, *[1] * (len(shape) - 1))
    torch.testing.assert_close(noisy, (1 - level) * x + level * noise, rtol=1e-6, atol=2e-6)
    torch.testing.assert_close(velocity, noise - x, rtol=1e-6, atol=2e-6)
    if backend == "reference":
        assert torch.equal(noisy[0], noise[0])


@EACH_BACKEND
def test_a_draw_does_not_depend_on_its_batch(backend: str) -> None:
    x, sigma = normal(3, 11), torch.full((3,), 0.5)
    alone = Address(ADDRESS.seed, [7], [2**31], ADDRESS.stream)
    whole = add_noise(x, ADDRESS, sigma, backend=backend)
    part = add_noise(x[1:2, :5], alone, sigma[:1], backend=backend)
    for every, some in zip(whole, part, strict=True):
        assert torch.equal(every[1:2, :5], some)


def test_bfloat16_is_computed_in_float32_and_rounded_once() -> None:
    x, noise = normal(2, 33).bfloat16(), normal(2, 33, seed=1)
    sigma = torch.tensor([0.99, 0.013])
    noisy, velocity = add_noise(x, noise, sigma)
    exact = (1 - sigma.double())[:, None] * x.double() + sigma.double()[:, None] * noise.double()
    assert noisy.dtype == torch.bfloat16
    assert float((noisy.double() - exact).abs().max()) <= float(exact.abs().max()) * 2**-8
    assert velocity.dtype == torch.float32


@needs_interpreter
def test_float16_is_computed_in_float32_and_rounded_once() -> None:
    x, noise, sigma = normal(2, 33).half(), normal(2, 33, seed=1).half(), torch.tensor([0.99, 0.013])
    for ours, plain in zip(
        *(add_noise(x, noise, sigma, backend=name) for name in ("triton", "reference")), strict=True
    ):
        assert ours.dtype == plain.dtype
        assert torch.equal(ours, plain)


@EACH_BACKEND
@pytest.mark.parametrize("shape", [(3, 2, 5), (2, 4099), (1, 3, 8, 1283)])
def test_error_and_every_gradient_match_the_formula(backend: str, shape: tuple[int, ...]) -> None:
    check_error(backend, shape)


def check_error(backend: str, shape: tuple[int, ...]) -> None:
    """The velocity is seen last axis first, as unpatchifying leaves it."""
    velocity, target = normal(*shape[::-1]), normal(*shape, seed=1)
    weight, upstream = torch.tensor([0.5, 2.0, 0.0])[: shape[0]], torch.tensor([1.0, -3.0, 2.0])[: shape[0]]

    def results(function: Callable[..., Tensor], *given: Tensor) -> list[Tensor]:
        copies = [tensor.clone().requires_grad_() for tensor in given]
        flipped = copies[0].permute(*range(len(shape) - 1, -1, -1))
        error = function(flipped, *copies[1:])
        error.backward(upstream.to(error.dtype))
        return [error.detach(), *(copy.grad for copy in copies)]

    def exact_error(velocity: Tensor, target: Tensor, weight: Tensor) -> Tensor:
        samples = zip(velocity, target, weight, strict=True)
        return torch.stack([((u - v) ** 2).sum() / u.numel() * w for u, v, w in samples])

    given = (velocity, target, weight)
    ours = results(lambda *tensors: weighted_mse(*tensors, backend=backend), *given)
    exact = results(exact_error, *(tensor.double() for tensor in given))
    for place, (mine, truth) in enumerate(zip(ours, exact, strict=True)):
        assert relative_error(mine, truth) < FLOAT32_LIMIT, place


@EACH_BACKEND
def test_no_weight_means_one(backend: str) -> None:
    velocity, target = normal(3, 7), normal(3, 7, seed=1)
    unweighted = weighted_mse(velocity, target, backend=backend)
    assert torch.equal(unweighted, weighted_mse(velocity, target, torch.ones(3), backend=backend))


BUGS = {
    "another sample's noise": ("words + sample * 5", "words", check_drawn, (3, 1031)),
    "numbers in another order": ("tl.interleave(n0, n2)", "tl.interleave(n0, n1)", check_drawn, (3, 1031)),
    "a stream that is not read": ("none + counter_1", "none", check_drawn, (3, 5)),
    "a uniform of zero": (
        "(radius_word >> _LOWEST_BITS) + 1",
        "(radius_word >> _LOWEST_BITS) + 9",
        check_drawn,
        (3, 1031),
    ),
    "a dropped tail": ("start, num_elements,", "start, num_elements - BLOCK,", check_error, (2, 4099)),
    "a gradient of the wrong sample": ("tl.load(factor + sample)", "tl.load(factor)", check_error, (3, 2, 5)),
}


@needs_interpreter
@pytest.mark.parametrize("bug", BUGS)
def test_a_kernel_with_a_bug_fails(bug: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right, wrong, check, shape = BUGS[bug]
    plant(monkeypatch, tmp_path, kernel, autograd, right, wrong)
    with pytest.raises(AssertionError):
        check("triton", shape)


@pytest.mark.gpu
def test_a_gpu_draws_the_same_noise() -> None:
    x, sigma = normal(3, 16, 1031), torch.tensor([1.0, 0.3, 0.7])
    plain = add_noise(x, ADDRESS, sigma, backend="reference")
    for ours, theirs in zip(add_noise(x.cuda(), ADDRESS, sigma.cuda(), backend="triton"), plain, strict=True):
        torch.testing.assert_close(ours.cpu(), theirs, rtol=1e-6, atol=2e-6)


@pytest.mark.gpu
def test_bfloat16_error_is_as_exact_as_eager() -> None:
    given = [normal(3, 16, 5003).bfloat16().cuda(), normal(3, 16, 5003, seed=1).cuda(), normal(3, seed=2).cuda()]

    def results(backend: str, *tensors: Tensor) -> list[Tensor]:
        copies = [tensor.clone().requires_grad_() for tensor in tensors]
        exactly = tensors[0].dtype == torch.float64
        if exactly:
            error = (copies[0] - copies[1]).square().mean((1, 2)) * copies[2]
        else:
            error = weighted_mse(*copies, backend=backend)
        error.sum().backward()
        return [error.detach(), *(copy.grad for copy in copies)]

    assert_as_exact_as_eager(partial(results, "triton"), partial(results, "reference"), given, FLOAT32_LIMIT)


def test_shapes_that_would_broadcast_are_refused() -> None:
    x = torch.zeros(2, 3)
    with pytest.raises(ValueError, match="shape of x"):
        add_noise(x, torch.zeros(1, 3), torch.zeros(2))
    with pytest.raises(ValueError, match="one value a sample"):
        add_noise(x, x, torch.zeros(1))
    with pytest.raises(ValueError, match="shape of velocity"):
        weighted_mse(x, torch.zeros(2, 1))
    with pytest.raises(ValueError, match="one value a sample"):
        weighted_mse(x, x, torch.zeros(()))


def test_a_backend_that_is_not_built_is_named() -> None:
    x = torch.zeros(1, 2)
    with pytest.raises(ValueError, match=r"cudnn.*flow_matching"):
        add_noise(x, x, torch.zeros(1), backend="cudnn")
