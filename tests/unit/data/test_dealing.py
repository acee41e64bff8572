"""Dealing: every slot to one rank, near the least possible time, with few ragged micro-batches."""

from __future__ import annotations

import time
from collections import Counter
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sama_data.dealing import Work, deal, deal_work, least_possible
from sama_data.shapes import Shape, cut_by_shape


@given(st.lists(st.floats(0.0, 1e6), max_size=60), st.integers(1, 70))
def test_a_deal_gives_every_slot_to_one_rank(costs, num_ranks):
    dealt = deal(costs, num_ranks)
    assert len(dealt) == num_ranks
    assert sorted(slot for slots in dealt for slot in slots) == list(range(len(costs)))
    assert all(slots == sorted(slots) for slots in dealt)
    assert dealt == deal(list(costs), num_ranks)


@given(st.lists(st.integers(1, 1000), min_size=1, max_size=60), st.integers(1, 16))
def test_a_deal_is_balanced(costs, num_ranks):
    loads = [sum(costs[slot] for slot in slots) for slots in deal(costs, num_ranks)]
    assert max(loads) - min(loads) <= max(costs)


@settings(max_examples=50)
@given(st.lists(st.integers(1, 30), min_size=1, max_size=6), st.integers(2, 3))
def test_a_deal_is_near_the_best_possible(costs, num_ranks):
    def longest(ranks: tuple[int, ...]) -> int:
        loads = [0] * num_ranks
        for cost, rank in zip(costs, ranks, strict=True):
            loads[rank] += cost
        return max(loads)

    best = min(longest(ranks) for ranks in product(range(num_ranks), repeat=len(costs)))
    dealt = max(sum(costs[slot] for slot in slots) for slots in deal(costs, num_ranks))
    # Graham's bound for longest processing time first.
    assert 3 * num_ranks * dealt <= (4 * num_ranks - 1) * best


@pytest.mark.parametrize(("num_ranks", "at_least"), [(2, 4), (4, 2), (3, 3), (8, 1), (10, 1)])
def test_every_rank_gets_the_least_it_needs(num_ranks, at_least):
    """By cost alone the two dear slots would leave their ranks with one or two."""
    costs = [1000.0, 900.0] + [1.0] * 8
    dealt = deal(costs, num_ranks, at_least)
    assert sorted(slot for slots in dealt for slot in slots) == list(range(len(costs)))
    assert min(map(len, dealt)) >= at_least
    assert deal(costs, num_ranks, 0) == deal(costs, num_ranks)


def test_equal_slots_are_dealt_evenly():
    assert [len(slots) for slots in deal([1.0] * 12, 4)] == [3, 3, 3, 3]
    assert [len(slots) for slots in deal([0.0] * 12, 4)] == [3, 3, 3, 3]


# --- deal_work: micro-batches of one shape --------------------------------------------------------


def some_work(counts: list[int], costs: list[int], limits: list[int], call_cost: int) -> Work:
    """So many slots of each shape, mixed."""
    shape_of = [shape for shape, count in enumerate(counts) for _ in range(count)]
    order = np.random.default_rng(0).permutation(len(shape_of))
    return Work(tuple(shape_of[place] for place in order), tuple(costs), tuple(limits), call_cost)


@st.composite
def works(draw, most_shapes: int = 6, most_slots: int = 20) -> Work:
    num_shapes = draw(st.integers(1, most_shapes))
    numbers = st.integers(1, 1000)
    costs, limits = draw(lists_of(num_shapes, numbers)), draw(lists_of(num_shapes, st.integers(1, 9)))
    counts = draw(lists_of(num_shapes, st.integers(1, most_slots)))
    return some_work(counts, costs, limits, draw(st.integers(0, 300)))


def lists_of(size: int, of):
    return st.lists(of, min_size=size, max_size=size)


def slowest(work: Work, dealt: list[list[int]]) -> int:
    return int(work.loads(dealt).max())


def num_calls(work: Work, dealt: list[list[int]]) -> int:
    counts = [Counter(work.shape_of[slot] for slot in slots) for slots in dealt]
    return sum(work.num_calls(shape, number) for count in counts for shape, number in count.items())


@given(works(), st.integers(1, 30), st.integers(0, 3))
def test_every_slot_goes_to_one_rank_and_every_rank_gets_its_least(work, num_ranks, at_least):
    dealt = deal_work(work, num_ranks, at_least)
    assert len(dealt) == num_ranks
    assert sorted(slot for slots in dealt for slot in slots) == list(range(len(work.shape_of)))
    assert all(slots == sorted(slots) for slots in dealt)
    assert min(map(len, dealt)) >= min(at_least, len(work.shape_of) // num_ranks)
    assert dealt == deal_work(work, num_ranks, at_least)


@given(works(), st.integers(1, 20))
def test_never_slower_than_single_slots_longest_first(work, num_ranks):
    single = deal([work.costs[shape] for shape in work.shape_of], num_ranks)
    assert slowest(work, deal_work(work, num_ranks)) <= slowest(work, single)


@settings(max_examples=60)
@given(works(most_shapes=3, most_slots=2), st.integers(1, 3))
def test_no_deal_beats_the_least_possible_time(work, num_ranks):
    every_deal = (
        [[slot for slot, rank in enumerate(ranks) if rank == mine] for mine in range(num_ranks)]
        for ranks in product(range(num_ranks), repeat=len(work.shape_of))
    )
    best = min(slowest(work, dealt) for dealt in every_deal)
    assert least_possible(work, num_ranks) <= best <= slowest(work, deal_work(work, num_ranks))


def test_the_least_possible_time_counts_slots_that_must_share_a_rank():
    # Four equal clips on three ranks: two of them meet, whatever the mean is.
    work = some_work([4, 3], [100, 1], [1, 8], 0)
    assert least_possible(work, 3) == 200
    assert least_possible(work, 4) == 101
    assert least_possible(work, 2) == 202


@given(works(), st.integers(1, 12))
def test_loads_count_the_micro_batches_that_training_cuts(work, num_ranks):
    shapes = [Shape("image", 16 * (1 + number), 16, 1, 1) for number in range(len(work.costs))]
    dealt = deal_work(work, num_ranks)
    for slots, load, counts in zip(dealt, work.loads(dealt), work.counts(dealt), strict=True):
        cut = 0
        for number in range(len(work.costs)):
            mine = [shapes[number] for slot in slots if work.shape_of[slot] == number]
            assert counts[number] == len(mine)
            cut += len(cut_by_shape(mine, {"image": work.limits[number]}))
        assert load == sum(work.costs[work.shape_of[slot]] for slot in slots) + cut * work.call_cost


def test_micro_batches_stay_whole_where_that_costs_no_time():
    work = some_work([32, 32], [10, 11], [8, 8], 5)
    dealt = deal_work(work, 4)
    assert num_calls(work, dealt) == 8
    assert all(len({work.shape_of[slot] for slot in slots}) == 2 for slots in dealt)
    single = deal([work.costs[shape] for shape in work.shape_of], 4)
    assert slowest(work, dealt) <= slowest(work, single)


def test_micro_batches_are_cut_where_ranks_would_idle():
    work = some_work([16], [10], [16], 1)
    assert sorted(map(len, deal_work(work, 8))) == [2] * 8


def test_a_deal_that_longest_first_misses_is_found_by_trading():
    # 3+2+2 and 3+2, where 3+3 and 2+2+2 are equal.
    work = some_work([2, 3], [3, 2], [1, 1], 0)
    single = deal([work.costs[shape] for shape in work.shape_of], 2)
    assert slowest(work, single) == 7
    assert slowest(work, deal_work(work, 2)) == 6


def test_dealing_takes_milliseconds():
    generator = np.random.default_rng(1)
    costs = [*generator.integers(13_000, 15_000, 13).tolist(), *generator.integers(300_000, 830_000, 30).tolist()]
    counts = [*generator.multinomial(448, [1 / 13] * 13).tolist(), *generator.multinomial(112, [1 / 30] * 30).tolist()]
    work = some_work(counts, costs, [8] * 13 + [1] * 30, 2_000)
    for num_ranks in (16, 56, 448):
        seconds = []
        for _ in range(5):
            started = time.perf_counter()
            deal_work(work, num_ranks, 1)
            seconds.append(time.perf_counter() - started)
        # A few ms alone on a core; the bound leaves room for a busy machine.
        assert min(seconds) < 0.05
