"""Puts a layout's pieces together: every whole tensor, once for each rank or stage that has a copy of it.

Copies are compared one by one: a copy that drifted away on one rank is the bug that nobody notices.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from sama_mega.parallel.collectives import all_reduce_in_place, gather_objects
from sama_mega.parallel.runtime import ParallelContext
from sama_mega.parallel.sharded_state import ShardedState, ShardedTensor
from sama_mega.train.state import TrainState
from sama_mega.verify.report import Check, compare

WholeTensors = dict[str, list[Tensor]]
"""Name -> each copy, whole, float32 on the CPU."""
Copy = tuple[str, tuple[int, ...]]
"""Name and replica."""
ELEMENTS_PER_MESSAGE = 1 << 26


@torch.no_grad()
def put_together(pieces: ShardedState, context: ParallelContext) -> WholeTensors:
    """Gathers all ranks' pieces; every rank calls it, and the first gets everything, the others nothing.

    Args:
        pieces: As for a checkpoint, without a prefix; those of one key and replica must cover the tensor once.
        context: The running layout.
    """
    by_copy: dict[Copy, list[ShardedTensor]] = {}
    for piece in pieces.values():
        by_copy.setdefault((piece.key, tuple(piece.replica_id)), []).append(piece)
    shapes: dict[Copy, tuple[int, ...]] = {}
    own = {copy: tuple(found[0].global_shape) for copy, found in by_copy.items()}
    for theirs in gather_objects(own, context.world_group):
        shapes |= theirs
    whole: WholeTensors = {}
    for copies in _batches(shapes):
        flat = torch.zeros(sum(math.prod(shapes[copy]) for copy in copies), device=context.device)
        parts = flat.split([math.prod(shapes[copy]) for copy in copies])
        for copy, part in zip(copies, parts, strict=True):
            for piece in by_copy.get(copy, []):
                part.view(shapes[copy])[_place(piece)] = piece.data
        all_reduce_in_place(flat, context.world_group)
        if context.is_first_rank:
            for copy, part in zip(copies, parts, strict=True):
                whole.setdefault(copy[0], []).append(part.view(shapes[copy]).cpu())
    return whole


def _batches(shapes: Mapping[Copy, tuple[int, ...]]) -> Iterator[list[Copy]]:
    """Copies that travel in one message, in an order that is the same on every rank."""
    batch: list[Copy] = []
    size = 0
    for copy in sorted(shapes):
        size += math.prod(shapes[copy])
        batch.append(copy)
        if size >= ELEMENTS_PER_MESSAGE:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _place(piece: ShardedTensor) -> tuple[slice, ...]:
    """Where a piece lies in its whole tensor."""
    return tuple(slice(start, start + size) for start, size in zip(piece.global_offset, piece.local_shape, strict=True))


def owned_gradients(state: TrainState) -> ShardedState:
    """The global batch's gradients, after `finalize_gradients`: the slices that this rank owns."""
    return state.optimizer.sharded_masters("", [one.main_grad for one in state.optimizer.owned])


def compare_copies(name: str, copies: Sequence[Tensor], expected: Tensor, limit: float) -> Check:
    """Compares every copy and reports the worst; nothing to compare with counts as wrong."""
    if not expected.any():
        return Check(f"{name} (zero: it says nothing)", float("inf"), limit)
    checks = [compare(name, copy, expected, limit) for copy in copies]
    # NaN is the worst of all.
    return max(checks, key=lambda check: float("inf") if check.error != check.error else check.error)


def compare_whole(prefix: str, ours: Mapping[str, Sequence[Tensor]], truth: WholeTensors, limit: float) -> list[Check]:
    """Compares two sets of whole tensors, name by name.

    Raises:
        AssertionError: Their names differ: then they are not of the same model.
    """
    assert ours.keys() == truth.keys(), sorted(ours.keys() ^ truth.keys())
    return [compare_copies(prefix + name, ours[name], truth[name][0], limit) for name in sorted(truth)]
