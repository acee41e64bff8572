"""The all-reduce measurement: which ranks measure with which, how it is started, and what its figures mean.

A process of its own does it (`sama_mega.parallel.bandwidth`): it needs torch, and a network that hangs or a library
that aborts must not take the check down with it.
"""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sama_mega.cluster.health.problems import Problem
from sama_mega.cluster.health.settings import BANDWIDTH_VARIABLE, Settings
from sama_mega.cluster.health.world import Node
from sama_mega.parallel.launch import die_with_parent

_MODULE = "sama_mega.parallel.bandwidth"
_LONGEST_REASON = 300


@dataclass(frozen=True)
class Bandwidth:
    """Bus bandwidths of all-reduces in GB/s: 2 (n - 1) / n times the bytes of one rank, over the time.

    Attributes:
        nodes: Among the ranks of each node that has several.
        network: Of each node with its neighbours, the better of two; where there are three nodes and more.
        world: Over all ranks.
    """

    nodes: Mapping[str, float]
    network: Mapping[str, float]
    world: float | None


def plan_groups(rank: int, nodes: Sequence[Sequence[int]]) -> dict[str, Any]:
    """The ranks that a rank measures with.

    Args:
        rank: The rank.
        nodes: Ranks of every node.

    Returns:
        `node`: the ranks of its node. `pairs`: each with the rank in its place on a neighbouring node, empty where
        that has fewer ranks; of three nodes and more, so that a slow one shows as slow in both its pairs.
    """
    index = next(index for index, ranks in enumerate(nodes) if rank in ranks)
    place = nodes[index].index(rank)
    pairs = []
    for first, second in _neighbours(len(nodes)):
        if index in (first, second):
            both = (nodes[first][place : place + 1], nodes[second][place : place + 1])
            pairs.append([*both[0], *both[1]] if all(both) else [])
    return {"node": list(nodes[index]), "pairs": pairs}


def listen_for_store() -> socket.socket:
    """Rank 0's socket for the measurement's own meeting, at a port that is free."""
    both = socket.has_dualstack_ipv6()
    return socket.create_server(
        ("", 0), family=socket.AF_INET6 if both else socket.AF_INET, dualstack_ipv6=both, backlog=4096
    )


def measure(plan: Mapping[str, Any], seconds: float, listener: socket.socket | None = None) -> dict[str, Any]:
    """Runs this rank's part of the measurement.

    Args:
        plan: What `sama_mega.parallel.bandwidth` reads.
        seconds: Afterwards it is ended.
        listener: Rank 0's socket; handed on to the process and closed here.

    Returns:
        `node`, `pairs` and `world` in GB/s, or `error`.
    """
    descriptors = [] if listener is None else [listener.fileno()]
    content = {**plan, "listener": descriptors[0] if descriptors else None}
    process = subprocess.Popen(
        [sys.executable, "-m", _MODULE, json.dumps(content)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        pass_fds=descriptors,
        preexec_fn=die_with_parent,
    )
    if listener is not None:
        listener.close()
    try:
        written, complaints = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()  # not waited for: what hangs in a driver may not even end now
        return {"error": f"it did not end within {seconds:g} s"}
    if process.returncode == 0:
        return dict(json.loads(written.splitlines()[-1]))
    return {"error": _describe_failure(process.returncode, complaints)}


def summarize(results: Mapping[int, Mapping[str, Any]], nodes: Sequence[Node]) -> Bandwidth:
    """Puts the figures of all ranks together; ranks that failed are left out."""
    names = {report.rank: node.name for node in nodes for report in node.reports}
    by_node: dict[str, float] = {}
    links: dict[str, dict[int, float]] = {}
    for rank, result in results.items():
        if result.get("node") is not None:
            by_node[names[rank]] = result["node"]
        for place, figure in enumerate(result.get("pairs", [])):
            if figure is not None:
                of_node = links.setdefault(names[rank], {})
                of_node[place] = min(figure, of_node.get(place, figure))  # the slowest of a node's adapters
    worlds = [result["world"] for result in results.values() if result.get("world") is not None]
    return Bandwidth(by_node, {name: max(found.values()) for name, found in links.items()}, min(worlds, default=None))


def bandwidth_problems(
    results: Mapping[int, Mapping[str, Any]], nodes: Sequence[Node], settings: Settings
) -> list[Problem]:
    """Ranks that could not measure, nodes below the threshold, and a network below it with its slowest node."""
    problems = []
    for node in nodes:
        answers = [results.get(report.rank, {"error": "it gave no result"}) for report in node.reports]
        reason = next((answer["error"] for answer in answers if "error" in answer), None)
        if reason is not None:
            text = f"an all-reduce over all ranks must work and did not: {reason}"
            problems.append(Problem("bandwidth", node.name, text, "see the network interface and NCCL_DEBUG=INFO"))
    if problems or settings.min_all_reduce is None:
        return problems
    least, found = settings.min_all_reduce, summarize(results, nodes)
    rule = f"{BANDWIDTH_VARIABLE} is {least:g}"
    for name, figure in found.nodes.items():
        if figure < least:
            text = f"the all-reduce among its ranks reaches {figure:.3g} GB/s; {rule}"
            problems.append(Problem("bandwidth", name, text, "see nvidia-smi topo -m and the links of its GPUs"))
    if len(nodes) > 1 and found.world is not None and found.world < least:
        problems.append(_network_problem(found, nodes, rule))
    return problems


def _network_problem(found: Bandwidth, nodes: Sequence[Node], rule: str) -> Problem:
    text = f"the all-reduce over all nodes reaches {found.world:.3g} GB/s; {rule}"
    fix = "see its network adapters, NCCL_SOCKET_IFNAME and NCCL_IB_HCA"
    if not found.network:
        names = " and ".join(node.name for node in nodes)
        return Problem("bandwidth", None, f"{text}; it is the network between {names}", fix)
    slowest = min(found.network, key=lambda name: found.network[name])
    return Problem("bandwidth", slowest, f"{text}; this node is the slowest, {found.network[slowest]:.3g} GB/s", fix)


def _neighbours(num_nodes: int) -> list[tuple[int, int]]:
    """Two rounds of pairs of nodes; those of a round have no node in common, so they measure at the same time."""
    if num_nodes < 3:
        return []
    even = [(index, index + 1) for index in range(0, num_nodes - 1, 2)]
    odd = [(index, (index + 1) % num_nodes) for index in range(1, num_nodes - num_nodes % 2, 2)]
    return even + odd


def _describe_failure(status: int, complaints: str) -> str:
    lines = [line.strip() for line in complaints.splitlines() if line.strip()]
    ended = f"status {status}" if status >= 0 else f"signal {signal.Signals(-status).name}"
    return f"{lines[-1][:_LONGEST_REASON]} ({ended})" if lines else ended
