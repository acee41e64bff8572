"""Attention: every backend's output and gradients against float64, in the layouts that the model passes.

Shape legend: S queries, L keys, B batch, h heads, D head dimension.
"""

from __future__ import annotations

import importlib.util
import math
from functools import partial

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from sama_kernels.attention import attention, measure, unavailable
from sama_kernels.attention.backends import BACKENDS as PAIRS
from sama_kernels.attention.measure import AttentionShape, fastest, measure_backends
from sama_kernels.dispatch import BUILT
from sama_kernels.keep import Compute
from tests.support.kernel_checks import BFLOAT16_ROUNDOFF, normal, relative_error
from tests.support.triton_checks import BACKENDS as WRITTEN_HERE
from tests.support.triton_checks import assert_as_exact_as_eager, needs_interpreter

pytestmark = pytest.mark.usefixtures("unwritten_is_nan")

BACKENDS = ["torch", *WRITTEN_HERE]
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


@pytest.mark.parametrize("backend", ["torch", pytest.param("triton", marks=needs_interpreter)])
def test_log_sum_exp(backend: str) -> None:
    """What backward needs; also what parts of the keys would be put together by."""
    q, kv, _ = inputs(37, 70, 2, 2, 32)
    k, v = (part.transpose(0, 1) for part in kv.unbind(-2))
    _, log_sum_exp, *_ = PAIRS[backend].forward(q.transpose(0, 1), k, v)
    exact = torch.einsum("ibhd,bjhd->bhij", q.double(), k.double()).div(math.sqrt(32)).logsumexp(-1)
    assert log_sum_exp.dtype == torch.float32
    assert relative_error(log_sum_exp, exact) < FLOAT32_LIMIT


@pytest.mark.gpu
@pytest.mark.parametrize("backend", [name for name in BUILT["attention"] if name != "reference"])
@pytest.mark.parametrize("sizes", [(1021, 1531, 2, 3, 128), (1021, 1021, 1, 2, 64), (3185, 512, 1, 5, 128)])
def test_bfloat16_is_as_exact_as_eager(backend: str, sizes: tuple[int, int, int, int, int]) -> None:
    reason = unavailable(backend, torch.device("cuda"), torch.bfloat16)
    if reason is not None:
        pytest.skip(reason)
    given = [tensor.bfloat16().cuda() for tensor in inputs(*sizes)]

    def eager(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Every intermediate in the inputs' type, as plain torch does it."""
        scores = (q.transpose(1, 2) * q.shape[-1] ** -0.5) @ k.permute(0, 2, 3, 1)
        return (scores.softmax(-1) @ v.transpose(1, 2)).transpose(1, 2)

    ours = partial(attention, backend=backend)
    assert_as_exact_as_eager(partial(run, ours), partial(run, eager), given, FLOAT32_LIMIT)


@pytest.mark.gpu
def test_every_available_backend_is_timed() -> None:
    device = torch.device("cuda")
    trials = measure_backends(AttentionShape(1021, 509, 4, 128, 1, "bfloat16"), device)
    assert [trial.backend for trial in trials] == [name for name in BUILT["attention"] if name != "reference"]
    for trial in trials:
        assert (trial.seconds is None) == (unavailable(trial.backend, device, torch.bfloat16) is not None), trial
    assert fastest(trials) in BUILT["attention"]


def test_a_backend_that_is_wrong_or_fails_gets_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    def attend(q: Tensor, k: Tensor, v: Tensor, backend: str) -> Tensor:
        if backend == "te":
            raise torch.OutOfMemoryError("somebody has the memory")
        if backend == "flash4":
            raise RuntimeError("no such shape\nand more")
        output = attention(q, k.detach() + 0.9 * (k - k.detach()) if backend == "cudnn" else k, v, backend="torch")
        return output * float("nan") if backend == "triton" else output

    monkeypatch.setattr(measure, "attention", attend)
    monkeypatch.setattr(measure, "unavailable", lambda *_: None)
    monkeypatch.setattr(measure, "_seconds", lambda *_: 0.5)
    trials = measure_backends(AttentionShape(13, 7, 2, 32, 1, "float32"), torch.device("cpu"))
    found = {trial.backend: trial for trial in trials}
    assert found["torch"].seconds == 0.5 and fastest(trials) == "torch"
    assert found["cudnn"].reason == "its gradient of k differs from torch's by 0.1"
    assert found["triton"].reason == "its output differs from torch's by nan"
    assert found["flash4"].reason == "RuntimeError: no such shape"
    assert [trial.backend for trial in trials if not trial.lasting] == ["te"]


@pytest.mark.parametrize(("backend", "package"), [("flash4", "flash-attn-4"), ("te", "transformer-engine")])
def test_an_absent_library_is_one_clear_line(backend: str, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    reason = unavailable(backend, torch.device("cpu"), torch.bfloat16)
    assert reason is not None and package in reason and "sama-mega[gpu]" in reason and "\n" not in reason


def test_float32_is_not_for_the_tensor_cores() -> None:
    reason = unavailable("cudnn", torch.device("cpu"), torch.float32)
    assert reason == "'cudnn' computes in bfloat16 or float16, not in float32: use torch"


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
