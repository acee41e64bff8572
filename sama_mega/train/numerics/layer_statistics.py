"""Statistics of every layer at an interval: activations, gradients and updates, over all ranks."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from sama_mega.config.schema import Recipe
from sama_mega.model import ModelInput, SamaDiT
from sama_mega.parallel.collectives import all_reduce_in_place
from sama_mega.parallel.runtime import ParallelContext
from sama_mega.parallel.transfer import read_numbers
from sama_mega.train.numerics.measures import max_abs
from sama_mega.train.state import TrainState

_OF_TOKENS = ("patch_embedding", "segment_embedding", "siglip_feat_mlp")
_WHOLE_ON_EVERY_RANK = ("text_embedding", "time_embedding")
_HEADS = ("head", "semantic_head")
_WITHOUT_OUTPUT = ("segment_embedding", "semantic_head")
"""The one only holds a weight, and the other gives its share of the loss."""

# Columns of the table of sums, then of the table of maxima.
_SQUARES, _NOT_FINITE, _COUNT, _GRADIENT, _WEIGHTS, _UPDATE, _NUM_SUMS = range(7)
_ACTIVATION_MAX, _GRADIENT_MAX, _NUM_MAXIMA = range(3)


@dataclass(frozen=True)
class LayerNumbers:
    """One layer in one step, over the global batch and all ranks.

    Attributes:
        activation_rms: Root mean square of its output, padding left out; None where it gives none.
        activation_max: Largest absolute value of its output.
        activation_not_finite: Share of its output that is NaN or infinite.
        gradient_norm: Euclidean norm of the gradient of its parameters, before clipping.
        gradient_max: Largest absolute value of that gradient.
        update_ratio: Norm of the step's update over the norm of the weights; None where the step was skipped.
    """

    activation_rms: float | None
    activation_max: float | None
    activation_not_finite: float | None
    gradient_norm: float
    gradient_max: float
    update_ratio: float | None


class LayerStatistics:
    """Looks at the layers of every step that is due, and touches nothing in the others.

    Args:
        recipe: `track.statistics_every` and `model.num_layers` are read.
        context: The running layout.
        state: What the steps work on.
    """

    def __init__(self, recipe: Recipe, context: ParallelContext, state: TrainState) -> None:
        self._every = recipe.track.statistics_every
        self._context = context
        self._state = state
        blocks = tuple(f"blocks.{layer}" for layer in range(recipe.model.num_layers))
        self.layers = (*_OF_TOKENS, *_WHOLE_ON_EVERY_RANK, *blocks, *_HEADS)
        self._row = {layer: number for number, layer in enumerate(self.layers)}
        self._sums: Tensor | None = None
        self._maxima: Tensor | None = None

    def is_due(self, step: int) -> bool:
        """Whether a step (1 for the first) is looked at."""
        return self._every > 0 and step % self._every == 0

    def taking(self, step: int) -> AbstractContextManager[None]:
        """Around the passes of a step: looks at activations on the way and at gradients at the end."""
        return self._taking() if self.is_due(step) else nullcontext()

    @torch.no_grad()
    def finish(self, *, updated: bool) -> dict[str, LayerNumbers]:
        """Sums up over the ranks, all of which call this after the step that was looked at.

        Args:
            updated: Whether the optimizer took the step.
        """
        assert self._sums is not None and self._maxima is not None, "taking() first"
        sums, maxima = self._sums, self._maxima
        self._sums = self._maxima = None
        for owned in self._state.optimizer.owned:
            if self._state.optimizer.counts(owned):
                row = sums[self._row[layer_of(owned.name)]]
                row[_WEIGHTS] += _squares(owned.master)
                if updated:
                    row[_UPDATE] += _squares(self._state.optimizer.last_update(owned))
        all_reduce_in_place(sums, self._context.world_group)
        dist.all_reduce(maxima, op=dist.ReduceOp.MAX, group=self._context.world_group)
        numbers = read_numbers(sums, maxima)
        edge = len(self.layers) * _NUM_SUMS
        return {
            layer: _numbers(
                numbers[row * _NUM_SUMS : (row + 1) * _NUM_SUMS],
                numbers[edge + row * _NUM_MAXIMA : edge + (row + 1) * _NUM_MAXIMA],
                updated,
            )
            for layer, row in self._row.items()
        }

    @contextmanager
    def _taking(self) -> Iterator[None]:
        size, device = len(self.layers), self._context.device
        self._sums = torch.zeros(size, _NUM_SUMS, dtype=torch.float64, device=device)
        self._maxima = torch.zeros(size, _NUM_MAXIMA, dtype=torch.float64, device=device)
        hooks = [hook for stage in self._state.stages for hook in self._attach(stage.module)]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
        self._look_at_gradients(self._sums, self._maxima)

    def _attach(self, stage: SamaDiT) -> list[Any]:
        """Hooks of one stage. What a pass computes again for its gradient is not counted twice."""
        running: list[int] = []  # the pass's real tokens on this rank, while it runs

        def begin(_: nn.Module, given: tuple[ModelInput]) -> None:
            running.append(stage.num_own_tokens(given[0]))

        def end(*_: Any) -> None:
            running.clear()

        def look(layer: str) -> Callable[..., None]:
            def hook(_: nn.Module, __: Any, output: Any) -> None:
                if running:
                    self._look_at_activation(layer, output, running[0])

            return hook

        hooks = [stage.register_forward_pre_hook(begin), stage.register_forward_hook(end)]
        for name, module in stage.named_modules():
            if name in self._row and name not in _WITHOUT_OUTPUT and self._counts_output(name, stage):
                hooks.append(module.register_forward_hook(look(name)))
        return hooks

    def _counts_output(self, layer: str, stage: SamaDiT) -> bool:
        """Whether this rank, of those that have the same output of a layer, is the one that counts it."""
        context = self._context
        if layer in _WHOLE_ON_EVERY_RANK:
            return stage.stage.is_first and context.tensor_rank == context.context_rank == 0
        return context.layout.sequence or context.tensor_rank == 0

    @torch.no_grad()
    def _look_at_activation(self, layer: str, output: Any, num_tokens: int) -> None:
        """Nothing waits for the device."""
        assert self._sums is not None and self._maxima is not None
        whole: Tensor = output[0] if isinstance(output, tuple) else output
        is_of_block = layer.startswith("blocks.") or layer == "head"
        tensor = whole.detach()[:num_tokens] if is_of_block else whole.detach()
        row = self._sums[self._row[layer]]
        row[_SQUARES] += _squares(tensor)
        row[_NOT_FINITE] += tensor.numel() - tensor.isfinite().sum()
        row[_COUNT] += tensor.numel()
        _raise_to(self._maxima[self._row[layer]], _ACTIVATION_MAX, tensor)

    @torch.no_grad()
    def _look_at_gradients(self, sums: Tensor, maxima: Tensor) -> None:
        """Before the optimizer clips them."""
        for owned in self._state.optimizer.owned:
            if self._state.optimizer.counts(owned):
                row = self._row[layer_of(owned.name)]
                sums[row, _GRADIENT] += _squares(owned.main_grad)
                _raise_to(maxima[row], _GRADIENT_MAX, owned.main_grad)


def layer_of(parameter: str) -> str:
    """`blocks.3.ffn.linear_in.weight` -> `blocks.3`; `head.modulation` -> `head`."""
    first, second = parameter.split(".")[:2]
    return f"{first}.{second}" if first == "blocks" else first


def _squares(tensor: Tensor) -> Tensor:
    """Sum of squares, a float64 scalar, without a float64 copy of the tensor."""
    return torch.linalg.vector_norm(tensor.detach(), dtype=torch.float32).double().square()


def _raise_to(row: Tensor, column: int, tensor: Tensor) -> None:
    # NaN would be lost in another rank's maximum; an infinity is not.
    reached = max_abs(tensor).double().nan_to_num(nan=math.inf, posinf=math.inf)
    row[column] = torch.maximum(row[column], reached)


def _numbers(sums: list[float], maxima: list[float], updated: bool) -> LayerNumbers:
    count = sums[_COUNT]
    return LayerNumbers(
        activation_rms=math.sqrt(sums[_SQUARES] / count) if count else None,
        activation_max=maxima[_ACTIVATION_MAX] if count else None,
        activation_not_finite=sums[_NOT_FINITE] / count if count else None,
        gradient_norm=math.sqrt(sums[_GRADIENT]),
        gradient_max=maxima[_GRADIENT_MAX],
        update_ratio=math.sqrt(sums[_UPDATE] / sums[_WEIGHTS]) if updated and sums[_WEIGHTS] else None,
    )
