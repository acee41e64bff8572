"""Full-width q/k norm and 3D rotation: against complex float64 arithmetic, alone and with two emulated ranks.

Shape legend: S or L tokens, B batch, h heads, D head dimension.
"""

from __future__ import annotations

import cmath
import itertools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
import torch
from torch import Tensor

from sama_kernels.qk_norm_rope import RopeTables, SumOverRanks, axis_widths, build_rope_tables, qk_norm_rope
from tests.support.kernel_checks import BFLOAT16_ROUNDOFF, normal, relative_error

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
) -> Results:
    return run(
        lambda *inputs: qk_norm_rope(*inputs, rope=rope, full_width=full_width, eps=EPS, sum_over_ranks=sum_over_ranks),
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


def applied_rotations(tables: RopeTables, num_tokens: int, head_dim: int) -> Tensor:
    """What the operation multiplies pairs with, complex64 ``[S, D / 2]``: pairs (1, 0) come out as (cos, sin)."""
    pairs = torch.tensor([1.0, 0.0]).repeat(num_tokens, 1, 1, head_dim // 2)
    # Their root mean square is sqrt(1/2), which the weight takes back.
    weight = torch.full((head_dim,), 0.5**0.5)
    q, k = qk_norm_rope(pairs, pairs, weight, weight, rope=tables, full_width=head_dim, eps=0.0)
    assert torch.equal(q, k)
    return torch.view_as_complex(q[0, :, 0].unflatten(-1, (-1, 2)).contiguous())


# --- rotation ---------------------------------------------------------------------------------------


def test_axis_widths_of_the_published_models() -> None:
    assert axis_widths(128) == (44, 42, 42)
    assert axis_widths(32) == (12, 10, 10)


@pytest.mark.parametrize("head_dim", range(32, 129, 2))
def test_tables_of_every_head_dimension(head_dim: int) -> None:
    """The split over the axes, the frequencies and the order of tokens, at once."""
    assert sum(axis_widths(head_dim)) == head_dim
    assert all(width % 2 == 0 for width in axis_widths(head_dim))
    tables = build_rope_tables(head_dim, (1, 2, 3), 2, (2, 1, 2))
    exact = exact_rotations(head_dim, (1, 2, 3), 2, (2, 1, 2), 0, 0)
    torch.testing.assert_close(applied_rotations(tables, 12, head_dim).to(torch.complex128), exact, rtol=0, atol=5e-7)


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
def test_self_attention(head_dim: int, source: Grid | None, num_semantic: int, offset: int, zero: bool) -> None:
    """q and k as self-attention makes them, for every kind of sequence: outputs and every gradient."""
    target = (4, 1, 3)
    rope = build_rope_tables(
        head_dim, source, num_semantic, target, source_time_offset=offset, rotate_semantic_to_zero=zero
    )
    rotations = exact_rotations(head_dim, source, num_semantic, target, offset, 0 if zero else 1)
    given = make_inputs(rotations.shape[0], rotations.shape[0], 2, 3, head_dim)
    upstream = make_upstream(given)
    ours = run_ours(given, upstream, rope, full_width=3 * head_dim)
    assert ours["q"].dtype == ours["k"].dtype == torch.float32
    found = errors(ours, run_exact(given, upstream, rotations))
    assert max(found.values()) < FLOAT32_LIMIT, found


def test_zero_semantic_factors_erase_and_identity_keeps() -> None:
    given = make_inputs(9, 9, 1, 2, 32)
    upstream = make_upstream(given)
    positions = slice(2, 5)
    for zero in (True, False):
        rope = build_rope_tables(32, (1, 1, 2), 3, (1, 2, 2), rotate_semantic_to_zero=zero)
        turned = run_ours(given, upstream, rope, full_width=64)
        plain = run_ours(given, upstream, None, full_width=64)
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


@pytest.mark.parametrize("sizes", [(7, 5, 3, 1, 34), (1, 13, 2, 3, 32), (19, 2, 1, 2, 128)])
def test_cross_attention_with_q_and_k_of_different_lengths(sizes: tuple[int, int, int, int, int]) -> None:
    given = make_inputs(*sizes)
    upstream = make_upstream(given)
    ours = run_ours(given, upstream, None, full_width=sizes[3] * sizes[4])
    found = errors(ours, run_exact(given, upstream, None))
    assert max(found.values()) < FLOAT32_LIMIT, found


def test_bfloat16_is_rounded_once() -> None:
    """Statistics, weights and rotation in float32: outputs and gradients are the exact ones, rounded."""
    given = [tensor.bfloat16() for tensor in make_inputs(17, 17, 2, 3, 32)]
    upstream = tuple(tensor.bfloat16() for tensor in make_upstream(given))
    rope = build_rope_tables(32, (1, 2, 3), 3, (2, 2, 2))
    ours = run_ours(given, upstream, rope, full_width=96)
    exact = run_exact(given, upstream, exact_rotations(32, (1, 2, 3), 3, (2, 2, 2), 0, 0))
    for name in NAMES:
        assert ours[name].dtype == torch.bfloat16
        allowed = BFLOAT16_ROUNDOFF * exact[name].abs() + 1e-5 * exact[name].abs().max()
        assert bool(((ours[name].double() - exact[name]).abs() <= allowed).all()), name


def test_eps_keeps_a_zero_token_finite() -> None:
    q = torch.zeros(1, 1, 1, 32, requires_grad=True)
    output, _ = qk_norm_rope(q, q.detach(), torch.ones(32), torch.ones(32), rope=None, full_width=32, eps=EPS)
    output.sum().backward()
    assert not output.any()
    torch.testing.assert_close(q.grad, torch.full_like(q, EPS**-0.5))


# --- two tensor-parallel ranks, as two threads -----------------------------------------------------------


class TwoRanks:
    """An all-reduce between two threads, that counts and remembers its messages."""

    def __init__(self, sums_backward: bool = True) -> None:
        self.barrier = Barrier(2)
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
            self.barrier.wait(WAIT_SECONDS)
            total = self.parts[0] + self.parts[1]
            self.barrier.wait(WAIT_SECONDS)
            tensor.copy_(total)

        return all_reduce


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
        return run_ours(mine, my_upstream, rope, q_weight.numel(), all_reduce)

    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(run_rank, range(2), timeout=2 * WAIT_SECONDS))
    heads_dim = {"grad q_weight": 0, "grad k_weight": 0}
    return {name: torch.cat([result[name] for result in results], heads_dim.get(name, 2)) for name in NAMES}


def test_two_ranks_norm_over_the_full_width() -> None:
    given = make_inputs(15, 15, 2, 4, 32)
    rope = build_rope_tables(32, (1, 2, 3), 1, (2, 2, 2))
    ranks = TwoRanks()
    ours = run_on_two_ranks(given, rope, ranks)
    exact = run_exact(given, make_upstream(given), exact_rotations(32, (1, 2, 3), 1, (2, 2, 2), 0, 0))
    found = errors(ours, exact)
    assert max(found.values()) < FLOAT32_LIMIT, found
    # One float32 a token of q and of k, in one message forward and one backward.
    assert ranks.messages == {0: [60, 60], 1: [60, 60]}


def test_two_ranks_with_q_and_k_of_different_lengths() -> None:
    given = make_inputs(3, 7, 2, 2, 34)
    ranks = TwoRanks()
    found = errors(run_on_two_ranks(given, None, ranks), run_exact(given, make_upstream(given), None))
    assert max(found.values()) < FLOAT32_LIMIT, found
    assert ranks.messages == {0: [20, 20], 1: [20, 20]}


def test_a_rank_local_norm_is_another_function() -> None:
    """Must fail: what the comparison above finds when the ranks do not talk."""
    given = make_inputs(3, 7, 2, 2, 34)
    found = errors(run_on_two_ranks(given, None, None), run_exact(given, make_upstream(given), None))
    assert min(found.values()) > 0.01, found


def test_a_forgotten_backward_sum_is_found() -> None:
    """Must fail: outputs and the weights' gradients cannot see it, the gradients of q and k do."""
    given = make_inputs(3, 7, 2, 2, 34)
    ranks = TwoRanks(sums_backward=False)
    found = errors(run_on_two_ranks(given, None, ranks), run_exact(given, make_upstream(given), None))
    assert max(found["q"], found["k"]) < FLOAT32_LIMIT
    assert min(found["grad q"], found["grad k"]) > 0.001, found
