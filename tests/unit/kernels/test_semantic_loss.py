"""Semantic head and its L1 error: outputs and every gradient against float64; shares that add up; empty shares.

Shape legend: M semantic positions, B batch, W width, F features.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

from sama_kernels.semantic_loss import autograd, kernel, semantic_head, semantic_loss
from tests.support.kernel_checks import BFLOAT16_ROUNDOFF, normal, relative_error
from tests.support.triton_checks import BACKENDS, assert_as_exact_as_eager, needs_interpreter, plant

pytestmark = pytest.mark.usefixtures("unwritten_is_nan")

EACH_BACKEND = pytest.mark.parametrize("backend", BACKENDS)
SIZES = [(5, 3, 17, 7), (1, 1, 64, 48), (41, 2, 33, 29)]

EPS = 1e-6
FLOAT32_LIMIT = 3e-6
"""Relative, L2."""
NAMES = ("hidden", "norm_weight", "norm_bias", "weight", "bias")


def exact_head(hidden: Tensor, norm_weight: Tensor, norm_bias: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    centred = hidden - hidden.mean(-1, keepdim=True)
    normed = centred / ((centred * centred).mean(-1, keepdim=True) + EPS).sqrt()
    return torch.einsum("mbw,fw->mbf", normed * norm_weight + norm_bias, weight) + bias


def exact_loss(hidden: Tensor, target: Tensor, *weights: Tensor) -> Tensor:
    return torch.stack([(exact_head(hidden, *weights) - target)[:, b].abs().sum() for b in range(hidden.shape[1])])


def inputs(num_semantic: int, batch: int, width: int, features: int) -> list[Tensor]:
    """A hidden buffer whose middle is semantic, then the four parameters."""
    return [
        normal(num_semantic + 3, batch, width, seed=1) * 2,
        1 + 0.1 * normal(width, seed=2),
        0.1 * normal(width, seed=3),
        normal(features, width, seed=4) / width**0.5,
        0.1 * normal(features, seed=5),
    ]


def run(function: Callable[..., Tensor], given: list[Tensor], upstream: Tensor) -> dict[str, Tensor]:
    """Output and the gradient of every leaf; the hidden positions are a slice of the residual stream."""
    copies = [tensor.clone().requires_grad_() for tensor in given]
    output = function(copies[0][1:-2], *copies[1:])
    output.backward(upstream.to(output.dtype))
    return {"output": output.detach(), **dict(zip(NAMES, (copy.grad for copy in copies), strict=True))}


@EACH_BACKEND
@pytest.mark.parametrize("sizes", SIZES)
def test_head_output_and_every_gradient(backend: str, sizes: tuple[int, int, int, int]) -> None:
    given, upstream = inputs(*sizes), normal(sizes[0], sizes[1], sizes[3], seed=6)
    ours = run(partial(semantic_head, eps=EPS, backend=backend), given, upstream)
    exact = run(exact_head, [tensor.double() for tensor in given], upstream.double())
    for name, truth in exact.items():
        assert relative_error(ours[name], truth) < FLOAT32_LIMIT, name


@EACH_BACKEND
@pytest.mark.parametrize("sizes", SIZES)
def test_loss_and_every_gradient(backend: str, sizes: tuple[int, int, int, int]) -> None:
    check_loss(backend, *sizes)


def check_loss(backend: str, num_semantic: int, batch: int, width: int, features: int) -> None:
    given, upstream = inputs(num_semantic, batch, width, features), normal(batch, seed=6)
    # As the model passes it: the whole target [B, M, F], transposed and cut to this rank's positions.
    whole = normal(batch, num_semantic + 4, features, seed=7)
    target = whole.transpose(0, 1)[2 : 2 + num_semantic]
    ours = run(
        lambda hidden, *weights: semantic_loss(hidden, target, *weights, eps=EPS, backend=backend), given, upstream
    )
    exact = run(
        lambda hidden, *weights: exact_loss(hidden, target.double(), *weights),
        [tensor.double() for tensor in given],
        upstream.double(),
    )
    assert ours["output"].dtype == torch.float32
    for name, truth in exact.items():
        assert relative_error(ours[name], truth) < FLOAT32_LIMIT, name


BUGS = {
    "signed errors": ("tl.abs(tail)", "tail"),
    "a dropped last position": ("num_rows, tl.num", "num_rows - 1, tl.num"),
    "signs of the other kind": ("(tail > 0).to(tl.float32) - (tail < 0)", "(tail < 0).to(tl.float32) - (tail > 0)"),
    "another position's target": ("target + token * target_token_stride", "target"),
    "half a sum": ("tl.sum(sum_head) + tl.sum(sum_tail)", "tl.sum(sum_head)"),
}


@needs_interpreter
@pytest.mark.parametrize("bug", BUGS)
def test_a_kernel_with_a_bug_fails(bug: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch, tmp_path, kernel, autograd, *BUGS[bug])
    with pytest.raises(AssertionError):
        check_loss("triton", 5, 3, 17, 7)


@EACH_BACKEND
def test_the_target_has_a_gradient_too(backend: str) -> None:
    given, target = inputs(5, 2, 17, 7), normal(5, 2, 7, seed=7).requires_grad_()
    semantic_loss(given[0][1:-2], target, *given[1:], eps=EPS, backend=backend).sum().backward()
    predicted = semantic_head(given[0][1:-2], *given[1:], eps=EPS, backend=backend)
    assert torch.equal(target.grad, (target.detach() - predicted).sign())


@pytest.mark.gpu
def test_bfloat16_loss_is_as_exact_as_eager() -> None:
    """The weights' gradients are sums of signs, which flip where rounding moves a prediction over its target."""
    given = [tensor.bfloat16().cuda() for tensor in inputs(257, 2, 5120, 1152)]
    target = normal(257, 2, 1152, seed=7).cuda()

    def results(backend: str, *tensors: Tensor) -> list[Tensor]:
        exactly = tensors[0].dtype == torch.float64
        loss = exact_loss if exactly else partial(semantic_loss, eps=EPS, backend=backend)
        wanted = target.double() if exactly else target
        return list(run(lambda hidden, *weights: loss(hidden, wanted, *weights), list(tensors), upstream).values())

    upstream = torch.ones(2, device="cuda")
    assert_as_exact_as_eager(partial(results, "triton"), partial(results, "reference"), given, FLOAT32_LIMIT)


@EACH_BACKEND
def test_shares_add_up_to_the_whole(backend: str) -> None:
    """Errors are sums, not means: ranks hold different numbers of semantic positions."""
    hidden, *weights = inputs(8, 2, 17, 7)
    target = normal(8, 2, 7, seed=7)
    tokens = hidden[1:-2]
    share = partial(semantic_loss, eps=EPS, backend=backend)
    whole = share(tokens, target, *weights)
    parts = [share(tokens[a:b], target[a:b], *weights) for a, b in ((0, 3), (3, 3), (3, 8))]
    torch.testing.assert_close(sum(parts), whole)
    assert torch.equal(parts[1], torch.zeros(2))


@EACH_BACKEND
def test_an_empty_share_still_has_every_gradient(backend: str) -> None:
    """A rank without semantic positions must reach the gradient reduction with zeros, not with nothing."""
    given = [tensor.requires_grad_() for tensor in inputs(5, 2, 17, 7)]
    semantic_loss(given[0][:0], torch.zeros(0, 2, 7), *given[1:], eps=EPS, backend=backend).sum().backward()
    for name, tensor in zip(NAMES, given, strict=True):
        assert tensor.grad is not None, name
        assert not tensor.grad.any(), name


def test_bfloat16_loss_is_summed_in_float32() -> None:
    """The prediction may be rounded (a matrix product's output is), its error and the sum may not."""
    given = [tensor.bfloat16() for tensor in inputs(65, 2, 65, 96)]
    target = normal(65, 2, 96, seed=7)
    ours = run(lambda hidden, *weights: semantic_loss(hidden, target, *weights, eps=EPS), given, torch.ones(2))
    exact = run(
        lambda hidden, *weights: exact_loss(hidden, target.double(), *weights),
        [tensor.double() for tensor in given],
        torch.ones(2).double(),
    )
    assert ours["output"].dtype == torch.float32
    # Thousands of rounding errors of both signs: a bfloat16 sum would be off by up to its roundoff.
    assert relative_error(ours["output"], exact["output"]) < BFLOAT16_ROUNDOFF / 16
    # L1's gradient is a sign: it flips where rounding moves a prediction over its target.
    for name in NAMES:
        assert ours[name].dtype == torch.bfloat16
        assert relative_error(ours[name], exact[name]) < 0.1, name
    predicted = run(lambda *inputs: semantic_head(*inputs, eps=EPS), given, torch.ones(65, 2, 96))["output"]
    exact_predicted = exact_head(given[0][1:-2].double(), *(tensor.double() for tensor in given[1:]))
    assert predicted.dtype == torch.bfloat16
    assert relative_error(predicted, exact_predicted) < BFLOAT16_ROUNDOFF


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_target_of_another_shape_is_refused(backend: str) -> None:
    hidden, weight = normal(3, 2, 8), normal(5, 8)
    with pytest.raises(ValueError, match=r"target \(3, 2, 4\) must be \(3, 2, 5\)"):
        semantic_loss(hidden, normal(3, 2, 4), normal(8), normal(8), weight, normal(5), eps=1e-6, backend=backend)
