"""Runs forward and backward passes of a step's micro-batches in the order that the layout wants."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import TypeVar

from megatron.core.distributed import DistributedDataParallel
from torch import Tensor

MicroBatch = TypeVar("MicroBatch")


def run_forward_backward(
    model: DistributedDataParallel,
    micro_batches: Sequence[MicroBatch],
    forward_step: Callable[[MicroBatch], Tensor],
) -> None:
    """Adds the gradients of all micro-batches into the model's buffers.

    Args:
        model: The wrapped model; its gradient buffers are **mutated**. Call `finalize_gradients` afterwards.
        micro_batches: In order; only the last one's backward may start sending gradients.
        forward_step: From a micro-batch to the scalar to differentiate: its share of the step's loss.
    """
    for position, micro_batch in enumerate(micro_batches):
        more_to_come = position < len(micro_batches) - 1
        with model.no_sync() if more_to_come else nullcontext():
            forward_step(micro_batch).backward()
