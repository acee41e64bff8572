"""Slurm's short way to write many nodes."""

from __future__ import annotations

import pytest

from sama_mega.cluster.node_list import compress_nodes, expand_nodes, join_ranges
from sama_mega.config.errors import ConfigError


@pytest.mark.parametrize(
    ("nodes", "written"),
    [
        ([], ""),
        (["node2"], "node2"),
        (["node2", "node1", "node2"], "node[1-2]"),
        ([f"gpu{number:03d}" for number in range(1, 129)], "gpu[001-128]"),
        (["gpu8", "gpu9", "gpu10", "gpu12"], "gpu[8-10,12]"),
        (["gpu08", "gpu09", "gpu10"], "gpu[08-10]"),
        (["gpu1", "gpu01"], "gpu1,gpu01"),
        (["rack1-node2", "rack1-node3", "rack2-node2"], "rack1-node[2-3],rack2-node2"),
        (["n1.cluster", "n2.cluster", "login"], "login,n[1-2].cluster"),
    ],
)
def test_compress(nodes: list[str], written: str) -> None:
    assert compress_nodes(nodes) == written


@pytest.mark.parametrize(
    ("written", "nodes"),
    [
        ("", []),
        ("node1", ["node1"]),
        ("gpu[07-09,12],cpu1", ["gpu07", "gpu08", "gpu09", "gpu12", "cpu1"]),
        ("r[1-2]n[1-2]", ["r1n1", "r1n2", "r2n1", "r2n2"]),
        ("rack[1-2]-x", ["rack1-x", "rack2-x"]),
        (" a-1,a-2 ", ["a-1", "a-2"]),
    ],
)
def test_expand(written: str, nodes: list[str]) -> None:
    assert expand_nodes(written) == nodes


def test_expand_reads_what_compress_writes() -> None:
    nodes = [f"gpu{number:03d}" for number in (*range(1, 60), 77, *range(90, 128))] + ["login", "n8", "n9", "n10"]
    assert sorted(expand_nodes(compress_nodes(nodes))) == sorted(nodes)


@pytest.mark.parametrize("written", ["gpu[1-", "gpu[]", "gpu[2-1]", "gpu]1[", "gpu[0-99999999]"])
def test_what_is_no_list_is_refused(written: str) -> None:
    with pytest.raises(ConfigError, match="the node list"):
        expand_nodes(written)


def test_ranges() -> None:
    assert join_ranges([8, 3, 2, 1, 0]) == "0-3,8"
    assert join_ranges([]) == ""
