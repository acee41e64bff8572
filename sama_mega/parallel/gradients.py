"""What makes gradients final after the last backward pass: the sums that megatron's data parallelism does not know."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from megatron.core.distributed import DistributedDataParallel

from sama_mega.parallel.collectives import flattened_all_reduce
from sama_mega.parallel.optimizer import OwnedSlice
from sama_mega.parallel.runtime import ParallelContext


@torch.no_grad()
def finalize_gradients(
    stages: Sequence[DistributedDataParallel], owned: Sequence[OwnedSlice], context: ParallelContext
) -> None:
    """Makes `main_grad` the gradient of the global batch in the slices that this rank's optimizer owns.

    First the gradients of data and context ranks are summed and scattered: from here on only the owned slices are
    valid. Of parameters that every tensor rank holds whole but applies to its own tokens (`sequence_parallel`) the
    tensor ranks' gradients are summed, of those that every pipeline stage has a copy of (`stage_copy`) the stages';
    one message each.

    Args:
        stages: This rank's wrapped pipeline stages; their gradient buffers are **mutated**.
        owned: `MegatronAdamW.owned`.
        context: The running layout.
    """
    for stage in stages:
        stage.finish_grad_sync()
    if context.layout.sequence:
        partial = [one.main_grad for one in owned if getattr(one.parameter, "sequence_parallel", False)]
        flattened_all_reduce(partial, context.tensor_group)
    if context.layout.num_stages > 1:
        _sum_stage_copies(owned, context)


def _sum_stage_copies(owned: Sequence[OwnedSlice], context: ParallelContext) -> None:
    """Adds up the copies of this rank's stages, then of all pipeline ranks, and gives each copy the sum."""
    by_name: dict[str, list[torch.Tensor]] = {}
    for one in owned:
        if one.stage_copy is not None:
            by_name.setdefault(one.name, []).append(one.main_grad)
    # Every pipeline rank owns the same slices of the copies, but may list them in another order.
    copies = [by_name[name] for name in sorted(by_name)]
    for first, *others in copies:
        for other in others:
            first += other
    flattened_all_reduce([first for first, *_ in copies], context.pipeline_group)
    for first, *others in copies:
        for other in others:
            other.copy_(first)
