"""Who did not come, left, or cannot be understood."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from sama_mega.cluster.health.world import Attendance
from tests.support.health_reports import node_reports, status, told, world_of


def test_a_node_that_did_not_come() -> None:
    attendance = Attendance(5.0, came={0: "node1", 1: "node1"}, tasks_by_node={"node1": 2, "node2": 2})
    world = world_of(node_reports("node1", 0, 2), world_size=4, attendance=attendance)
    assert told(world) == [
        "error: node2: none of its 2 ranks came within 5 s (missing in all: ranks 2-3 of 4): look for their own lines, "
        "and see slurmd and the network there, or leave it out with sbatch --exclude=node2"
    ]
    assert status(world) == 1


@pytest.mark.parametrize(
    ("tasks", "said"),
    [
        (
            {"node1": 2, "node2": 2},
            "error: node1: 1 of its 2 ranks did not come within 5 s (missing in all: rank 1 of 4)",
        ),
        ({}, "error: rank 1 of 4 did not come within 5 s: look for"),
        ({"other1": 2, "other2": 2}, "error: rank 1 of 4 did not come within 5 s: look for"),
    ],
)
def test_a_rank_that_did_not_come(tasks: Mapping[str, int], said: str) -> None:
    reports = [report for report in [*node_reports("node1", 0, 2), *node_reports("node2", 2, 2)] if report.rank != 1]
    attendance = Attendance(5.0, came={0: "node1", 2: "node2", 3: "node2"}, tasks_by_node=tasks)
    (line,) = told(world_of(reports, world_size=4, attendance=attendance))
    assert line.startswith(said)


def test_ranks_that_left_hang_or_speak_another_language() -> None:
    came = {0: "node1", 1: "node1", 2: "node2", 3: "node2", 4: "node3"}
    attendance = Attendance(
        5.0, came=came, left=frozenset({1}), misfits=frozenset({4}), refusals=("x was turned away",)
    )
    world = world_of(node_reports("node1"), world_size=5, attendance=attendance)
    assert told(world) == [
        "error: node1: rank 1 left before the verdict: look for their own lines, or leave it out with sbatch "
        "--exclude=node1",
        "error: node2: ranks 2-3 came but did not report within 5 s: see what hangs there, or leave it out with sbatch "
        "--exclude=node2",
        "error: node3: rank 4 sent a report that does not fit this version of sama-mega: use the same clone and "
        "environment on every node, or leave it out with sbatch --exclude=node3",
        "warning: x was turned away",
    ]


def test_a_rank_that_reported_and_left_is_missed_too() -> None:
    attendance = Attendance(5.0, came={0: "node1", 1: "node2"}, left=frozenset({1}))
    world = world_of(node_reports("node1"), node_reports("node2", 1), attendance=attendance)
    assert status(world) == 1
