"""Low-rank changes of the blocks' linears, trained while everything else is frozen (LoRA).

A linear's output gains ``alpha / rank * up @ (down @ x)``. Beside a column-parallel linear the rows of ``up`` are split
over the tensor ranks and ``down`` is whole; beside a row-parallel one ``down`` is split by columns and ``up`` is whole.

Shape legend: s this rank's tokens, S its group's tokens (S = s without sequence parallel), B batch, r rank.
"""

from __future__ import annotations

from typing import Any

from megatron.core.tensor_parallel.mappings import (
    copy_to_tensor_model_parallel_region,
    gather_from_sequence_parallel_region,
    reduce_from_tensor_model_parallel_region,
    reduce_scatter_to_sequence_parallel_region,
)
from torch import Tensor, nn

from sama_mega.config.schema import LoraRecipe
from sama_mega.model.parallel_layers import ColumnLinear, RowLinear, empty_parameter, split_over_tensor_ranks
from sama_mega.parallel.runtime import ParallelContext

LOW_RANK = ".low_rank."
"""In the names of what is trained, between the linear's and ``down`` or ``up``."""


class LowRank(nn.Module):
    """What both kinds share.

    Args:
        linear: The linear that it changes; only read.
        settings: `rank` and `alpha` are read.
        context: The running layout.
    """

    def __init__(self, linear: ColumnLinear | RowLinear, settings: LoraRecipe, context: ParallelContext) -> None:
        super().__init__()
        num_out, num_in = linear.weight.shape
        options: dict[str, Any] = {"dtype": linear.weight.dtype, "device": context.device}
        self.down = empty_parameter(settings.rank, num_in, **options)
        self.up = empty_parameter(num_out, settings.rank, **options)
        self.factor = settings.factor
        self.group = context.tensor_group
        self.sequence_parallel = linear.sequence_parallel


class ColumnLowRank(LowRank):
    """Beside a linear whose output features are split."""

    def __init__(self, linear: ColumnLinear, settings: LoraRecipe, context: ParallelContext) -> None:
        super().__init__(linear, settings, context)
        split_over_tensor_ranks(self.up, 0)
        _sees_own_tokens(self.down, self.sequence_parallel)
        self.input_gradient_is_summed = linear.allreduce_dgrad or linear.sequence_parallel or self.group.size() == 1

    def forward(self, x: Tensor) -> Tensor:
        """``[s, B, in]`` -> ``[S, B, out / tp]``."""
        # Whole gradients for `down`: where the linear leaves its input's to be summed, that one must not be wanted.
        assert self.input_gradient_is_summed or not x.requires_grad
        inner = x.matmul(self.down.t())
        if self.sequence_parallel:
            inner = gather_from_sequence_parallel_region(inner, group=self.group)
        elif self.group.size() > 1:
            inner = copy_to_tensor_model_parallel_region(inner, group=self.group)
        return self.factor * inner.matmul(self.up.t())


class RowLowRank(LowRank):
    """Beside a linear whose input features are split."""

    def __init__(self, linear: RowLinear, settings: LoraRecipe, context: ParallelContext) -> None:
        super().__init__(linear, settings, context)
        split_over_tensor_ranks(self.down, 1)
        _sees_own_tokens(self.up, self.sequence_parallel)

    def forward(self, x: Tensor) -> Tensor:
        """``[S, B, in / tp]`` -> ``[s, B, out]``."""
        inner = x.matmul(self.down.t())
        if self.sequence_parallel:
            inner = reduce_scatter_to_sequence_parallel_region(inner, group=self.group)
        elif self.group.size() > 1:
            inner = reduce_from_tensor_model_parallel_region(inner, group=self.group)
        return self.factor * inner.matmul(self.up.t())


def add_low_rank(stage: nn.Module, settings: LoraRecipe, context: ParallelContext) -> None:
    """Freezes a pipeline stage's parameters and puts trainable low-rank changes beside its blocks' linears.

    Args:
        stage: Mutated.
        settings: `rank` must not be 0.
        context: The running layout.
    """
    stage.requires_grad_(False)
    for path, linear in list(stage.named_modules()):
        if path.startswith("blocks.") and path.split(".", 2)[-1] in settings.targets:
            linear.low_rank = (
                ColumnLowRank(linear, settings, context)
                if isinstance(linear, ColumnLinear)
                else RowLowRank(linear, settings, context)
            )


def _sees_own_tokens(parameter: nn.Parameter, sequence_parallel: bool) -> None:
    """Tags a whole parameter that works on this rank's tokens only: its gradient is a partial sum."""
    tagged: Any = parameter
    tagged.sequence_parallel = sequence_parallel
