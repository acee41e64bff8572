"""Who did not come, and why that may be."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping

from sama_mega.cluster.health.problems import Problem
from sama_mega.cluster.health.world import World
from sama_mega.cluster.node_list import join_ranges

_SEE = "look for their own lines, and see slurmd and the network there"


def attendance_problems(world: World) -> list[Problem]:
    """Ranks that did not come, left, or cannot be understood; strangers are warnings."""
    here = world.attendance
    reported = {report.rank for node in world.nodes for report in node.reports} | here.misfits
    absent = set(range(world.world_size)) - reported
    never, left = absent - here.came.keys(), set(here.left)
    silent = absent - never - left
    within = f"within {here.timeout_seconds:g} s"
    return [
        *_never_came(never, world, within),
        *_by_node("left", left, here.came, "left before the verdict", "look for their own lines"),
        *_by_node("silent", silent, here.came, f"came but did not report {within}", "see what hangs there"),
        *_by_node(
            "code",
            set(here.misfits),
            here.came,
            "sent a report that does not fit this version of sama-mega",
            "use the same clone and environment on every node",
        ),
        *(Problem("stranger", None, line, is_error=False) for line in here.refusals),
    ]


def _never_came(never: set[int], world: World, within: str) -> Iterator[Problem]:
    if not never:
        return
    ranks = f"rank{'s' if len(never) > 1 else ''} {join_ranges(never)} of {world.world_size}"
    expected = world.attendance.tasks_by_node
    came = Counter(world.attendance.came.values())
    short = {node: tasks - came[node] for node, tasks in expected.items() if tasks > came[node]}
    # Slurm says how many ranks it started on a node, not which. Where the sum differs, it names nodes in another way.
    if sum(short.values()) == len(never):
        for node, num_missing in short.items():
            missing = _describe_missing(num_missing, expected[node])
            yield Problem("missing", node, f"{missing} {within} (missing in all: {ranks})", _SEE)
    else:
        yield Problem("missing", None, f"{ranks} did not come {within}", _SEE)


def _describe_missing(num_missing: int, num_tasks: int) -> str:
    if num_tasks == 1:
        return "its rank did not come"
    if num_missing == num_tasks:
        return f"none of its {num_tasks} ranks came"
    return f"{num_missing} of its {num_tasks} ranks did not come"


def _by_node(rule: str, ranks: set[int], came: Mapping[int, str], text: str, fix: str) -> Iterator[Problem]:
    by_node: dict[str, list[int]] = {}
    for rank in sorted(ranks):
        by_node.setdefault(came[rank], []).append(rank)
    for node, of_node in by_node.items():
        yield Problem(rule, node, f"rank{'s' if len(of_node) > 1 else ''} {join_ranges(of_node)} {text}", fix)
