"""Whole tensors into a model that is spread over tensor-parallel ranks."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from sama_mega.config.errors import CheckpointError
from sama_mega.parallel.runtime import ParallelContext


def my_slice(whole: Tensor, parameter: nn.Parameter, context: ParallelContext) -> Tensor:
    """This rank's slice of a whole tensor, by the parameter's tags."""
    split_dim = getattr(parameter, "partition_dim", -1)
    if split_dim < 0 or context.layout.tensor == 1:
        return whole
    return whole.chunk(context.layout.tensor, split_dim)[context.tensor_rank]


@torch.no_grad()
def load_whole(model: nn.Module, tensors: Mapping[str, Tensor], context: ParallelContext) -> None:
    """Copies whole tensors into this rank's parameters, in place.

    Args:
        model: Its `named_parameters` must be exactly the keys of ``tensors``.
        tensors: Name -> whole tensor.
        context: The running layout.

    Raises:
        CheckpointError: A shape differs.
    """
    for name, parameter in model.named_parameters():
        mine = my_slice(tensors[name], parameter, context)
        if mine.shape != parameter.shape:
            raise CheckpointError(
                f"{name}: shape {tuple(tensors[name].shape)} does not fit the recipe's model (this rank wants"
                f" {tuple(parameter.shape)} of tensor parallel {context.layout.tensor})"
            )
        parameter.copy_(mine)
