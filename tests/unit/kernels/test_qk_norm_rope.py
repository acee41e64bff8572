"""Full-width q/k norm and 3D rotation: against complex float64 arithmetic, alone and with two emulated ranks.

Shape legend: S or L tokens, B batch, h heads, D head dimension.
"""

from __future__ import annotations

import cmath
import itertools
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from threading import Barrier, Lock

import pytest
import torch
from torch import Tensor

from sama_kernels.qk_norm_rope import (
    RopeTables,
    SumOverRanks,
    autograd,
    axis_widths,
    build_rope_tables,
    kernel,
    qk_norm_rope,
    rotation,
)
from tests.support.kernel_checks import BFLOAT16_ROUNDOFF, normal, relative_error
from tests.support.triton_checks import BACKENDS, assert_as_exact_as_eager, needs_interpreter, plant

pytestmark = pytest.mark.usefixtures("unwritten_is_nan")

EPS = 1e-6
FLOAT32_LIMIT = 3e-6
"""Relative, L2."""
WAIT_SECONDS = 20.0
NAMES = ("q", "k", "grad q", "grad k", "grad q_weight", "grad k_weight")

Grid = tuple[int, int, int]
Results = dict[str, Tensor]


# --- the independent definition ---------------------------------------------------------------------


def grid_rotations(head_dim: int, grid: Grid, time_offset: int = 0) -> list[list[complex]]:
    """One unit complex number a token and feature pair, by Wan's rule, in loops."""
    spatial = 2 * (head_dim // 6)
    widths = (head_dim - 2 * spatial, spatial, spatial)
    rotations = []
    for t, h, w in itertools.product(*map(range, grid)):
        token = []
        for position, width in zip((t + time_offset, h, w), widths, strict=True):
            token += [cmath.exp(1j * position / 10000 ** (2 * pair / width)) for pair in range(width // 2)]
        rotations.append(token)
    return rotations


def exact_rotations(
    head_dim: int, source: Grid | None, num_semantic: int, target: Grid, offset: int, semantic: complex
) -> Tensor:
    """``[S, D / 2]`` complex128 of a whole [source | semantic | target] sequence."""
    rows = grid_rotations(head_dim, source, offset) if source else []
    rows += [[semantic] * (head_dim // 2)] * num_semantic
    return torch.tensor(rows + grid_rotations(head_dim, target), dtype=torch.complex128)


def exact_norm_rope(x: Tensor, weight: Tensor, rotations: Tensor | None) -> Tensor:
    """``[S, B, h, D]`` float64 -> ``[B, S, h, D]``."""
    width = x.shape[-2] * x.shape[-1]
    flat = x.flatten(-2)
    normed = (flat / ((flat * flat).sum(-1, keepdim=True) / width + EPS).sqrt() * weight).view_as(x)
    if rotations is not None:
        pairs = torch.view_as_complex(normed.unflatten(-1, (-1, 2)).contiguous())
        normed = torch.view_as_real(pairs * rotations[:, None, None]).flatten(-2)
    return normed.transpose(0, 1)


# --- running both -----------------------------------------------------------------------------------


def make_inputs(num_q: int, num_k: int, batch: int, heads: int, head_dim: int) -> list[Tensor]:
    """q of a fused [q|k|v] projection, k of a fused [k|v] one (both strided), and the two weights."""
    width = heads * head_dim
    return [
        normal(num_q, batch, heads, 3, head_dim, seed=1) * 2,
        normal(num_k, batch, heads, 2, head_dim, seed=2) * 0.5,
        1 + 0.2 * normal(width, seed=3),
        1 + 0.2 * normal(width, seed=4),
    ]


def make_upstream(given: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Gradients that arrive at q and at k, ``[B, S, h, D]``."""
    fused_q, fused_k = given[:2]
    return tuple(
        normal(*fused[..., 0, :].transpose(0, 1).shape, seed=5 + index)
        for index, fused in enumerate((fused_q, fused_k))
    )


def run(
    function: Callable[..., tuple[Tensor, Tensor]], given: list[Tensor], upstream: tuple[Tensor, Tensor]
) -> Results:
    fused_q, fused_k, q_weight, k_weight = (tensor.clone().requires_grad_() for tensor in given)
    outputs = function(fused_q.unbind(-2)[0], fused_k.unbind(-2)[0], q_weight, k_weight)
    torch.autograd.backward(outputs, [up.to(out.dtype) for up, out in zip(upstream, outputs, strict=True)])
    gradients = (fused_q.grad[..., 0, :], fused_k.grad[..., 0, :], q_weight.grad, k_weight.grad)
    return dict(zip(NAMES, (*(output.detach() for output in outputs), *gradients), strict=True))


def run_ours(
    given: list[Tensor],
    upstream: tuple[Tensor, Tensor],
    rope: RopeTables | None,
    full_width: int,
    sum_over_ranks: SumOverRanks | None = None,
    backend: str = "reference",
) -> Results:
    return run(
        partial(
            qk_norm_rope, rope=rope, full_width=full_width, eps=EPS, sum_over_ranks=sum_over_ranks, backend=backend
        ),
        given,
        upstream,
    )


def run_exact(given: list[Tensor], upstream: tuple[Tensor, Tensor], rotations: Tensor | None) -> Results:
    return run(
        lambda q, k, q_weight, k_weight: (
            exact_norm_rope(q, q_weight, rotations),
            exact_norm_rope(k, k_weight, rotations),
        ),
        [tensor.double() for tensor in given],
        tuple(up.double() for up in upstream),
    )


def errors(ours: Results, exact: Results) -> dict[str, float]:
    return {name: relative_error(ours[name], exact[name]) for name in NAMES}


def applied_rotations(tables: RopeTables, num_tokens: int, head_dim: int, backend: str = "reference") -> Tensor:
    """What the operation multiplies pairs with, complex64 ``[S, D / 2]``: pairs (1, 0) come out as (cos, sin)."""
    pairs = torch.tensor([1.0, 0.0]).repeat(num_tokens, 1, 1, head_dim // 2)
    # Their root mean square is sqrt(1/2), which the weight takes back.
    weight = torch.full((head_dim,), 0.5**0.5)
    q, k = qk_norm_rope(pairs, pairs, weight, weight, rope=tables, full_width=head_dim, eps=0.0, backend=backend)
    assert torch.equal(q, k)
    return torch.view_as_complex(q[0, :, 0].unflatten(-1, (-1, 2)).contiguous())


# --- rotation ---------------------------------------------------------------------------------------


def test_axis_widths_of_the_published_models() -> None:
    assert axis_widths(128) == (44, 42, 42)
    assert axis_widths(32) == (12, 10, 10)


@pytest.mark.parametrize(
    ("backend", "head_dim"),
    [("reference", head_dim) for head_dim in range(32, 129, 2)]
    + [pytest.param("triton", head_dim, marks=needs_interpreter) for head_dim in (32, 46, 64, 98, 128)],
)
def test_tables_of_every_head_dimension(backend: str, head_dim: int) -> None:
    """The split over the axes, the frequencies and the order of tokens, at once."""
    assert sum(axis_widths(head_dim)) == head_dim
    assert all(width % 2 == 0 for width in axis_widths(head_dim))
    tables = build_rope_tables(head_dim, (1, 2, 3), 2, (2, 1, 2))
    exact = exact_rotations(head_dim, (1, 2, 3), 2, (2, 1, 2), 0, 0)
    torch.testing.assert_close(
        applied_rotations(tables, 12, head_dim, backend).to(torch.complex128), exact, rtol=0, atol=5e-7
    )


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("source", "num_semantic", "offset", "zero"),
    [
        ((2, 5, 1), 5, 0, True),
        ((3, 1, 4), 5, 0, False),
        ((2, 3, 5), 1, 4, True),
        (None, 0, 0, True),
        (None, 3, 0, False),
    ],
)
@pytest.mark.parametrize("head_dim", [32, 46, 128])
def test_self_attention(
    backend: str, head_dim: int, source: Grid | None, num_semantic: int, offset: int, zero: bool
) -> None:
    """q and k as self-attention makes them, for every kind of sequence: outputs and every gradient."""
    target = (4, 1, 3)
    rope = build_rope_tables(
        head_dim, source, num_semantic, target, source_time_offset=offset, rotate_semantic_to_zero=zero
    )
    rotations = exact_rotations(head_dim, source, num_semantic, target, offset, 0 if zero else 1)
    given = make_inputs(rotations.shape[0], rotations.shape[0], 2, 3, head_dim)
    upstream = make_upstream(given)
    ours = run_ours(given, upstream, rope, 3 * head_dim, backend=backend)
    assert ours["q"].dtype == ours["k"].dtype == torch.float32
    found = errors(ours, run_exact(given, upstream, rotations))
    assert max(found.values()) < FLOAT32_LIMIT, found


@pytest.mark.parametrize("backend", BACKENDS)
def test_zero_semantic_factors_erase_and_identity_keeps(backend: str) -> None:
    given = make_inputs(9, 9, 1, 2, 32)
    upstream = make_upstream(given)
    positions = slice(2, 5)
    for zero in (True, False):
        rope = build_rope_tables(32, (1, 1, 2), 3, (1, 2, 2), rotate_semantic_to_zero=zero)
        turned = run_ours(given, upstream, rope, 64, backend=backend)
        plain = run_ours(given, upstream, None, 64, backend=backend)
        if zero:
            assert not turned["q"][:, positions].any()
            assert not turned["grad k"][positions].any(), "what is multiplied by zero has no gradient"
        else:
            assert torch.equal(turned["q"][:, positions], plain["q"][:, positions])


def test_shifted_source_shares_no_time_with_the_target() -> None:
    """Offset by the target's frames, the source's first frame turns as the target's next one would."""
    shifted = build_rope_tables(32, (2, 1, 1), 0, (3, 1, 1), source_time_offset=3)
    longer = build_rope_tables(32, None, 0, (5, 1, 1))
    whole = applied_rotations(longer, 5, 32)
    assert torch.equal(applied_rotations(shifted, 5, 32), torch.cat([whole[3:], whole[:3]]))


# --- lengths, precision -------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("sizes", [(7, 5, 3, 1, 34), (1, 13, 2, 3, 32), (19, 2, 1, 2, 128), (131, 67, 1, 12, 32)])
def test_cross_attention_with_q_and_k_of_different_lengths(backend: str, sizes: tuple[int, int, int, int, int]) -> None:
    given = make_inputs(*sizes)
    upstream = make_upstream(given)
    ours = run_ours(given, upstream, None, sizes[3] * sizes[4], backend=backend)
    found = errors(ours, run_exact(given, upstream, None))
    assert max(found.values()) < FLOAT32_LIMIT, found


@pytest.mark.parametrize(
    ("backend", "dtype", "roundoff"),
    [
        ("reference", torch.bfloat16, BFLOAT16_ROUNDOFF),
        # Triton's interpreter cuts bfloat16 off where a GPU rounds.
        pytest.param("triton", torch.float16, 2.0**-11, marks=needs_interpreter),
    ],
)
def test_half_precision_is_rounded_once(backend: str, dtype: torch.dtype, roundoff: float) -> None:
    """Statistics, weights and rotation in float32: outputs and gradients are the exact ones, rounded."""
    given = [tensor.to(dtype) for tensor in make_inputs(17, 17, 2, 3, 32)]
    upstream = tuple(tensor.to(dtype) for tensor in make_upstream(given))
    rope = build_rope_tables(32, (1, 2, 3), 3, (2, 2, 2))
    ours = run_ours(given, upstream, rope, 96, backend=backend)
    exact = run_exact(given, upstream, exact_rotations(32, (1, 2, 3), 3, (2, 2, 2), 0, 0))
    for name in NAMES:
        assert ours[name].dtype == dtype
        allowed = roundoff * exact[name].abs() + 1e-5 * exact[name].abs().max()
        assert bool(((ours[name].double() - exact[name]).abs() <= allowed).all()), name


@pytest.mark.parametrize("backend", BACKENDS)
def test_eps_keeps_a_zero_token_finite(backend: str) -> None:
    q = torch.zeros(1, 1, 1, 32, requires_grad=True)
    weight = torch.ones(32)
    output, _ = qk_norm_rope(q, q.detach(), weight, weight, rope=None, full_width=32, eps=EPS, backend=backend)
    output.sum().backward()
    assert not output.any()
    torch.testing.assert_close(q.grad, torch.full_like(q, EPS**-0.5))


# --- two tensor-parallel ranks, as two threads -----------------------------------------------------------


class TwoRanks:
    """An all-reduce between two threads, that counts and remembers its messages."""

    def __init__(self, sums_backward: bool = True, backend: str = "reference") -> None:
        self.barrier = Barrier(2)
        self.backend = backend
        # Triton's interpreter runs one kernel at a time.
        self.computing = Lock() if backend == "triton" else nullcontext()
        self.parts: dict[int, Tensor] = {}
        self.messages: dict[int, list[int]] = {0: [], 1: []}
        self.sums_backward = sums_backward

    def sum_over_ranks(self, rank: int) -> SumOverRanks:
        def all_reduce(tensor: Tensor) -> None:
            assert tensor.dtype == torch.float32
            self.messages[rank].append(tensor.numel())
            if len(self.messages[rank]) == 2 and not self.sums_backward:
                return
            self.parts[rank] = tensor.clone()
            with self.others_compute():
                self.barrier.wait(WAIT_SECONDS)
                total = self.parts[0] + self.parts[1]
                self.barrier.wait(WAIT_SECONDS)
            tensor.copy_(total)

        return all_reduce

    @contextmanager
    def others_compute(self) -> Iterator[None]:
        if isinstance(self.computing, nullcontext):
            yield
            return
        self.computing.release()
        try:
            yield
        finally:
            self.computing.acquire()


def half(tensor: Tensor, rank: int, dim: int) -> Tensor:
    return tensor.chunk(2, dim)[rank]


def run_on_two_ranks(given: list[Tensor], rope: RopeTables | None, ranks: TwoRanks | None) -> Results:
    """Each rank has half of the heads and of both weights; results are put together again."""
    fused_q, fused_k, q_weight, k_weight = given
    upstream = make_upstream(given)

    def run_rank(rank: int) -> Results:
        mine = [half(fused_q, rank, 2), half(fused_k, rank, 2), half(q_weight, rank, 0), half(k_weight, rank, 0)]
        my_upstream = (half(upstream[0], rank, 2), half(upstream[1], rank, 2))
        all_reduce = ranks.sum_over_ranks(rank) if ranks else None
        with ranks.computing if ranks else nullcontext():
            return run_ours(
                mine, my_upstream, rope, q_weight.numel(), all_reduce, ranks.backend if ranks else "reference"
            )

    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(run_rank, range(2), timeout=2 * WAIT_SECONDS))
    heads_dim = {"grad q_weight": 0, "grad k_weight": 0}
    return {name: torch.cat([result[name] for result in results], heads_dim.get(name, 2)) for name in NAMES}


@pytest.mark.parametrize("backend", BACKENDS)
def test_two_ranks_norm_over_the_full_width(backend: str) -> None:
    given = make_inputs(15, 15, 2, 4, 32)
    rope = build_rope_tables(32, (1, 2, 3), 1, (2, 2, 2))
    ranks = TwoRanks(backend=backend)
    ours = run_on_two_ranks(given, rope, ranks)
    exact = run_exact(given, make_upstream(given), exact_rotations(32, (1, 2, 3), 1, (2, 2, 2), 0, 0))
    found = errors(ours, exact)
    assert max(found.values()) < FLOAT32_LIMIT, found
    # One float32 a token of q and of k, in one message forward and one backward.
    assert ranks.messages == {0: [60, 60], 1: [60, 60]}


@pytest.mark.parametrize("backend", BACKENDS)
def test_two_ranks_with_q_and_k_of_different_lengths(backend: str) -> None:
    given = make_inputs(3, 7, 2, 2, 34)
    ranks = TwoRanks(backend=backend)
    found = errors(run_on_two_ranks(given, None, ranks), run_exact(given, make_upstream(given), None))
    assert max(found.values()) < FLOAT32_LIMIT, found
    assert ranks.messages == {0: [20, 20], 1: [20, 20]}


def test_a_rank_local_norm_is_another_function() -> None:
    """Must fail: what the comparison above finds when the ranks do not talk."""
    given = make_inputs(3, 7, 2, 2, 34)
    found = errors(run_on_two_ranks(given, None, None), run_exact(given, make_upstream(given), None))
    assert min(found.values()) > 0.01, found


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_forgotten_backward_sum_is_found(backend: str) -> None:
    """Must fail: outputs and the weights' gradients cannot see it, the gradients of q and k do."""
    given = make_inputs(3, 7, 2, 2, 34)
    ranks = TwoRanks(sums_backward=False, backend=backend)
    found = errors(run_on_two_ranks(given, None, ranks), run_exact(given, make_upstream(given), None))
    assert max(found["q"], found["k"]) < FLOAT32_LIMIT
    assert min(found["grad q"], found["grad k"]) > 0.001, found


# --- the fused kernel: bugs that the comparison must find, and the GPU -------------------------------------

BUGS = {
    "a norm of the first tile's heads alone": (
        kernel,
        "total += _row_sum(rest_even * rest_even, rest_odd * rest_odd)",
        "total += 0.0",
    ),
    "a dropped last token": (kernel, "row < num_rows", "row < num_rows - 1"),
    "a weight's gradient that forgets some rows": (kernel, "rest_dw_even += add_even", "rest_dw_even = add_even"),
    "a gradient that is not turned back": (rotation, "even * cosine + odd * sine", "even * cosine - odd * sine"),
    "height and width exchanged": (rotation, "row[:, None], column[:, None]", "column[:, None], row[:, None]"),
    "a target counted on the source's grid": (rotation, "places.target_width)", "places.source_width)"),
}


@needs_interpreter
@pytest.mark.parametrize("bug", BUGS)
def test_a_kernel_with_a_bug_fails(bug: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Must fail: 3 heads are tiles of 2 and 1; 262 rows are more than backward's programs take at once."""
    module, right, wrong = BUGS[bug]
    plant(monkeypatch, tmp_path, module, kernel if module is rotation else autograd, right, wrong)
    source, target = (4, 3, 4), (2, 6, 6)
    rope, rotations = build_rope_tables(32, source, 11, target), exact_rotations(32, source, 11, target, 0, 0)
    given = make_inputs(131, 131, 2, 3, 32)
    upstream = make_upstream(given)
    exact = run_exact(given, upstream, rotations)
    found = errors(run_ours(given, upstream, rope, 96, backend="triton"), exact)
    assert not max(found.values()) < FLOAT32_LIMIT, found
    monkeypatch.undo()
    found = errors(run_ours(given, upstream, rope, 96, backend="triton"), exact)
    assert max(found.values()) < FLOAT32_LIMIT, found


@pytest.mark.gpu
@pytest.mark.parametrize(("heads", "head_dim"), [(40, 128), (12, 128), (5, 128), (3, 46)])
def test_bfloat16_is_as_exact_as_eager(heads: int, head_dim: int) -> None:
    source, target = (3, 7, 11), (5, 11, 13)
    num_tokens = 3 * 7 * 11 + 65 + 5 * 11 * 13
    rope = build_rope_tables(head_dim, source, 65, target, device="cuda")
    rotations = exact_rotations(head_dim, source, 65, target, 0, 0).cuda()
    given = [tensor.bfloat16().cuda() for tensor in make_inputs(num_tokens, num_tokens, 2, heads, head_dim)]
    given += [tensor.bfloat16().cuda() for tensor in make_upstream([tensor.cpu() for tensor in given])]

    def results(backend: str, *tensors: Tensor) -> list[Tensor]:
        inputs, upstream = list(tensors[:4]), (tensors[4], tensors[5])
        if tensors[0].dtype == torch.float64:
            return list(run_exact(inputs, upstream, rotations).values())
        return list(run_ours(inputs, upstream, rope, heads * head_dim, backend=backend).values())

    assert_as_exact_as_eager(partial(results, "triton"), partial(results, "reference"), given, FLOAT32_LIMIT)
