"""Whole tensors in and out of a model that is spread over tensor-parallel ranks."""

from __future__ import annotations

from collections.abc import Callable, Mapping

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


def gather_whole(local: Tensor, parameter: nn.Parameter, context: ParallelContext) -> Tensor:
    """Gathers one tensor shaped like ``parameter`` from all tensor-parallel ranks; every rank gets it whole."""
    split_dim = getattr(parameter, "partition_dim", -1)
    if split_dim < 0 or context.layout.tensor == 1:
        return local
    slices = [torch.empty_like(local) for _ in range(context.layout.tensor)]
    torch.distributed.all_gather(slices, local.contiguous(), group=context.tensor_group)
    return torch.cat(slices, dim=split_dim)


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


def gather_parameters(
    model: nn.Module, context: ParallelContext, read: Callable[[nn.Parameter], Tensor]
) -> dict[str, Tensor]:
    """Reads one tensor a parameter (its value, its gradient, ...) and gathers each whole.

    Args:
        model: This rank's shard.
        context: The running layout.
        read: From a parameter to a tensor of the same shape.

    Returns:
        Name -> whole float32 tensor on the CPU.
    """
    return {
        name: gather_whole(read(parameter).detach(), parameter, context).float().cpu()
        for name, parameter in model.named_parameters()
    }
