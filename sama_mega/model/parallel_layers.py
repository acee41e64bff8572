"""megatron-core's parallel linears with this model's conventions and products, and the tags parameters carry.

Shape legend: s this rank's tokens, S its group's tokens inside the products (S = s without sequence parallel), B batch.

Every parameter says how it is spread over the tensor-parallel ranks:
`tensor_model_parallel` and `partition_dim` when each rank holds a slice, `sequence_parallel` when each rank holds
all of it but sees only its own tokens, so that its gradient is a partial sum. `stage_copy` numbers the copies of a
parameter that every pipeline stage holds.
"""

from __future__ import annotations

import dataclasses
from typing import Any, TypeVar

import torch
from megatron.core.tensor_parallel.layers import (
    ColumnParallelLinear,
    RowParallelLinear,
    set_tensor_model_parallel_attributes,
)
from megatron.core.tensor_parallel.mappings import copy_to_tensor_model_parallel_region
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor, nn

from sama_kernels.keep import Keep, compute_now
from sama_mega.model.parallel_products import ColumnProduct, RowProduct
from sama_mega.parallel.layout import Stage
from sama_mega.parallel.runtime import ParallelContext

Module = TypeVar("Module", bound=nn.Module)


def _left_to_initialize_weights(_: Tensor) -> None:
    """Stands where megatron wants an initializer: `initialize_weights` fills every parameter afterwards."""


class ColumnLinear(ColumnParallelLinear):
    """Linear whose output features are split over the tensor-parallel ranks.

    Args:
        in_features: Global input width.
        out_features: Global output width.
        config: megatron's configuration.
        context: The running layout.
        gather_sequence: True: the input is a sequence shard (under sequence parallel it is all-gathered first);
            False: the input is whole on every rank, and its gradient is this rank's part of a sum: see
            `sum_gradient_over_tensor_ranks`.
        dtype: Of weight and bias; the configuration's by default.

    Attributes:
        low_rank: What `add_low_rank` puts beside the weight; None without.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        config: TransformerConfig,
        context: ParallelContext,
        *,
        gather_sequence: bool = True,
        dtype: torch.dtype | None = None,
    ) -> None:
        if not gather_sequence:
            config = dataclasses.replace(config, sequence_parallel=False)
        if dtype is not None:
            config = dataclasses.replace(config, params_dtype=dtype)
        super().__init__(
            in_features,
            out_features,
            config=config,
            init_method=_left_to_initialize_weights,
            disable_grad_reduce=not gather_sequence,
            tp_group=context.tensor_group,
        )
        for parameter in self.parameters():
            split_over_tensor_ranks(parameter, 0)
        self.low_rank: nn.Module | None = None

    def forward(self, x: Tensor, keep: Keep = compute_now) -> Tensor:
        """``[s, B, in]`` -> ``[S, B, out / tp]``."""
        output: Tensor = ColumnProduct.apply(
            x, self.weight, self.bias, self.tp_group, self.sequence_parallel, self.allreduce_dgrad, keep
        )
        return output if self.low_rank is None else output + self.low_rank(x)


class RowLinear(RowParallelLinear):
    """Linear whose input features are split over the tensor-parallel ranks; its output is summed over them.

    Args:
        in_features: Global input width.
        out_features: Global output width.
        config: megatron's configuration.
        context: The running layout.

    Attributes:
        low_rank: What `add_low_rank` puts beside the weight; None without.
    """

    def __init__(
        self, in_features: int, out_features: int, config: TransformerConfig, context: ParallelContext
    ) -> None:
        super().__init__(
            in_features,
            out_features,
            config=config,
            init_method=_left_to_initialize_weights,
            bias=True,
            input_is_parallel=True,
            skip_bias_add=False,
            tp_group=context.tensor_group,
        )
        split_over_tensor_ranks(self.weight, 1)
        self.low_rank: nn.Module | None = None

    def forward(self, x: Tensor, keep: Keep = compute_now) -> Tensor:
        """``[S, B, in / tp]`` -> ``[s, B, out]``."""
        product: Tensor = RowProduct.apply(x, self.weight, self.tp_group, self.sequence_parallel, keep)
        output = product + self.bias
        return output if self.low_rank is None else output + self.low_rank(x)


def sum_gradient_over_tensor_ranks(x: Tensor, context: ParallelContext) -> Tensor:
    """Passes a tensor that is whole on every tensor rank on to linears that each use it for their own features.

    Forward nothing happens; backward the ranks' parts of its gradient are summed, once for all those linears.
    """
    if context.layout.tensor == 1:
        return x
    summed: Tensor = copy_to_tensor_model_parallel_region(x, group=context.tensor_group)
    return summed


def split_over_tensor_ranks(parameter: nn.Parameter, dim: int) -> None:
    """Tags a parameter of which each tensor-parallel rank holds a slice along ``dim``."""
    if not getattr(parameter, "tensor_model_parallel", False):
        set_tensor_model_parallel_attributes(parameter, True, dim, 1)


def sees_own_tokens(module: nn.Module, config: TransformerConfig) -> None:
    """Tags all parameters of a module that is whole on every rank but works on this rank's tokens only."""
    for parameter in module.parameters():
        tagged: Any = parameter
        tagged.sequence_parallel = config.sequence_parallel


def copied_to_stages(module: Module, stage: Stage, context: ParallelContext) -> Module:
    """Tags all parameters of a module that every pipeline stage has a copy of.

    Each copy's gradient is a partial sum, so `finalize_gradients` adds them up and the copies stay equal. Does nothing
    where there is one stage.
    """
    if context.layout.num_stages > 1:
        for parameter in module.parameters():
            tagged: Any = parameter
            tagged.stage_copy = stage.index
            # megatron then gives it a bucket of its own, so that data ranks own the same part of it on every stage.
            tagged.shared_embedding = True
    return module


def empty_parameter(*shape: int, dtype: torch.dtype, device: torch.device) -> nn.Parameter:
    """A parameter that `initialize_weights` or a checkpoint fills."""
    return nn.Parameter(torch.empty(*shape, dtype=dtype, device=device))


class Linear(nn.Linear):
    """A linear that is whole on every rank, not initialised here."""

    def reset_parameters(self) -> None:
        """Leaves the weights to `initialize_weights`."""
