"""All rules together."""

from __future__ import annotations

from tests.support.health_reports import (
    folder,
    gpu_nodes,
    machine,
    node_reports,
    software,
    status,
    told,
    two_nodes,
    with_degrees,
    world_of,
)


def test_healthy_nodes_break_no_rule() -> None:
    for world in (two_nodes(), gpu_nodes(), world_of(node_reports("node1"))):
        assert told(world, with_degrees()) == [] and status(world, with_degrees()) == 0


def test_all_problems_of_all_nodes_are_told() -> None:
    world = two_nodes(
        python="3.12.1", folder=folder(free_gib=0.1), software=software({"torch": "1"}), machine=machine(loopback="::1")
    )
    assert len(told(world, with_degrees(tensor=8))) == 5
    assert status(world, with_degrees(tensor=8)) == 2
