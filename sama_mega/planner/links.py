"""How long a message takes: which links its group uses, and what a ring sends over them."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from math import ceil, lcm, log2

from sama_mega.parallel.layout import Layout
from sama_mega.planner.messages import Group, Message
from sama_mega.planner.rates import Rates


@dataclass(frozen=True)
class Members:
    """The ranks of a group as their links see them.

    Attributes:
        number: How many there are.
        in_a_node: The most of them on one node, in the group that is cut into the smallest pieces.
    """

    number: int
    in_a_node: int

    @property
    def spans_nodes(self) -> bool:
        """Whether some of them are on other nodes."""
        return self.number > self.in_a_node


def members(layout: Layout, group: Group, gpus_per_node: int) -> Members:
    """Places a group on nodes that are filled rank by rank.

    Args:
        layout: Resolved degrees.
        group: As docs/parallelism.md names it.
        gpus_per_node: Ranks of a node.
    """
    tensor, context, data, pipeline = layout.tensor, layout.context, layout.data, layout.pipeline
    number, stride = {
        "tensor": (tensor, 1),
        "exchange": (layout.ulysses, tensor),
        "gather": (context // layout.ulysses, tensor * layout.ulysses),
        "sequence": (tensor * context, 1) if layout.sequence else (context, tensor),
        "data": (data * context, tensor),
        "pipeline": (pipeline, tensor * context * data),
        "copy": (tensor * context, 1),
        "world": (layout.world_size, 1),
        "host": (layout.world_size, 1),
    }[group]
    together = _most_in_a_node(number, stride, layout.world_size, gpus_per_node)
    if group == "copy":
        reach = members(layout, "pipeline", gpus_per_node)
        return Members(number * pipeline, together * (1 if reach.spans_nodes else pipeline))
    return Members(number, together)


@lru_cache(maxsize=4096)
def _most_in_a_node(number: int, stride: int, world_size: int, gpus_per_node: int) -> int:
    """Of groups of ranks so far apart; those that a node's edge cuts are the slowest, and all wait for them."""
    reach = number * stride
    # From here on groups lie on nodes as the first ones do.
    ends = min(world_size, lcm(reach, gpus_per_node))
    starts = (start + offset for start in range(0, ends, reach) for offset in range(stride))
    return min(
        max(Counter(rank // gpus_per_node for rank in range(start, start + reach, stride)).values()) for start in starts
    )


def message_seconds(message: Message, group: Members, rates: Rates) -> float:
    """Time of equal messages, one after the other.

    A ring that spans nodes leaves each through the network cards of all its members there; in an all-to-all everybody
    sends what others need over its own.
    """
    number, payload = group.number, float(message.num_bytes)
    if number == 1:
        return 0.0
    hop = rates.network_hop_seconds if group.spans_nodes else rates.node_hop_seconds
    if message.collective == "all-to-all" and group.spans_nodes:
        away = (number - group.in_a_node) / number
        once = max(payload * away / rates.network_bytes, payload * (1 - away) / rates.node_bytes)
    else:
        once = _traffic(message.collective, number) * payload / _ring_bytes(group, rates)
    return message.count * (once + _hops(message.collective, number) * hop)


def _ring_bytes(group: Members, rates: Rates) -> float:
    return min(rates.node_bytes, group.in_a_node * rates.network_bytes) if group.spans_nodes else rates.node_bytes


def _traffic(collective: str, number: int) -> float:
    """What a rank sends in a ring, in payloads."""
    share = (number - 1) / number
    return {"all-gather": number - 1, "reduce-scatter": share, "all-to-all": share, "all-reduce": 2 * share}.get(
        collective, 1
    )


def _hops(collective: str, number: int) -> int:
    """Messages of one rank that wait for one another; small sums go over a tree."""
    if collective in ("all-gather", "reduce-scatter"):
        return number - 1
    if collective in ("all-reduce", "broadcast"):
        return ceil(log2(number)) * (2 if collective == "all-reduce" else 1)
    return 1
