"""Which data-parallel rank takes which slot of a step: pure functions of predicted times and shapes.

Every rank computes the whole deal. Times are whole numbers, so sums do not depend on the order of summing, and
ranks on different machines agree.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# A deal this near the least possible time is not refined further: predictions are not that good.
_NEAR_ENOUGH = 1.002
_MOST_REFINEMENTS = 200
# With how many of the lightest ranks the heaviest one may trade.
_PARTNERS = 3


@dataclass(frozen=True, slots=True)
class Work:
    """A step's slots, as dealing sees them; slots of one shape cost the same.

    Attributes:
        shape_of: Number of each slot's shape.
        costs: Predicted time of one sample, by shape.
        limits: The most samples of one micro-batch, by shape.
        call_cost: What each micro-batch costs beside its samples.
    """

    shape_of: tuple[int, ...]
    costs: tuple[int, ...]
    limits: tuple[int, ...]
    call_cost: int

    def group_cost(self, shape: int, count: int) -> int:
        """Returns the time of so many samples of one shape on one rank, in full micro-batches but for the last."""
        return count * self.costs[shape] + self.num_calls(shape, count) * self.call_cost

    def num_calls(self, shape: int, count: int) -> int:
        """Returns the micro-batches of so many samples of one shape on one rank."""
        return -(-count // self.limits[shape])

    def counts(self, dealt: Sequence[Sequence[int]]) -> NDArray[np.int64]:
        """Returns how many samples of each shape each rank has, ``[ranks, shapes]`` int64."""
        num_shapes = len(self.costs)
        ranks = np.repeat(np.arange(len(dealt)), [len(slots) for slots in dealt])
        shapes = np.array(self.shape_of, np.int64)[np.array([slot for slots in dealt for slot in slots], np.int64)]
        counts = np.bincount(ranks * num_shapes + shapes, minlength=len(dealt) * num_shapes)
        return counts.reshape(len(dealt), num_shapes)

    def loads(self, dealt: Sequence[Sequence[int]]) -> NDArray[np.int64]:
        """Returns the time of each rank, ``[ranks]`` int64."""
        counts = self.counts(dealt)
        calls = -(-counts // np.array(self.limits, np.int64))
        return counts @ np.array(self.costs, np.int64) + calls.sum(axis=1) * self.call_cost


def deal(costs: Sequence[float], num_ranks: int, at_least: int = 0) -> list[list[int]]:
    """Deals slots to ranks so that their total costs are near each other (longest processing time first).

    Every rank computes the same deal. A rank may get more or fewer slots than another, or none.

    Args:
        costs: The predicted cost of each slot, in any unit.
        num_ranks: Number of data-parallel ranks.
        at_least: Slots that every rank gets whatever they cost, as far as there are enough.

    Returns:
        For each rank its slots, ascending.
    """
    return _deal_packs([[slot] for slot in range(len(costs))], costs, num_ranks, at_least)


def deal_work(work: Work, num_ranks: int, at_least: int = 0) -> list[list[int]]:
    """Deals slots so that the slowest rank is done early, with few ragged micro-batches.

    Whole micro-batches are dealt longest first; then the slowest rank gives samples to the fastest ones, or trades
    them, as long as it gains. The result is never slower than dealing single slots longest first.

    Args:
        work: The step's slots.
        num_ranks: Number of data-parallel ranks.
        at_least: Slots that every rank gets whatever they cost, as far as there are enough.

    Returns:
        For each rank its slots, ascending; a rank may get none.
    """
    enough = min(at_least, len(work.shape_of) // num_ranks)
    single = deal([work.costs[shape] for shape in work.shape_of], num_ranks, enough)
    longest = int(work.loads(single).max())
    whole = _Deal(work, _deal_whole(work, num_ranks, enough), enough)
    whole.refine(min(longest, _NEAR_ENOUGH * least_possible(work, num_ranks)))
    return single if longest < whole.loads.max() else whole.slots()


def least_possible(work: Work, num_ranks: int) -> int:
    """Returns a time below which no deal's slowest rank can come.

    It is the mean with every micro-batch full, or what follows from the number of slots alone: n slots on r ranks
    leave some q ranks, at most n - k * r, with more than k of them, and with n - k * (r - q) together.
    """
    counts = Counter(work.shape_of)
    total = sum(work.group_cost(shape, count) for shape, count in counts.items())
    bound = -(-total // num_ranks)
    by_cost = sorted(counts, key=lambda shape: -work.costs[shape])
    costs = np.repeat([work.costs[shape] for shape in by_cost], [counts[shape] for shape in by_cost])
    upto = np.concatenate([[0], np.cumsum(costs)])
    # Of the dearest slots only: up to the last of a shape, or to the first one more than every rank may have.
    ends = {*np.cumsum([counts[shape] for shape in by_cost]).tolist(), *range(1, len(costs) + 1, num_ranks)}
    for slots in sorted(ends):
        each = (slots - 1) // num_ranks
        crowded = np.arange(1, slots - each * num_ranks + 1)
        cheapest = slots - each * (num_ranks - crowded)
        loads = -(-(upto[slots] - upto[slots - cheapest]) // crowded)
        bound = max(bound, int(loads.min()) + work.call_cost)
    return bound


def _deal_whole(work: Work, num_ranks: int, at_least: int) -> list[list[int]]:
    """Deals whole micro-batches, longest first; halved ones where every rank could not get its least."""
    most = max(work.limits, default=1)
    while True:
        packs = _packs(work, most)
        costs = [work.group_cost(work.shape_of[pack[0]], len(pack)) for pack in packs]
        dealt = _deal_packs(packs, costs, num_ranks, at_least)
        if most == 1 or min(map(len, dealt)) >= at_least:
            return dealt
        most = -(-most // 2)


def _packs(work: Work, most: int) -> list[list[int]]:
    """The step's slots in groups of one shape, of at most a micro-batch and at most `most`."""
    slots_of: dict[int, list[int]] = {}
    for slot, shape in enumerate(work.shape_of):
        slots_of.setdefault(shape, []).append(slot)
    sizes = {shape: min(most, work.limits[shape]) for shape in slots_of}
    return [
        slots[start : start + sizes[shape]]
        for shape, slots in slots_of.items()
        for start in range(0, len(slots), sizes[shape])
    ]


def _deal_packs(
    packs: Sequence[Sequence[int]], costs: Sequence[float], num_ranks: int, at_least: int
) -> list[list[int]]:
    dearest_first = sorted(range(len(packs)), key=lambda pack: (-costs[pack], pack))
    # Ranks that lack slots first. Equal loads: fewer slots first, then the lower rank.
    loads = [(at_least <= 0, 0.0, 0, rank) for rank in range(num_ranks)]
    dealt: list[list[int]] = [[] for _ in range(num_ranks)]
    for pack in dearest_first:
        _, load, count, rank = loads[0]
        dealt[rank] += packs[pack]
        count += len(packs[pack])
        heapq.heapreplace(loads, (count >= at_least, load + costs[pack], count, rank))
    return [sorted(slots) for slots in dealt]


@dataclass(frozen=True, slots=True)
class _Trade:
    """The heaviest rank gives `count` samples of a shape to a partner and may get one of another shape back."""

    partner: int
    shape: int
    count: int
    back: int | None


class _Deal:
    """A deal that is being refined."""

    def __init__(self, work: Work, dealt: Sequence[Sequence[int]], at_least: int) -> None:
        self._work = work
        self._at_least = at_least
        self._held: list[dict[int, list[int]]] = []
        for slots in dealt:
            held: dict[int, list[int]] = {}
            for slot in slots:
                held.setdefault(work.shape_of[slot], []).append(slot)
            self._held.append(held)
        self.loads = work.loads(dealt)

    def slots(self) -> list[list[int]]:
        """For each rank its slots, ascending."""
        return [sorted(slot for slots in held.values() for slot in slots) for held in self._held]

    def refine(self, wanted: float) -> None:
        """Trades samples of the heaviest rank until its load is the wanted one, or no trade makes both lighter."""
        for _ in range(_MOST_REFINEMENTS):
            heaviest = int(np.argmax(self.loads))
            if self.loads[heaviest] <= wanted:
                return
            trade = self._best_trade(heaviest)
            if trade is None:
                return
            self._make(heaviest, trade)

    def _best_trade(self, heaviest: int) -> _Trade | None:
        partners = np.argsort(self.loads, kind="stable")[:_PARTNERS].tolist()
        best, least = None, int(self.loads[heaviest])
        for partner in partners:
            if partner == heaviest:
                continue
            for shape in self._held[heaviest]:
                for trade, result in self._trades(heaviest, partner, shape):
                    if result < least:
                        best, least = trade, result
        return best

    def _trades(self, heaviest: int, partner: int, shape: int) -> Iterator[tuple[_Trade, int]]:
        """Yields trades of one shape, each with the heavier load of the two ranks after it."""
        work = self._work
        for count in range(1, self._most_given(heaviest, shape) + 1):
            given = int(self.loads[heaviest]) + self._change(heaviest, shape, -count)
            taken = int(self.loads[partner]) + self._change(partner, shape, count)
            yield _Trade(partner, shape, count, None), max(given, taken)
            if taken > given:
                break
        given = int(self.loads[heaviest]) + self._change(heaviest, shape, -1)
        taken = int(self.loads[partner]) + self._change(partner, shape, 1)
        for back in self._held[partner]:
            if work.costs[back] < work.costs[shape]:
                after = max(given + self._change(heaviest, back, 1), taken + self._change(partner, back, -1))
                yield _Trade(partner, shape, 1, back), after

    def _most_given(self, rank: int, shape: int) -> int:
        spare = sum(map(len, self._held[rank].values())) - self._at_least
        return min(len(self._held[rank][shape]), self._work.limits[shape], spare)

    def _change(self, rank: int, shape: int, change: int) -> int:
        """How a rank's load changes with so many more samples of a shape."""
        count = len(self._held[rank].get(shape, ()))
        return self._work.group_cost(shape, count + change) - self._work.group_cost(shape, count)

    def _make(self, heaviest: int, trade: _Trade) -> None:
        self._move(heaviest, trade.partner, trade.shape, trade.count)
        if trade.back is not None:
            self._move(trade.partner, heaviest, trade.back, 1)

    def _move(self, giver: int, taker: int, shape: int, count: int) -> None:
        self.loads[giver] += self._change(giver, shape, -count)
        self.loads[taker] += self._change(taker, shape, count)
        slots = self._held[giver][shape]
        self._held[taker].setdefault(shape, []).extend(slots[-count:])
        del slots[-count:]
        if not slots:
            del self._held[giver][shape]
