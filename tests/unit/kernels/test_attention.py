"""Attention: every backend's output and gradients against float64, in the layouts that the model passes.

Shape legend: S queries, L keys, B batch, h heads, D head dimension.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from sama_kernels.attention import attention
from sama_kernels.dispatch import BUILT
from sama_kernels.keep import Compute
from tests.support.kernel_checks import BFLOAT16_ROUNDOFF, normal, relative_error

BACKENDS = BUILT["attention"]
FLOAT32_LIMIT = 3e-6
"""Relative, L2."""


def exact_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """One sample and one head at a time, exponentials written out."""
    output = torch.empty_like(q)
    for sample in range(q.shape[0]):
        for head in range(q.shape[2]):
            scores = q[sample, :, head] @ k[sample, :, head].T / math.sqrt(q.shape[-1])
            weights = (scores - scores.detach().amax(1, keepdim=True)).exp()
            output[sample, :, head] = weights @ v[sample, :, head] / weights.sum(1, keepdim=True)
    return output


def run(function: object, q: Tensor, kv: Tensor, upstream: Tensor) -> list[Tensor]:
    """``[S, B, h, D]`` and fused ``[L, B, h, 2, D]`` leaves, viewed as the model does -> output and gradients."""
    q, kv = q.clone().requires_grad_(), kv.clone().requires_grad_()
    k, v = kv.unbind(-2)
    output = function(q.transpose(0, 1), k.transpose(0, 1), v.transpose(0, 1))
    output.backward(upstream.to(output.dtype))
    return [output.detach(), q.grad, kv.grad]


def inputs(queries: int, keys: int, batch: int, heads: int, head_dim: int) -> tuple[Tensor, Tensor, Tensor]:
    q, kv = normal(queries, batch, heads, head_dim, seed=1), normal(keys, batch, heads, 2, head_dim, seed=2)
    return q, kv, normal(batch, queries, heads, head_dim, seed=3)


@pytest.mark.parametrize("backend", ["auto", *BACKENDS])
@pytest.mark.parametrize("sizes", [(7, 5, 2, 3, 32), (1, 13, 1, 1, 34), (67, 67, 1, 2, 128), (0, 3, 2, 1, 32)])
def test_output_and_every_gradient(backend: str, sizes: tuple[int, int, int, int, int]) -> None:
    given = inputs(*sizes)
    ours = run(lambda q, k, v: attention(q, k, v, backend=backend), *given)
    exact = run(exact_attention, *(tensor.double() for tensor in given))
    for name, mine, truth in zip(("output", "q", "kv"), ours, exact, strict=True):
        assert mine.dtype == torch.float32
        assert mine.shape == truth.shape
        assert not truth.norm() or relative_error(mine, truth) < FLOAT32_LIMIT, name
        assert truth.norm() or not mine.norm(), name


def test_bfloat16_reference_is_rounded_once() -> None:
    given = tuple(tensor.bfloat16() for tensor in inputs(9, 11, 2, 2, 32))
    ours = run(lambda q, k, v: attention(q, k, v, backend="reference"), *given)
    exact = run(exact_attention, *(tensor.double() for tensor in given))
    for mine, truth in zip(ours, exact, strict=True):
        assert mine.dtype == torch.bfloat16
        allowed = BFLOAT16_ROUNDOFF * truth.abs() + 1e-5 * truth.abs().max()
        assert bool(((mine.double() - truth).abs() <= allowed).all())


def test_bfloat16_fast_backend_adds_little_to_the_rounding() -> None:
    given = tuple(tensor.bfloat16() for tensor in inputs(65, 77, 2, 2, 64))
    ours = run(lambda q, k, v: attention(q, k, v, backend="torch"), *given)
    exact = run(exact_attention, *(tensor.double() for tensor in given))
    for mine, truth in zip(ours, exact, strict=True):
        assert mine.dtype == torch.bfloat16
        assert relative_error(mine, truth) < BFLOAT16_ROUNDOFF


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_zero_query_averages_all_values(backend: str) -> None:
    """What zero rotary factors do to semantic tokens."""
    q, kv, _ = inputs(3, 8, 2, 2, 32)
    k, v = (part.transpose(0, 1) for part in kv.unbind(-2))
    output = attention(torch.zeros_like(q).transpose(0, 1), k, v, backend=backend)
    torch.testing.assert_close(output, v.mean(1, keepdim=True).expand_as(output), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_huge_scores_stay_finite(backend: str) -> None:
    q, kv, _ = inputs(3, 8, 1, 1, 32)
    k, v = (part.transpose(0, 1) for part in kv.unbind(-2))
    output = attention(1e4 * q.transpose(0, 1), k, v, backend=backend)
    assert bool(output.isfinite().all())


def test_torch_gives_what_its_own_function_gives() -> None:
    *given, upstream = inputs(9, 11, 2, 3, 32)
    own = run(
        lambda *qkv: scaled_dot_product_attention(*(x.transpose(1, 2) for x in qkv)).transpose(1, 2), *given, upstream
    )
    ours = run(lambda *qkv: attention(*qkv, backend="torch"), *given, upstream)
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(ours, own, strict=True))


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_repeated_pass_uses_what_was_kept(backend: str) -> None:
    *given, upstream = inputs(9, 11, 2, 3, 32)
    kept: list[tuple[Tensor, ...]] = []

    def remember(compute: Compute) -> tuple[Tensor, ...]:
        kept.append(tuple(result.detach() for result in compute()))
        return kept[-1]

    def recall(compute: Compute) -> tuple[Tensor, ...]:
        return kept[-1]

    first = run(lambda *qkv: attention(*qkv, backend=backend, keep=remember), *given, upstream)
    again = run(lambda *qkv: attention(*qkv, backend=backend, keep=recall), *given, upstream)
    assert len(kept) == 1 and all(torch.equal(one, other) for one, other in zip(first, again, strict=True))
