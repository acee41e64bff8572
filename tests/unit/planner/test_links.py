"""Which links a group uses, and how long its messages take."""

from __future__ import annotations

from dataclasses import replace

import pytest

from sama_mega.parallel.layout import Layout
from sama_mega.planner.links import Members, members, message_seconds
from sama_mega.planner.messages import Collective, Group, Message
from sama_mega.planner.rates import Rates

LAYOUT = Layout(tensor=4, context=4, pipeline=2, data=3, sequence=True, world_size=96, stage_layers=(1, 1), ulysses=2)
RATES = Rates(node_bytes=100.0, network_bytes=10.0)


def brute_force(layout: Layout, group: Group, gpus_per_node: int) -> Members:
    """By listing the ranks of every group."""
    exchange, gather = layout.split_context_ranks()
    axes = {
        "tensor": "tensor",
        "pipeline": "pipeline",
        "sequence": "tensor context",
        "data": "context data",
        "copy": "tensor context pipeline",
        "world": "tensor context data pipeline",
        "host": "tensor context data pipeline",
    }
    groups = {"exchange": exchange, "gather": gather}.get(group)
    if groups is None:
        found: dict[tuple[int, ...], list[int]] = {}
        for rank in range(layout.world_size):
            place = vars(layout.coordinates(rank))
            rest = tuple(value for axis, value in place.items() if axis not in axes[group].split())
            found.setdefault(rest, []).append(rank)
        groups = list(found.values())
    nodes = [[rank // gpus_per_node for rank in ranks] for ranks in groups]
    return Members(len(groups[0]), min(max(own.count(node) for node in own) for own in nodes))


@pytest.mark.parametrize("gpus_per_node", [4, 8, 16, 96])
@pytest.mark.parametrize(
    "group", ["tensor", "exchange", "gather", "sequence", "data", "pipeline", "copy", "world", "host"]
)
def test_members_are_those_that_ranks_have(group: Group, gpus_per_node: int) -> None:
    assert members(LAYOUT, group, gpus_per_node) == brute_force(LAYOUT, group, gpus_per_node)


@pytest.mark.parametrize("group", ["tensor", "exchange", "gather", "sequence", "data", "pipeline"])
@pytest.mark.parametrize("context", [3, 5, 6, 12])
def test_a_group_that_a_nodes_edge_cuts_spans_nodes(group: Group, context: int) -> None:
    layout = replace(LAYOUT, tensor=2, context=context, ulysses=context // 3 or 1, world_size=12 * context)
    assert members(layout, group, 8) == brute_force(layout, group, 8)


@pytest.mark.parametrize(
    ("collective", "payloads"),
    [("all-gather", 3.0), ("reduce-scatter", 0.75), ("all-to-all", 0.75), ("all-reduce", 1.5), ("send", 1.0)],
)
def test_a_ring_sends_what_the_document_says(collective: Collective, payloads: float) -> None:
    message = Message("x", collective, "tensor", 2, 1000)
    assert message_seconds(message, Members(4, 4), RATES) == pytest.approx(2 * payloads * 1000 / 100)


def test_a_group_that_spans_nodes_uses_the_cards_of_its_members() -> None:
    message = Message("x", "reduce-scatter", "data", 1, 800)
    assert message_seconds(message, Members(8, 1), RATES) == pytest.approx(7 / 8 * 800 / 10)
    assert message_seconds(message, Members(8, 4), RATES) == pytest.approx(7 / 8 * 800 / 40)
    # Never faster than inside a node.
    assert message_seconds(message, Members(32, 16), RATES) == pytest.approx(31 / 32 * 800 / 100)


def test_a_group_of_one_sends_nothing_and_hops_count() -> None:
    message = Message("x", "all-reduce", "world", 1, 8)
    assert message_seconds(message, Members(1, 1), Rates(node_hop_seconds=1.0)) == 0
    assert message_seconds(message, Members(8, 8), Rates(node_hop_seconds=1.0)) == 6
    assert message_seconds(message, Members(8, 4), Rates(node_hop_seconds=1.0, network_hop_seconds=2.0)) == 12
