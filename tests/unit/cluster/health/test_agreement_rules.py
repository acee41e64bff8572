"""What must be the same on all nodes."""

from __future__ import annotations

from sama_mega.cluster.health.agreement_rules import find_reference
from tests.support.health_reports import node_reports, software, status, three_nodes, told, two_nodes, world_of


def test_another_version_on_one_node() -> None:
    world = two_nodes(software=software({"torch": "2.12.0"}))
    assert told(world) == [
        "error: node2: torch is 2.12.0, on node1 it is 2.13.0; nodes must agree: use the same environment on every "
        "node, or leave it out with sbatch --exclude=node2"
    ]
    assert status(world) == 1


def test_the_majority_is_right() -> None:
    world = world_of(
        node_reports("node1", software=software({"torch": "2.12.0"})),
        node_reports("node2", 1),
        node_reports("node3", 2),
    )
    (line,) = told(world)
    assert line.startswith("error: node1: torch is 2.12.0, on node2 it is 2.13.0;")


def test_two_of_four_are_no_majority() -> None:
    assert find_reference({"node1": "a", "node2": "b", "node3": "b", "node4": "c"}) == "node1"
    assert find_reference({"node1": "a", "node2": "b", "node3": "b"}) == "node2"


def test_a_package_that_one_node_lacks_or_has_alone() -> None:
    without = software()
    without.versions.pop("numpy")
    assert "node2: numpy is not installed, on node1 it is 2.4.6" in told(two_nodes(software=without))[0]
    (line,) = told(three_nodes(software=software({"mlflow": "3.1"})))
    assert "node2: mlflow is 3.1, on node1 it is not installed" in line


def test_each_package_and_version_has_its_line() -> None:
    world = world_of(
        *[node_reports(f"node{index}", index) for index in range(1, 6)],
        node_reports("node6", 6, software=software({"torch": "2.12.0"})),
        node_reports("node7", 7, software=software({"torch": "2.12.0", "numpy": "1.0"})),
        node_reports("node8", 8, software=software({"torch": "2.11.0"})),
        world_size=8,
    )
    assert [line.partition(", on")[0] for line in told(world) if "is 2.1" in line or "is 1.0" in line] == [
        "error: node7: numpy is 1.0",
        "error: node[6-7]: torch is 2.12.0",
        "error: node8: torch is 2.11.0",
    ]


def test_another_python() -> None:
    (line,) = told(two_nodes(python="3.12.1"))
    assert line.startswith("error: node2: Python is 3.11.7, 3.12.1, on node1 it is 3.11.7;")


def test_other_code_is_named_by_file() -> None:
    (line,) = told(two_nodes(software=software(code={"sama_mega/b.py": "xx", "sama_mega/c.py": "cc"})))
    assert "(sama_mega/b.py and 1 more file), on node1 it is" in line and line.startswith("error: node2: the code is")
    assert "use the same clone on every node" in line
