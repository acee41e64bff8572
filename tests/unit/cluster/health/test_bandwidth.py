"""Who measures with whom, what the figures mean, and a measurement that fails."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sama_mega.cluster.health import bandwidth
from sama_mega.cluster.health.bandwidth import (
    Bandwidth,
    bandwidth_problems,
    listen_for_store,
    measure,
    plan_groups,
    summarize,
)
from sama_mega.cluster.health.problems import group_problems
from sama_mega.cluster.health.settings import Settings
from tests.support.health_reports import node_reports, world_of


@pytest.mark.parametrize("num_nodes", [1, 2, 3, 4, 5, 8])
def test_every_node_measures_with_its_neighbours_in_rounds_without_overlap(num_nodes: int) -> None:
    nodes = [[2 * index, 2 * index + 1] for index in range(num_nodes)]
    plans = {rank: plan_groups(rank, nodes) for ranks in nodes for rank in ranks}
    assert all(plans[rank]["node"] == ranks for ranks in nodes for rank in ranks)
    if num_nodes < 3:
        assert all(plan["pairs"] == [] for plan in plans.values())
        return
    for rank, plan in plans.items():
        assert 1 <= len(plan["pairs"]) <= 2
        for place, pair in enumerate(plan["pairs"]):
            (other,) = set(pair) - {rank}
            assert rank in pair and other % 2 == rank % 2 and pair in plans[other]["pairs"]
            # Two ranks that wait for each other are at the same point of their lists, or one has nothing before it.
            assert plans[other]["pairs"].index(pair) == place or 1 in (len(plan["pairs"]), len(plans[other]["pairs"]))


def test_a_node_with_fewer_ranks_leaves_some_without_a_partner() -> None:
    nodes = [[0, 1], [2], [3, 4]]
    assert [plan_groups(rank, nodes)["pairs"] for rank in range(5)] == [
        [[0, 2]],
        [[]],
        [[0, 2], [2, 3]],
        [[2, 3]],
        [[]],
    ]


def three_nodes(slow: str) -> tuple[dict[int, dict[str, Any]], Any]:
    """Six ranks on three nodes, one of which has a slow network."""
    world = world_of(*[node_reports(f"node{index}", 2 * index, 2) for index in range(3)])
    links = {"node0": [90.0], "node1": [90.0, 80.0], "node2": [80.0]}
    links = {name: [10.0 for _ in found] if name == slow else found for name, found in links.items()}
    if slow == "node1":
        links["node0"], links["node2"] = [10.0], [10.0]
    results = {
        report.rank: {"node": 400.0, "pairs": links[node.name], "world": 10.0}
        for node in world.nodes
        for report in node.reports
    }
    return results, world


def told(results: dict[int, dict[str, Any]], world: Any, least: float | None) -> list[str]:
    problems = bandwidth_problems(results, world.nodes, Settings(min_all_reduce=least))
    return [finding.line for finding in group_problems(problems, world.node_names)]


def test_figures() -> None:
    results, world = three_nodes(slow="node2")
    results[5]["pairs"] = [None]
    results[3]["pairs"] = [70.0, 95.0]
    assert summarize(results, world.nodes) == Bandwidth(
        {"node0": 400.0, "node1": 400.0, "node2": 400.0}, {"node0": 90.0, "node1": 80.0, "node2": 10.0}, 10.0
    )


def test_without_a_threshold_nothing_is_judged() -> None:
    results, world = three_nodes(slow="node2")
    assert told(results, world, None) == [] and told(results, world, 9.0) == []


def test_a_slow_network_names_the_slowest_node() -> None:
    results, world = three_nodes(slow="node2")
    assert told(results, world, 50.0) == [
        "node2: the all-reduce over all nodes reaches 10 GB/s; SAMA_MEGA_MIN_ALL_REDUCE_GIGABYTES_PER_SECOND is 50; "
        "this node is the slowest, 10 GB/s: see its network adapters, NCCL_SOCKET_IFNAME and NCCL_IB_HCA, or leave it "
        "out with sbatch --exclude=node2"
    ]


def test_of_two_nodes_both_are_named() -> None:
    world = world_of(node_reports("node1"), node_reports("node2", 1))
    results = {rank: {"node": None, "pairs": [], "world": 10.0} for rank in range(2)}
    (line,) = told(results, world, 50.0)
    assert "reaches 10 GB/s" in line and "it is the network between node1 and node2" in line


def test_a_slow_node_is_named() -> None:
    results, world = three_nodes(slow="none")
    for rank in range(6):
        results[rank]["world"] = 60.0
    results[2]["node"] = results[3]["node"] = 20.0
    (line,) = told(results, world, 50.0)
    assert line.startswith("node1: the all-reduce among its ranks reaches 20 GB/s; SAMA_MEGA_MIN_ALL_REDUCE")


def test_ranks_that_failed_or_said_nothing_are_errors_without_any_threshold() -> None:
    results, world = three_nodes(slow="none")
    results[3] = {"error": "Connection reset (status 1)"}
    del results[4]
    assert [line.partition(": see")[0] for line in told(results, world, None)] == [
        "node[1-2]: an all-reduce over all ranks must work and did not: Connection reset (status 1) (on node1; alike "
        "on the others)"
    ]


PLAN = {"rank": 0, "world_size": 2, "local_rank": 0, "backend": "gloo", "node": [0, 1], "pairs": [], "seconds": 0.1}


def test_a_measurement_that_fails_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bandwidth, "_MODULE", "sama_mega.no_such_module")
    listener = listen_for_store()
    error = measure({**PLAN, "address": "localhost", "port": 1}, 60, listener)["error"]
    assert error.endswith("No module named sama_mega.no_such_module (status 1)")
    assert listener.fileno() == -1


def test_a_measurement_that_is_killed_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "killed.py").write_text("import os; os.kill(os.getpid(), 6)")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(bandwidth, "_MODULE", "killed")
    assert measure(PLAN, 60) == {"error": "signal SIGABRT"}


def test_a_measurement_that_hangs_is_ended() -> None:
    plan = {**PLAN, "rank": 1, "address": "localhost", "port": 1, "seconds": 60}
    assert measure(plan, 0.05) == {"error": "it did not end within 0.05 s"}
