"""Says where a rank's tensors lie inside the whole model's tensors, for checkpoints that load in any layout.

Two kinds of pieces exist. A parameter (or anything shaped like one) is a regular slice along one axis, or
whole. An optimizer shard is a run of consecutive elements of such a slice, cut without regard to rows; it is
written as the few boxes that a run consists of, so that it needs no gathering to save and any other layout
can read it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from megatron.core.dist_checkpointing.mapping import ShardedTensor
from torch import nn

from sama_mega.parallel.data_parallel import parameter_names

if TYPE_CHECKING:
    from sama_mega.parallel.runtime import ParallelContext

ShardedState = dict[str, ShardedTensor]


@dataclass(frozen=True)
class Box:
    """A rectangular part of a tensor.

    Attributes:
        offset: First index along every axis.
        shape: Extent along every axis.
    """

    offset: tuple[int, ...]
    shape: tuple[int, ...]

    @property
    def num_elements(self) -> int:
        """Elements inside."""
        return math.prod(self.shape)


def shard_parameters(
    module: nn.Module,
    context: ParallelContext,
    prefix: str,
    values: Mapping[str, torch.Tensor] | None = None,
    trainable: bool | None = None,
) -> ShardedState:
    """Describes every parameter of a module, or tensors that stand for them.

    Args:
        module: Parameters say how they are spread: `tensor_model_parallel` with `partition_dim`, else whole.
        context: The running layout.
        prefix: Put before the parameter's name in the checkpoint, such as `model.`.
        values: By parameter name (without wrappers' `module.`): tensors of the same shapes, any dtype, saved
            or filled instead of the parameters. Exactly one for each parameter.
        trainable: True: only those that are trained; False: only the frozen ones; None: all.

    Returns:
        Entry -> piece, whose `key` is the checkpoint's. The pieces alias the tensors: loading fills them in place.
    """
    parameters = {
        name: parameter
        for name, parameter in parameter_names(module).items()
        if trainable is None or parameter.requires_grad == trainable
    }
    assert not _persistent_buffers(module), _persistent_buffers(module)
    if values is not None:
        assert values.keys() == parameters.keys(), values.keys() ^ parameters.keys()
    state: ShardedState = {}
    for name, parameter in parameters.items():
        data = (parameter if values is None else values[name]).detach()
        assert data.shape == parameter.shape, (name, data.shape, parameter.shape)
        axis = partition_axis(parameter)
        offsets = [] if axis is None else [(axis, context.tensor_rank, context.layout.tensor)]
        copy = stage_copy(parameter) or 0
        state[_entry(prefix + name, copy)] = ShardedTensor.from_rank_offsets(
            prefix + name,
            data,
            *offsets,
            # Only the replica (0, 0, 0) is written: data ranks, tensor ranks of a whole parameter and some parameters'
            # pipeline stages are copies.
            replica_id=(copy, _tensor_replica(parameter, context), context.groups.dp_cp.rank()),
        )
    return state


def shard_flat_run(
    key: str, parameter: nn.Parameter, run: torch.Tensor, start: int, context: ParallelContext
) -> ShardedState:
    """Describes consecutive elements of a parameter's local slice as boxes of the whole tensor.

    Args:
        key: Checkpoint key of the whole tensor.
        parameter: This rank's slice; its shape and tags give the geometry.
        run: 1-D, any dtype, contiguous; element i belongs at flat index `start + i` of the slice.
        start: Index of the run's first element in the flattened slice.
        context: The running layout. Data ranks must hold disjoint runs that cover the slice together.

    Returns:
        One entry a box, with distinct dictionary keys and the same checkpoint key; the pieces alias `run`.
    """
    axis = partition_axis(parameter)
    global_shape, origin = list(parameter.shape), [0] * parameter.dim()
    if axis is not None:
        global_shape[axis] *= context.layout.tensor
        origin[axis] = context.tensor_rank * parameter.shape[axis]
    state: ShardedState = {}
    copy = stage_copy(parameter) or 0
    taken = 0
    for index, box in enumerate(split_flat_run(tuple(parameter.shape), start, start + run.numel())):
        data = run.detach()[taken : taken + box.num_elements].view(box.shape)
        taken += box.num_elements
        state[_entry(f"{key}#{index}", copy)] = ShardedTensor(
            key=key,
            data=data,
            dtype=data.dtype,
            local_shape=box.shape,
            global_shape=tuple(global_shape),
            global_offset=tuple(first + inside for first, inside in zip(origin, box.offset, strict=True)),
            # None: pieces of different shapes, not a regular grid.
            axis_fragmentations=None,
            replica_id=(copy, _tensor_replica(parameter, context), 0),
        )
    return state


def split_flat_run(shape: Sequence[int], start: int, end: int) -> list[Box]:
    """Cuts the elements start..end of a flattened tensor into boxes, in flat order.

    A box is consecutive in memory, so box after box consumes the run. At most 2 * len(shape) - 1 boxes.

    Args:
        shape: Shape of the tensor, row-major.
        start: First flat index.
        end: One past the last flat index.
    """
    if start >= end:
        return []
    if len(shape) == 0:
        return [Box((), ())]
    if len(shape) == 1:
        return [Box((start,), (end - start,))]
    row_size = math.prod(shape[1:])
    first_row, first_inside = divmod(start, row_size)
    last_row, last_inside = divmod(end, row_size)
    if first_row == last_row:
        return _boxes_in_row(shape, first_row, first_inside, last_inside)
    boxes = []
    if first_inside:
        boxes += _boxes_in_row(shape, first_row, first_inside, row_size)
        first_row += 1
    if last_row > first_row:
        boxes.append(Box((first_row, *(0 for _ in shape[1:])), (last_row - first_row, *shape[1:])))
    return boxes + _boxes_in_row(shape, last_row, 0, last_inside)


def _boxes_in_row(shape: Sequence[int], row: int, start: int, end: int) -> list[Box]:
    inner = split_flat_run(shape[1:], start, end)
    return [Box((row, *box.offset), (1, *box.shape)) for box in inner]


def partition_axis(parameter: nn.Parameter) -> int | None:
    """The axis along which the tensor ranks split a parameter, or None when each holds it whole."""
    if not getattr(parameter, "tensor_model_parallel", False):
        return None
    # A strided split interleaves ranks along the axis; one offset cannot describe it.
    assert getattr(parameter, "partition_stride", 1) == 1, tuple(parameter.shape)
    axis = getattr(parameter, "partition_dim", -1)
    assert 0 <= axis < parameter.dim(), (axis, tuple(parameter.shape))
    return axis


def stage_copy(parameter: nn.Parameter) -> int | None:
    """Number of this copy of a parameter that every pipeline stage holds; None for one that a single stage has."""
    return getattr(parameter, "stage_copy", None)


def _entry(key: str, copy: int) -> str:
    """Name of a piece in a rank's state; interleaved stages put several copies of a parameter on one rank."""
    return f"{key}@{copy}" if copy else key


def _tensor_replica(parameter: nn.Parameter, context: ParallelContext) -> int:
    return context.tensor_rank if partition_axis(parameter) is None else 0


def _persistent_buffers(module: nn.Module) -> list[str]:
    """Buffers that a plain state dict would hold; parameters are all that these checkpoints know."""
    return [
        f"{path}.{name}"
        for path, part in module.named_modules()
        for name in part._buffers
        if name not in part._non_persistent_buffers_set
    ]
