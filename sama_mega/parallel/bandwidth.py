"""Measures all-reduces, as a process of its own: `python -m sama_mega.parallel.bandwidth PLAN`.

The health check starts it on every rank. Bus bandwidth as NCCL's own tests count it: a ring sends and receives
2 (n - 1) / n times the tensor's bytes through every link, whatever n is, so the figure compares with a link's speed.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

# Large enough for the links to run at full speed.
_NUM_BYTES = {"nccl": 256 << 20, "gloo": 8 << 20}
_TIMED_SECONDS = 1.0
_MOST_REPEATS = 20
_BYTES_PER_FLOAT = 4
_GIGA = 1e9


def measure_bandwidth(plan: Mapping[str, Any]) -> dict[str, Any]:
    """Joins the other ranks and measures with each of this rank's groups.

    Args:
        plan: `rank`, `world_size`, `local_rank`, `backend`, `address` and `port` of rank 0's store, `listener` (rank
            0's socket at that port, else None), `node` (ranks of this node), `pairs` (lists of two ranks, or none),
            `seconds` (how long to wait for others).

    Returns:
        Bus bandwidths in GB/s: `node`, `world` and a list `pairs`; None where a group has one rank.
    """
    backend = plan["backend"]
    device = _choose_device(backend, plan["local_rank"])
    timeout = timedelta(seconds=plan["seconds"])
    store = dist.TCPStore(
        plan["address"],
        plan["port"],
        plan["world_size"],
        is_master=plan["rank"] == 0,
        timeout=timeout,
        master_listen_fd=plan["listener"],
    )
    dist.init_process_group(backend, store=store, rank=plan["rank"], world_size=plan["world_size"], timeout=timeout)
    num_bytes = _NUM_BYTES[backend]
    world = dist.group.WORLD
    assert world is not None
    node = _measure_ranks(plan["node"], world, device, num_bytes)
    pairs = [_measure_ranks(pair, world, device, num_bytes) for pair in plan["pairs"]]
    result = {"node": node, "pairs": pairs, "world": measure_group(world, device, num_bytes)}
    dist.destroy_process_group()
    return result


def measure_group(group: dist.ProcessGroup, device: torch.device, num_bytes: int) -> float | None:
    """Times all-reduces over a group; every rank of it calls this.

    Args:
        group: Ranks that sum.
        device: Where the tensor lies.
        num_bytes: Its size on every rank.

    Returns:
        Bus bandwidth in GB/s, the same on every rank; None for one rank.
    """
    if group.size() == 1:
        return None
    tensor = torch.zeros(num_bytes // _BYTES_PER_FLOAT, device=device)

    def reduce() -> None:
        dist.all_reduce(tensor, group=group)

    _time(reduce, 1, group, device)  # the first one opens the connections
    once = _time(reduce, 1, group, device)
    repeats = max(1, min(_MOST_REPEATS, int(_TIMED_SECONDS / once)))
    seconds = _time(reduce, repeats, group, device) / repeats
    return 2 * (group.size() - 1) / group.size() * num_bytes / seconds / _GIGA


def _measure_ranks(
    ranks: Sequence[int], world: dist.ProcessGroup, device: torch.device, num_bytes: int
) -> float | None:
    if len(ranks) < 2:
        return None
    group = world
    if len(ranks) < world.size():
        # Only its own ranks form a group: with hundreds of pairs, nobody waits for all the others' groups.
        made = dist.new_group(sorted(ranks), use_local_synchronization=True)
        assert isinstance(made, dist.ProcessGroup)
        group = made
    return measure_group(group, device, num_bytes)


def _time(reduce: Callable[[], None], repeats: int, group: dist.ProcessGroup, device: torch.device) -> float:
    """Seconds that the slowest rank of the group needed, on all of them alike."""
    dist.barrier(group=group)
    _wait(device)
    start = time.perf_counter()
    for _ in range(repeats):
        reduce()
    _wait(device)
    seconds = torch.tensor([time.perf_counter() - start], dtype=torch.float64, device=device)
    dist.all_reduce(seconds, op=dist.ReduceOp.MAX, group=group)
    return float(seconds.item())


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _choose_device(backend: str, local_rank: int) -> torch.device:
    if backend == "gloo":
        return torch.device("cpu")
    # A rank that was bound to one GPU sees it as number 0.
    device = torch.device("cuda", local_rank % torch.cuda.device_count())
    torch.cuda.set_device(device)
    return device


if __name__ == "__main__":
    print(json.dumps(measure_bandwidth(json.loads(sys.argv[1]))))
