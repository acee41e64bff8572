"""Pipeline parallelism: megatron-core's 1F1B schedules, plain and interleaved, over micro-batches of any shapes.

megatron sends every tensor's shape ahead of it and waits for the device to read it. Here every stage knows its
micro-batches, so it knows the shapes: nothing is sent but activations and their gradients.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from megatron.core.distributed import DistributedDataParallel
from megatron.core.pipeline_parallel.p2p_communication import P2PCommunicator
from megatron.core.pipeline_parallel.schedules import (
    forward_backward_pipelining_with_interleaving,
    forward_backward_pipelining_without_interleaving,
    get_schedule_table,
)
from torch import Tensor

from sama_mega.parallel.cpu_shim import cuda_literals_on_cpu
from sama_mega.parallel.layout import micro_batch_group_size
from sama_mega.parallel.runtime import ParallelContext

Shape = tuple[int, int, int]


def run_pipeline(
    chunks: Sequence[DistributedDataParallel],
    num_micro_batches: int,
    forward: Callable[[int, int], Tensor],
    hidden_shape: Callable[[int], Shape],
    context: ParallelContext,
) -> None:
    """Runs all forward and backward passes of a step on this rank's stages.

    Args:
        chunks: This rank's stages in order; their gradient buffers are **mutated**.
        num_micro_batches: The same on all pipeline ranks; at least `layout.pipeline` when interleaved.
        forward: From a chunk and a micro-batch's index to what the next stage reads or, on the last, the scalar to
            differentiate.
        hidden_shape: Shape of what travels between stages for a micro-batch; asked for before its first `forward`.
        context: The running layout.
    """
    layout = context.layout
    config = chunks[0].config
    group_size = micro_batch_group_size(layout, num_micro_batches)
    table = get_schedule_table(num_micro_batches, layout.interleave, group_size)
    communicator = _PlannedShapes(context, config, table, hidden_shape)

    def forward_step(
        indices: Iterator[tuple[int, int]], _: torch.nn.Module
    ) -> tuple[Tensor, Callable[[Tensor], tuple]]:
        return forward(*next(indices)), _unscaled

    iterators = [iter([(chunk, index) for index in range(num_micro_batches)]) for chunk in range(layout.interleave)]
    # Images and videos follow one another; `_PlannedShapes` answers where megatron would now send shapes.
    config.variable_seq_lengths = True
    config.no_sync_func = [chunk.no_sync for chunk in chunks] if layout.interleave > 1 else chunks[0].no_sync
    config.microbatch_group_size_per_vp_stage = group_size
    interleaved = layout.interleave > 1
    # Frees what was sent; interleaved sends are not waited for, and may still be reading it.
    config.deallocate_pipeline_outputs = not interleaved
    run = (
        forward_backward_pipelining_with_interleaving
        if interleaved
        else forward_backward_pipelining_without_interleaving
    )
    with cuda_literals_on_cpu():
        run(
            forward_step_func=forward_step,
            data_iterator=iterators,
            model=list(chunks),
            num_microbatches=num_micro_batches,
            # Of tensors with planned shapes megatron only wants to know that there is one.
            seq_length=1,
            micro_batch_size=1,
            p2p_communicator=communicator,
            pg_collection=context.groups,
        )


def _unscaled(loss: Tensor) -> tuple[Tensor, Tensor, None]:
    """The loss is a share of the global batch's already; megatron counts tokens for a division that is switched off."""
    return loss, torch.zeros((), dtype=torch.int), None


class _PlannedShapes(P2PCommunicator):
    """megatron's messages between neighbours, with shapes looked up instead of sent.

    Forward and backward, a rank receives micro-batches in the order of the schedule. The rank where the stages begin
    (forward) or end (backward) receives one tensor less a micro-batch: its outermost chunk has no neighbour.
    """

    def __init__(
        self,
        context: ParallelContext,
        config: object,
        table: Sequence[tuple[int, int]],
        hidden_shape: Callable[[int], Shape],
    ) -> None:
        super().__init__(context.pipeline_group, config)
        layout = context.layout
        last_chunk = layout.interleave - 1

        def received(is_outermost: bool) -> Iterator[int]:
            return (index for index, chunk in table if not (is_outermost and chunk == last_chunk))

        self._forward_order = received(context.pipeline_rank == 0)
        self._backward_order = received(context.pipeline_rank == layout.pipeline - 1)
        self._hidden_shape = hidden_shape

    def _communicate_shapes(
        self, tensor_send_next: Tensor | None, tensor_send_prev: Tensor | None, recv_prev: bool, recv_next: bool
    ) -> tuple[Shape | None, Shape | None]:
        forward = self._hidden_shape(next(self._forward_order)) if recv_prev else None
        backward = self._hidden_shape(next(self._backward_order)) if recv_next else None
        return forward, backward
