"""The few collective calls outside megatron's layers: norm and step statistics, small objects."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import timedelta
from functools import partial
from typing import Any

import torch
import torch.distributed as dist


def all_reduce_in_place(tensor: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
    """Sums a tensor over a group, overwriting it.

    Args:
        tensor: Any shape, contiguous; **mutated**: afterwards every rank of the group holds the sum.
        group: One rank: nothing is sent.

    Returns:
        The same tensor.
    """
    if group.size() > 1:
        dist.all_reduce(tensor, group=group)
    return tensor


def broadcast_in_place(tensor: torch.Tensor, group_rank: int, group: dist.ProcessGroup) -> torch.Tensor:
    """Sends one rank's tensor to the others of a group.

    Args:
        tensor: Contiguous, of one shape on every rank; **mutated** on all but the sender.
        group_rank: The sender's place in the group.
        group: All of its ranks call this.

    Returns:
        The same tensor.
    """
    dist.broadcast(tensor, group=group, group_src=group_rank)
    return tensor


def bind_all_reduce(group: dist.ProcessGroup) -> Callable[[torch.Tensor], torch.Tensor]:
    """`all_reduce_in_place` for one group, as the callable that the norm kernels take."""
    return partial(all_reduce_in_place, group=group)


def world_group() -> dist.ProcessGroup:
    """All ranks; only after they joined."""
    group = dist.group.WORLD
    assert group is not None, "no world: start_parallel() first"
    return group


def form_background_group(timeout_seconds: float) -> dist.ProcessGroup:
    """A gloo group of all ranks for one background thread; every rank calls it in its main thread.

    Two threads that send over one group mix up their messages, so the thread must use this one alone.

    Args:
        timeout_seconds: How long one of its collectives may wait for the other ranks before it fails.
    """
    return dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout_seconds), group_desc="BACKGROUND")


def gather_tensors(tensor: torch.Tensor, group: dist.ProcessGroup) -> list[torch.Tensor]:
    """Every rank's tensor, all of one shape and dtype, in group rank order, on every rank."""
    gathered = [torch.empty_like(tensor, memory_format=torch.contiguous_format) for _ in range(group.size())]
    dist.all_gather(gathered, tensor.contiguous(), group=group)
    return gathered


def gather_objects(value: Any, group: dist.ProcessGroup) -> list[Any]:
    """Every rank's picklable value, in group rank order, on every rank."""
    gathered: list[Any] = [None] * group.size()
    dist.all_gather_object(gathered, value, group=group)
    return gathered


def gather_objects_on_first(value: Any, group: dist.ProcessGroup) -> list[Any] | None:
    """Every rank's picklable value, in group rank order, on the group's first rank; None on the others."""
    gathered: list[Any] | None = [None] * group.size() if group.rank() == 0 else None
    dist.gather_object(value, gathered, group=group, group_dst=0)
    return gathered


def broadcast_object(value: Any, group: dist.ProcessGroup) -> Any:
    """The value of the group's first rank, on every rank."""
    holder = [value]
    dist.broadcast_object_list(holder, src=dist.get_global_rank(group, 0), group=group)
    return holder[0]


def flattened_all_reduce(tensors: Sequence[torch.Tensor], group: dist.ProcessGroup) -> None:
    """Sums many tensors over a group with one message per dtype.

    Args:
        tensors: Any shapes; **mutated** in place. Same order and shapes on every rank of the group.
        group: One rank: nothing is sent.
    """
    if group.size() == 1:
        return
    by_dtype: dict[torch.dtype, list[torch.Tensor]] = {}
    for tensor in tensors:
        by_dtype.setdefault(tensor.dtype, []).append(tensor)
    for same_dtype in by_dtype.values():
        flat = torch.cat([tensor.reshape(-1) for tensor in same_dtype])
        dist.all_reduce(flat, group=group)
        parts = flat.split([tensor.numel() for tensor in same_dtype])
        for tensor, part in zip(same_dtype, parts, strict=True):
            tensor.copy_(part.view_as(tensor))
