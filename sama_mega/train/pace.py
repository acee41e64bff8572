"""How long a rank works on its own in a step, without waiting for others: what tells a slow node from a slow run."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median

import torch


@dataclass(frozen=True)
class RankPace:
    """Means over some steps.

    Attributes:
        node: Host name.
        reading_seconds: Until this rank's own samples were there.
        computing_seconds: Forward and backward passes; ranks that share a model wait for each other in there, data
            ranks do not.
    """

    node: str
    reading_seconds: float
    computing_seconds: float

    @property
    def seconds(self) -> float:
        """Both."""
        return self.reading_seconds + self.computing_seconds


class Pace:
    """Adds up this rank's own time over steps.

    Args:
        device: Where it computes; on a GPU the device's own clock is read, once a step, when it has finished anyway.

    Attributes:
        steps: Counted since the last `take`.
    """

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._events: tuple[torch.cuda.Event, torch.cuda.Event] | None = None
        self._reading = self._computing = self._newest_passes = 0.0
        self.steps = 0

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Around the wait for this rank's samples."""
        began = time.perf_counter()
        yield
        self._reading += time.perf_counter() - began

    @contextmanager
    def computing(self) -> Iterator[None]:
        """Around the passes of one step; of a step that is taken again, the last time counts."""
        if self._on_gpu:
            self._events = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            self._events[0].record()
            yield
            self._events[1].record()
        else:
            began = time.perf_counter()
            yield
            self._newest_passes = time.perf_counter() - began

    def end_step(self) -> None:
        """Counts a step; its device work must be done."""
        self.steps += 1
        if self._events is not None:
            self._newest_passes = self._events[0].elapsed_time(self._events[1]) / 1000
            self._events = None
        self._computing += self._newest_passes
        self._newest_passes = 0.0

    def take(self, node: str) -> RankPace:
        """The means since the last call; starts over."""
        steps = max(1, self.steps)
        pace = RankPace(node, self._reading / steps, self._computing / steps)
        self._reading = self._computing = 0.0
        self.steps = 0
        return pace


def how_far_behind(ranks: Sequence[RankPace]) -> float:
    """By what share the slowest rank takes longer than the middle of all."""
    middle = median(pace.seconds for pace in ranks)
    return max(pace.seconds for pace in ranks) / middle - 1 if middle else 0.0


def pace_numbers(ranks: Sequence[RankPace]) -> dict[str, float]:
    """The row's `ranks`: own seconds a step of the middle and of the slowest rank, and how far that is behind."""
    slowest = max(range(len(ranks)), key=lambda rank: ranks[rank].seconds)
    return {
        "median_seconds": median(pace.seconds for pace in ranks),
        "slowest_seconds": ranks[slowest].seconds,
        "slowest_rank": slowest,
        "spread": how_far_behind(ranks),
    }


def describe_pace(ranks: Sequence[RankPace], steps: int) -> str:
    """One line about the ranks' own time, which names the slowest and its node.

    Args:
        ranks: By rank.
        steps: Over how many steps these are means.
    """
    middle = median(pace.seconds for pace in ranks)
    slowest = max(range(len(ranks)), key=lambda rank: ranks[rank].seconds)
    pace = ranks[slowest]
    part = "reading" if pace.reading_seconds > pace.computing_seconds else "computing"
    return (
        f"own time of {len(ranks)} ranks over {steps} steps: median {middle:.3f} s a step; slowest rank {slowest} on"
        f" {pace.node}, {pace.seconds:.3f} s ({100 * how_far_behind(ranks):+.0f} %), most of it {part}"
    )
