"""Makes sure that the ranks which share a sample really hold the same one."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import torch
import torch.distributed as dist

from sama_data.errors import DataError
from sama_data.loader import StepSamples
from sama_mega.parallel.runtime import ParallelContext


def agreeing_batches(batches: Iterator[StepSamples], context: ParallelContext) -> Iterator[StepSamples]:
    """Passes batches on, after comparing them within the model-parallel group.

    Ranks of one group decode the same files on their own. A read error on one of them alone would give it a stand-in,
    and the group would train on a mixture without noticing, or hang on unequal shapes.

    Args:
        batches: This rank's.
        context: The running layout.

    Raises:
        DataError: On every rank of the group, when samples differ.
    """
    for drawn in batches:
        if context.model_group.size() > 1:
            _require_agreement(drawn, context)
        yield drawn


def _require_agreement(drawn: StepSamples, context: ParallelContext) -> None:
    seen = ",".join(f"{sample.slot}:{sample.index}:{sample.epoch}" for sample in drawn.samples)
    digest = int.from_bytes(hashlib.blake2b(seen.encode(), digest_size=7).digest(), "little")
    extremes = torch.tensor([digest, -digest], dtype=torch.int64, device=context.device)
    dist.all_reduce(extremes, op=dist.ReduceOp.MAX, group=context.model_group)
    largest, smallest = extremes[0].item(), -extremes[1].item()
    if largest != smallest:
        raise DataError(
            f"step {drawn.step}: ranks of one model-parallel group read different samples: a file was readable on one"
            " of them only; see quarantine.jsonl and check the storage of every node"
        )
