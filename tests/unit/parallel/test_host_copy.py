"""Copies of a state in host memory: whose pieces, which values, and whose memory."""

from __future__ import annotations

import torch
from megatron.core.dist_checkpointing.mapping import ShardedTensor

from sama_mega.parallel.host_copy import HostCopy

CPU = torch.device("cpu")


def piece(data: torch.Tensor, replica: int = 0) -> ShardedTensor:
    return ShardedTensor.from_rank_offsets("a", data, replica_id=(0, replica, 0))


def test_a_copy_keeps_its_values() -> None:
    data = torch.arange(6.0).view(2, 3)
    copied = HostCopy(CPU).take({"a#0": piece(data)})
    data.fill_(-1)
    assert torch.equal(copied["a#0"].data, torch.arange(6.0).view(2, 3))
    assert (copied["a#0"].key, copied["a#0"].global_shape) == ("a", (2, 3))


def test_what_another_rank_writes_is_not_copied() -> None:
    state = {"a#0": piece(torch.zeros(2)), "b#0": piece(torch.zeros(2), replica=1)}
    assert HostCopy(CPU).take(state).keys() == {"a#0"}


def test_a_later_copy_uses_the_memory_of_the_first() -> None:
    """Pinning gigabytes takes longer than copying them."""
    copy, data = HostCopy(CPU), torch.zeros(4)
    first = copy.take({"a#0": piece(data)})["a#0"].data
    data.fill_(1)
    second = copy.take({"a#0": piece(data)})["a#0"].data
    assert second.data_ptr() == first.data_ptr() and torch.equal(second, torch.ones(4))
    assert copy.take({"a#0": piece(torch.ones(5))})["a#0"].data.shape == (5,)
