"""Runs forward and backward passes of a step's micro-batches in the order that the layout wants."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Generic, TypeVar

from megatron.core.distributed import DistributedDataParallel
from torch import Tensor

from sama_mega.parallel.pipeline import Shape, run_pipeline
from sama_mega.parallel.runtime import ParallelContext

Item = TypeVar("Item")
Prepared = TypeVar("Prepared")


def run_forward_backward(
    chunks: Sequence[DistributedDataParallel],
    items: Sequence[Item],
    prepare: Callable[[Item], Prepared],
    forward_step: Callable[[DistributedDataParallel, Prepared], Tensor],
    hidden_shape: Callable[[Prepared], Shape],
    context: ParallelContext,
) -> None:
    """Adds the gradients of all micro-batches into the model's buffers.

    Args:
        chunks: This rank's wrapped pipeline stages; their gradient buffers are **mutated**. Call
            `finalize_gradients` afterwards.
        items: The micro-batches, in order and the same on all ranks of their samples; only the last one's backward may
            start sending gradients. There may be none.
        prepare: From an item to what `forward_step` reads; called once a micro-batch, when it is due.
        forward_step: From a stage and a prepared micro-batch to what the next stage reads or, on the last stage, the
            scalar to differentiate: the micro-batch's share of the step's loss.
        hidden_shape: Shape of what the stages send each other for a micro-batch.
        context: The running layout.
    """
    if not items:
        return
    if context.layout.num_stages > 1:
        due = _Due(items, prepare, hidden_shape, uses=len(chunks))
        run_pipeline(
            chunks,
            len(items),
            lambda chunk, index: forward_step(chunks[chunk], due.take(index)),
            due.shape,
            context,
        )
        return
    (model,) = chunks
    for position, item in enumerate(items):
        more_to_come = position < len(items) - 1
        with model.no_sync() if more_to_come else nullcontext():
            forward_step(model, prepare(item)).backward()


class _Due(Generic[Item, Prepared]):
    """Prepared micro-batches, kept from the first time one is needed until its last stage on this rank has run."""

    def __init__(
        self,
        items: Sequence[Item],
        prepare: Callable[[Item], Prepared],
        hidden_shape: Callable[[Prepared], Shape],
        uses: int,
    ) -> None:
        self._items = items
        self._prepare = prepare
        self._hidden_shape = hidden_shape
        self._uses_left = [uses] * len(items)
        self._ready: dict[int, Prepared] = {}
        self._shapes: dict[int, Shape] = {}

    def shape(self, index: int) -> Shape:
        """The shape that travels; also of a micro-batch whose turn is over, for its gradient."""
        if index not in self._shapes:
            self._shapes[index] = self._hidden_shape(self._get(index))
        return self._shapes[index]

    def take(self, index: int) -> Prepared:
        """A micro-batch for one of this rank's stages; dropped after the last."""
        self.shape(index)
        prepared = self._get(index)
        self._uses_left[index] -= 1
        if not self._uses_left[index]:
            del self._ready[index]
        return prepared

    def _get(self, index: int) -> Prepared:
        if index not in self._ready:
            assert self._uses_left[index], index
            self._ready[index] = self._prepare(self._items[index])
        return self._ready[index]
