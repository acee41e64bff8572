"""Run folder, disk, clock, names and limits."""

from __future__ import annotations

from sama_mega.cluster.health.settings import Settings
from sama_mega.cluster.health.world import ClockOffset, World
from tests.support.health_reports import (
    folder,
    gpu_nodes,
    machine,
    node_reports,
    status,
    three_nodes,
    told,
    two_nodes,
    world_of,
)


def test_a_folder_that_cannot_be_written() -> None:
    world = two_nodes(folder=folder(error="cannot be written by me (user 7): Permission denied: change its owner"))
    assert told(world) == [
        "error: node2: the run folder /runs/x cannot be written by me (user 7): Permission denied: change its owner, "
        "or leave it out with sbatch --exclude=node2"
    ]
    assert status(world) == 1


def test_a_full_disk_is_told_once() -> None:
    (line,) = told(two_nodes(folder=folder(error="is full: No space left on device: delete", free_gib=0.0)))
    assert "the run folder /runs/x is full" in line


def test_a_folder_of_its_own() -> None:
    (line,) = told(two_nodes(folder=folder(shows_marker=False)))
    assert line.startswith(
        "error: node2: the run folder /runs/x is not the one of node1: a file written there does not show"
    )
    assert told(two_nodes(folder=folder(shows_marker=None))) == []


def test_little_space() -> None:
    world = two_nodes(folder=folder(free_gib=0.25))
    (line,) = told(world)
    assert line.startswith("error: node2: the run folder /runs/x has 0.25 GiB free; SAMA_MEGA_MIN_FREE_DISK_GIB is 1: ")
    assert told(world, settings=Settings(min_free_disk_gib=0.2)) == []


def test_two_clocks_are_held_against_the_first() -> None:
    world = two_nodes()
    ahead = World(world.world_size, world.nodes, {"node2": ClockOffset(5.0, 0.1)})
    assert told(ahead) == [
        "error: node2: its clock is 5.0 s ahead of node1's; SAMA_MEGA_MAX_CLOCK_SKEW_SECONDS is 2: start its time "
        "service (chrony or ntpd), or leave it out with sbatch --exclude=node2"
    ]
    assert "5.0 s behind node1's" in told(World(4, world.nodes, {"node2": ClockOffset(-5.0, 0.1)}))[0]
    assert told(World(4, world.nodes, {"node2": ClockOffset(1.9, 0.1)})) == []


def test_a_slow_answer_is_no_skew() -> None:
    world = two_nodes()
    assert told(World(4, world.nodes, {"node2": ClockOffset(2.5, 0.6)})) == []


def test_of_three_clocks_the_first_may_be_the_wrong_one() -> None:
    world = three_nodes()
    offsets = {"node2": ClockOffset(9.0, 0.0), "node3": ClockOffset(9.1, 0.0)}
    (line,) = told(World(3, world.nodes, offsets))
    assert line.startswith("error: node1: its clock is 9.0 s behind most nodes'; ")


def test_a_name_that_leads_to_loopback() -> None:
    world = two_nodes(machine=machine(loopback="127.0.1.1"))
    assert told(world) == [
        "warning: node2: its own name leads to 127.0.1.1, where no other node reaches it: set GLOO_SOCKET_IFNAME=ib0 "
        "and NCCL_SOCKET_IFNAME=ib0, or correct /etc/hosts there"
    ]
    chosen = machine(loopback="127.0.1.1", chosen_interfaces=("GLOO_SOCKET_IFNAME",))
    assert told(two_nodes(machine=chosen)) == []
    assert told(world_of(node_reports("node1", machine=machine(loopback="127.0.1.1")))) == []
    assert "GLOO_SOCKET_IFNAME=INTERFACE" in told(two_nodes(machine=machine(loopback="no address", interface=None)))[0]


def test_little_shared_memory_matters_to_gpu_ranks() -> None:
    small = machine(shared_memory_free_gib=0.0625)
    (line,) = told(gpu_nodes(machine=small))
    assert line.startswith("warning: node[1-2]: /dev/shm has 0.062 GiB free for 8 ranks, which should have 0.51")
    assert told(two_nodes(machine=small)) == []
    assert told(gpu_nodes(machine=machine(shared_memory_free_gib=None))) == []


def test_connections_of_rank_0() -> None:
    (line,) = told(world_of(node_reports("node1", 0, 4, machine=machine(open_files=256))))
    assert line.startswith(
        "warning: node1: rank 0 may open 256 files and connections, and 4 ranks need up to 260: put "
    )
    assert told(two_nodes(machine=machine(open_files=256))) == []
