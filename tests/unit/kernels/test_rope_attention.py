"""Attention over turned q and k: output, log-sum-exp and every gradient against float64, and bugs that this must find.

Shape legend: S queries, L keys, B batch, h heads, D head dimension.
"""

from __future__ import annotations

from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sama_kernels.qk_norm_rope import RopeTables, build_rope_tables, rotation
from sama_kernels.rope_attention import Packing, autograd, kernel, launch, rope_attention
from tests.support.kernel_checks import normal, relative_error
from tests.support.triton_checks import BACKENDS, assert_as_exact_as_eager, needs_interpreter, plant

pytestmark = pytest.mark.usefixtures("unwritten_is_nan")

NAMES = ("output", "log-sum-exp", "grad q", "grad k", "grad v")
FLOAT32_LIMIT = 3e-6
"""Relative, L2."""


def tables(head_dim: int, first_token: int = 0, num_tokens: int | None = None, **options: Any) -> RopeTables:
    """24 source, 5 semantic and 60 target tokens: 89."""
    return build_rope_tables(
        head_dim, (2, 3, 4), 5, (3, 4, 5), first_token=first_token, num_tokens=num_tokens, **options
    )


def exactly_turned(x: Tensor, rope: RopeTables | None) -> Tensor:
    if rope is None:
        return x
    factors = rope.factors[: x.shape[1], None].to(torch.complex128)
    return torch.view_as_real(torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous()) * factors).flatten(-2)


def exact_attention(
    q: Tensor, k: Tensor, v: Tensor, starts: tuple[list[int], list[int]] | None
) -> tuple[Tensor, Tensor]:
    """float64, one sample at a time; q and k already turned."""
    if starts is not None:
        parts = [
            exact_attention(q[:, a:b], k[:, c:d], v[:, c:d], None)
            for (a, b), (c, d) in zip(pairwise(starts[0]), pairwise(starts[1]), strict=True)
        ]
        return torch.cat([part[0] for part in parts], 1), torch.cat([part[1] for part in parts], 2)
    scores = torch.einsum("bihd,bjhd->bhij", q, k) / q.shape[-1] ** 0.5
    return torch.einsum("bhij,bjhd->bihd", scores.softmax(-1), v), scores.logsumexp(-1)


def gradients(function: object, given: list[Tensor]) -> list[Tensor]:
    """Output, log-sum-exp and the gradients of q ``[S, B, h, D]`` and of k and v of a fused ``[L, B, h, 2, D]``."""
    q, kv = (tensor.clone().requires_grad_() for tensor in given[:2])
    output, lse = function(q.transpose(0, 1), *(part.transpose(0, 1) for part in kv.unbind(-2)))
    torch.autograd.backward([output, lse], [given[2].to(output.dtype), given[3].to(lse.dtype)])
    return [output.detach(), lse.detach(), q.grad, *kv.grad.unbind(-2)]


def inputs(queries: int, keys: int, batch: int, heads: int, head_dim: int) -> list[Tensor]:
    return [
        normal(queries, batch, heads, head_dim, seed=1),
        normal(keys, batch, heads, 2, head_dim, seed=2),
        normal(batch, queries, heads, head_dim, seed=3),
        normal(batch, heads, queries, seed=4),
    ]


def found_errors(
    backend: str,
    given: list[Tensor],
    q_rope: RopeTables | None,
    k_rope: RopeTables | None,
    packing: Packing | None = None,
) -> dict[str, float]:
    starts = None if packing is None else (packing.query_starts.tolist(), packing.key_starts.tolist())
    run = partial(rope_attention, query_rope=q_rope, key_rope=k_rope, packing=packing, backend=backend)
    ours = gradients(run, given)
    exact = gradients(
        lambda q, k, v: exact_attention(exactly_turned(q, q_rope), exactly_turned(k, k_rope), v, starts),
        [tensor.double() for tensor in given],
    )
    assert (ours[0].dtype, ours[1].dtype) == (given[0].dtype, torch.float32)
    return {name: relative_error(mine, truth) for name, mine, truth in zip(NAMES, ours, exact, strict=True)}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("sizes", "turn"),
    [
        ((89, 89, 2, 1, 32), True),
        ((89, 89, 1, 1, 46), True),
        ((67, 131, 1, 2, 128), False),
        ((1, 13, 1, 1, 96), False),
        ((64, 64, 1, 1, 64), False),
    ],
)
def test_output_log_sum_exp_and_every_gradient(backend: str, sizes: tuple[int, int, int, int, int], turn: bool) -> None:
    rope = tables(sizes[-1]) if turn else None
    found = found_errors(backend, inputs(*sizes), rope, rope)
    assert max(found.values()) < FLOAT32_LIMIT, found


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_stretch_of_queries_over_all_keys(backend: str) -> None:
    """A context rank's queries begin in the middle of the sequence."""
    found = found_errors(backend, inputs(40, 89, 1, 2, 32), tables(32, 49, 40), tables(32))
    assert max(found.values()) < FLOAT32_LIMIT, found


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_source_at_later_times(backend: str) -> None:
    """`model.roles: shifted_rope`: queries of the source's second half and of semantic tokens, over all keys."""
    shifted = {"source_time_offset": 3}
    found = found_errors(backend, inputs(17, 89, 1, 1, 32), tables(32, 12, 17, **shifted), tables(32, **shifted))
    assert max(found.values()) < FLOAT32_LIMIT, found


@pytest.mark.parametrize("backend", BACKENDS)
def test_packed_samples_attend_to_their_own_keys(backend: str) -> None:
    q_starts, k_starts = torch.tensor([0, 71, 72, 89]), torch.tensor([0, 5, 89, 96])
    packing = Packing(q_starts.int(), k_starts.int(), longest_query=71, longest_key=84)
    given = inputs(89, 96, 1, 2, 32)
    # Samples are stretches of the same tables; exact values are turned sample by sample too.
    found = found_errors(backend, given, None, None, packing)
    assert max(found.values()) < FLOAT32_LIMIT, found
    ours = rope_attention(
        *packed_views(given), query_rope=tables(32), key_rope=tables(32), packing=packing, backend=backend
    )
    alone = [
        rope_attention(q, k, v, query_rope=tables(32), key_rope=tables(32), backend="reference")
        for q, k, v in samples(given, q_starts.tolist(), k_starts.tolist())
    ]
    torch.testing.assert_close(ours[0], torch.cat([output for output, _ in alone], 1), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ours[1], torch.cat([lse for _, lse in alone], 2), rtol=1e-4, atol=1e-5)


def packed_views(given: list[Tensor]) -> tuple[Tensor, ...]:
    return given[0].transpose(0, 1), *(part.transpose(0, 1) for part in given[1].unbind(-2))


def samples(given: list[Tensor], q_starts: list[int], k_starts: list[int]) -> list[tuple[Tensor, ...]]:
    q, k, v = packed_views(given)
    pairs = zip(pairwise(q_starts), pairwise(k_starts), strict=True)
    return [(q[:, a:b], k[:, c:d], v[:, c:d]) for (a, b), (c, d) in pairs]


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_lies_after_the_real_tokens_is_not_read(backend: str) -> None:
    buffer = torch.full((1, 80, 2, 32), float("nan"))
    q, k, v = (buffer.clone() for _ in range(3))
    for place, x in enumerate((q, k, v)):
        x[:, :70] = normal(1, 70, 2, 32, seed=place)
        x.requires_grad_()
    output, _ = rope_attention(q[:, :66], k[:, :70], v[:, :70], query_rope=None, key_rope=None, backend=backend)
    output.sum().backward()
    for x, tokens in ((q, 66), (k, 70), (v, 70)):
        assert bool(x.grad.isfinite().all())
        assert not x.grad[:, tokens:].any()


@pytest.mark.parametrize("backend", BACKENDS)
def test_parts_of_the_keys_can_be_put_together(backend: str) -> None:
    """What context parallelism does; gradients pass through the log-sum-exps."""
    given = inputs(37, 101, 1, 1, 32)

    def in_two_parts(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        run = partial(rope_attention, query_rope=None, key_rope=None, backend=backend)
        parts = [run(q, k[:, cut], v[:, cut]) for cut in (slice(0, 70), slice(70, None))]
        lse = torch.logaddexp(parts[0][1], parts[1][1])
        shares = [(part[1] - lse).exp().transpose(1, 2)[..., None] for part in parts]
        return sum(share * part[0] for share, part in zip(shares, parts, strict=True)), lse

    ours = gradients(in_two_parts, given)
    exact = gradients(partial(exact_attention, starts=None), [tensor.double() for tensor in given])
    for name, mine, truth in zip(NAMES, ours, exact, strict=True):
        assert relative_error(mine, truth) < FLOAT32_LIMIT, name


@needs_interpreter
def test_tensor_descriptors_compute_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    given = inputs(70, 67, 1, 2, 32)
    run = partial(rope_attention, query_rope=tables(32), key_rope=tables(32), backend="triton")
    with_pointers = gradients(run, given)
    asked = []
    monkeypatch.setattr(launch, "takes_descriptors", lambda *_: asked.append(True) or True)
    for mine, theirs in zip(gradients(run, given), with_pointers, strict=True):
        assert torch.equal(mine, theirs)
    assert asked


@needs_interpreter
def test_float16_is_as_exact_as_eager() -> None:
    given = [tensor.half() for tensor in inputs(89, 89, 1, 1, 64)]
    check_against_eager(given, tables(64))


@pytest.mark.gpu
@pytest.mark.parametrize(("sizes", "turn"), [((89, 89, 2, 3, 128), True), ((1021, 1531, 1, 2, 128), False)])
@pytest.mark.parametrize("head_dim", [64, 128, 96])
def test_bfloat16_is_as_exact_as_eager(sizes: tuple[int, int, int, int, int], turn: bool, head_dim: int) -> None:
    given = [tensor.bfloat16().cuda() for tensor in inputs(*sizes[:-1], head_dim)]
    check_against_eager(given, tables(head_dim, device="cuda") if turn else None)


def check_against_eager(given: list[Tensor], rope: RopeTables | None) -> None:
    def eager(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Every intermediate in the inputs' type, as plain torch does it."""
        q, k = (exactly_turned(x.double(), rope).to(x.dtype) for x in (q, k))
        scores = (q.transpose(1, 2) * q.shape[-1] ** -0.5) @ k.permute(0, 2, 3, 1)
        return (scores.softmax(-1) @ v.transpose(1, 2)).transpose(1, 2), scores.logsumexp(-1)

    ours = partial(rope_attention, query_rope=rope, key_rope=rope, backend="triton")
    assert_as_exact_as_eager(
        lambda *tensors: gradients(ours, list(tensors)),
        lambda *tensors: gradients(eager, list(tensors)),
        given,
        FLOAT32_LIMIT,
    )


@pytest.mark.gpu
def test_backward_is_the_same_every_time() -> None:
    given = [tensor.bfloat16().cuda() for tensor in inputs(1021, 1531, 1, 2, 128)]
    run = partial(rope_attention, query_rope=None, key_rope=None, backend="triton")
    for first, second in zip(gradients(run, given), gradients(run, given), strict=True):
        assert torch.equal(first, second)


BUGS = {
    "keys past the end take part": (kernel, "scores = _without_missing_keys(scores, start, length, shape)", ""),
    "the last tile of keys is dropped": (kernel, "range(0, key_length, KEYS)", "range(0, key_length - KEYS, KEYS)"),
    "a query past the end has weight": (
        kernel,
        "tl.load(lse_rows + row + tokens), float",
        "tl.load(lse_rows + row), float",
    ),
    "the sum is not shrunk with the maximum": (kernel, "total * shrink", "total"),
    "a stale log-sum-exp": (kernel, 'mask=exists, other=float("inf")) * LOG2_E', 'mask=exists, other=float("inf"))'),
    "the log-sum-exp's gradient is forgotten": (kernel, "delta -= tl.load", "delta -= 0.0 * tl.load"),
    "dk is not turned back": (kernel, "dk = _turn(dk, rope, start, True, shape)", "dk = dk"),
    "queries are turned by the tile's first tokens": (
        kernel,
        "tokens = start + tl.arange(0, tile",
        "tokens = tl.arange(0, tile",
    ),
    "angles of the wrong sign": (rotation, "even * cosine - odd * sine", "even * cosine + odd * sine"),
}


@needs_interpreter
@pytest.mark.parametrize("bug", BUGS)
def test_a_kernel_with_a_bug_fails(bug: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module, right, wrong = BUGS[bug]
    plant(monkeypatch, tmp_path, module, kernel if module is rotation else launch, right, wrong)
    found = found_errors("triton", inputs(89, 89, 1, 1, 32), tables(32), tables(32))
    assert not max(found.values()) < FLOAT32_LIMIT, found


@needs_interpreter
def test_keys_that_are_not_turned_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(autograd, "turned", lambda x, *_: x)
    found = found_errors("triton", inputs(89, 89, 1, 1, 32), tables(32), tables(32))
    assert min(found.values()) > 0.01, found


def test_a_head_that_is_too_wide_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    q = torch.zeros(1, 3, 1, 130)
    with pytest.raises(ValueError, match=r"head_dim \(130\) must be at most 128"):
        rope_attention(q, q, q, query_rope=None, key_rope=None, backend="triton")
