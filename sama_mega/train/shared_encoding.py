"""Shares the encoding of a step's micro-batches among the ranks that work on the same samples.

Each result is encoded by one rank and sent to the others, instead of being encoded by all of them. Who encodes what
follows from predicted costs alone, so nobody has to ask.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Generic, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from sama_data.dealing import deal
from sama_mega.observe.flops import (
    ENCODER_OPERATIONS_PER_ANCHOR,
    ENCODER_OPERATIONS_PER_PIXEL,
    ENCODER_OPERATIONS_PER_TOKEN,
)
from sama_mega.parallel.collectives import broadcast_in_place
from sama_mega.parallel.runtime import ParallelContext

Item = TypeVar("Item")
Encoded = TypeVar("Encoded")


@dataclass(frozen=True)
class EncodingJob:
    """One result of a micro-batch.

    Attributes:
        cost: Predicted, in operations; the same on every rank.
        shape: Of the result, float32.
        run: Encodes it.
    """

    cost: float
    shape: tuple[int, ...]
    run: Callable[[], Tensor]


@dataclass(frozen=True)
class Sharing:
    """Who shares, and how many micro-batches at a time.

    Attributes:
        group: The ranks that work on the same samples.
        device: Where this rank's results live.
        micro_batches_at_once: None: all of a step.
    """

    group: dist.ProcessGroup
    device: torch.device
    micro_batches_at_once: int | None

    @classmethod
    def among(cls, context: ParallelContext) -> Sharing | None:
        """The sharing of a layout; None where each model copy is on one rank.

        With pipeline stages all of a step is encoded before the first of them runs: stages reach a micro-batch at
        different times, and one that waits for the others' results could not be waited for. Otherwise a micro-batch
        a rank is enough to keep all of them at work, and what is held stays small.
        """
        group = context.model_group
        if group.size() == 1:
            return None
        return cls(group, context.device, None if context.layout.num_stages > 1 else group.size())


def pixels_cost(shape: Sequence[int]) -> float:
    """Predicted operations for clips of ``[B, T, H, W]`` pixels."""
    return ENCODER_OPERATIONS_PER_PIXEL * math.prod(shape)


def tokens_cost(num_tokens: int) -> float:
    """Predicted operations for prompts of so many tokens together."""
    return ENCODER_OPERATIONS_PER_TOKEN * num_tokens


def anchors_cost(num_frames: int) -> float:
    """Predicted operations for so many anchor frames."""
    return ENCODER_OPERATIONS_PER_ANCHOR * num_frames


@torch.no_grad()
def run_shared(jobs: Sequence[EncodingJob], group: dist.ProcessGroup, device: torch.device) -> list[Tensor]:
    """Runs each job on one rank and sends its result to the others.

    Args:
        jobs: The same on every rank of the group, but for `run`, which is called on one of them.
        group: The ranks, all of which call this.
        device: Where the results live.

    Returns:
        Every job's result, float32, the same bits on every rank.
    """
    dealt = deal([job.cost for job in jobs], group.size())
    owners = {index: rank for rank, indices in enumerate(dealt) for index in indices}
    own = {index: jobs[index].run().contiguous() for index in dealt[group.rank()]}
    results = []
    for index, job in enumerate(jobs):
        result = own.pop(index) if index in own else torch.empty(job.shape, device=device)
        assert result.shape == job.shape and result.dtype == torch.float32, (result.shape, job.shape, result.dtype)
        results.append(broadcast_in_place(result, owners[index], group))
    return results


def share_step(
    items: Sequence[Item],
    jobs_of: Callable[[Item], list[EncodingJob]],
    assemble: Callable[[Item, list[Tensor]], Encoded],
    sharing: Sharing,
) -> list[Callable[[], Encoded]]:
    """Plans the encoding of a step's micro-batches.

    Args:
        items: The micro-batches, the same on every rank of the group.
        jobs_of: A micro-batch's jobs.
        assemble: From a micro-batch and its results.
        sharing: Among whom.

    Returns:
        A call for each micro-batch that gives it encoded. To be made once each, in order, alike on every rank: some of
        them encode a whole round.
    """
    at_once = sharing.micro_batches_at_once or max(1, len(items))
    rounds = [
        _Round(items[start : start + at_once], jobs_of, assemble, sharing) for start in range(0, len(items), at_once)
    ]
    if sharing.micro_batches_at_once is None:
        for one in rounds:
            one.run()
    return [partial(one.take, place) for one in rounds for place in range(len(one))]


class _Round(Generic[Item, Encoded]):
    """Micro-batches that are encoded together, when the first of them is due."""

    def __init__(
        self,
        items: Sequence[Item],
        jobs_of: Callable[[Item], list[EncodingJob]],
        assemble: Callable[[Item, list[Tensor]], Encoded],
        sharing: Sharing,
    ) -> None:
        self._items = items
        self._jobs_of = jobs_of
        self._assemble = assemble
        self._sharing = sharing
        self._encoded: dict[int, Encoded] | None = None

    def __len__(self) -> int:
        return len(self._items)

    def run(self) -> None:
        """Encodes all of them."""
        jobs = [self._jobs_of(item) for item in self._items]
        results = iter(run_shared([job for own in jobs for job in own], self._sharing.group, self._sharing.device))
        self._encoded = {
            place: self._assemble(item, [next(results) for _ in own])
            for place, (item, own) in enumerate(zip(self._items, jobs, strict=True))
        }

    def take(self, place: int) -> Encoded:
        """Gives one of them away."""
        if self._encoded is None:
            self.run()
        assert self._encoded is not None
        return self._encoded.pop(place)
