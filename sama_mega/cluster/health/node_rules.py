"""Run folder, disk, clock and the rest of each node."""

from __future__ import annotations

import statistics
from collections.abc import Iterator

from sama_mega.cluster.health.problems import Problem
from sama_mega.cluster.health.settings import CLOCK_VARIABLE, DISK_VARIABLE, Settings
from sama_mega.cluster.health.world import Node, World

# Per rank; what NCCL and worker processes put there.
_MIN_SHARED_MEMORY_GIB = 0.064
# Files, libraries and sockets that a rank has open besides one connection for every other rank.
_OTHER_OPEN_FILES = 256


def node_problems(world: World, settings: Settings) -> list[Problem]:
    """Every node whose folder, disk, clock, name or limits would hurt the run."""
    problems = list(_clock_problems(world, settings))
    for node in world.nodes:
        problems += _folder_problems(node, world.nodes[0].name, settings)
        problems += _machine_problems(node, world)
    return problems


def _folder_problems(node: Node, first: str, settings: Settings) -> Iterator[Problem]:
    folder = node.folder
    if folder is None:
        return
    if folder.error is not None:
        yield Problem("folder", node.name, f"the run folder {folder.path} {folder.error}")
    if folder.shows_marker is False:
        yield Problem(
            "shared-folder",
            node.name,
            f"the run folder {folder.path} is not the one of {first}: a file written there does not show here; all "
            "nodes must share it",
            "choose a train.run_folder on a shared file system, and mount it at the same place everywhere",
        )
    if folder.error is None and folder.free_gib is not None and folder.free_gib < settings.min_free_disk_gib:
        yield Problem(
            "disk",
            node.name,
            f"the run folder {folder.path} has {folder.free_gib:.3g} GiB free; {DISK_VARIABLE} is "
            f"{settings.min_free_disk_gib:g}",
            "delete what is not needed there, or choose another train.run_folder",
        )


def _clock_problems(world: World, settings: Settings) -> Iterator[Problem]:
    if not world.clock_offsets:
        return
    first = world.nodes[0].name
    offsets = {first: 0.0, **{node: offset.seconds for node, offset in world.clock_offsets.items()}}
    # Of two clocks nobody can say which is right; of three and more, the one in the middle is.
    usual, others = (statistics.median(offsets.values()), "most nodes") if len(offsets) > 2 else (0.0, first)
    for node, seconds in offsets.items():
        uncertainty = world.clock_offsets[node].uncertainty_seconds if node in world.clock_offsets else 0.0
        skew = seconds - usual
        if abs(skew) - uncertainty > settings.max_clock_skew_seconds:
            yield Problem(
                "clock",
                node,
                f"its clock is {abs(skew):.1f} s {'ahead of' if skew > 0 else 'behind'} {others}'s; {CLOCK_VARIABLE} "
                f"is {settings.max_clock_skew_seconds:g}".replace("nodes's", "nodes'"),
                "start its time service (chrony or ntpd)",
            )


def _machine_problems(node: Node, world: World) -> Iterator[Problem]:
    machine = node.machine
    if machine is None:
        return
    if len(world.nodes) > 1 and machine.loopback is not None and not machine.chosen_interfaces:
        interface = machine.interface or "INTERFACE"
        yield Problem(
            "loopback",
            node.name,
            f"its own name leads to {machine.loopback}, where no other node reaches it",
            f"set GLOO_SOCKET_IFNAME={interface} and NCCL_SOCKET_IFNAME={interface}, or correct /etc/hosts there",
            is_error=False,
            can_exclude=False,
        )
    needed = node.num_ranks * _MIN_SHARED_MEMORY_GIB
    free = machine.shared_memory_free_gib
    if node.num_ranks > 1 and world.uses_gpus and free is not None and free < needed:
        yield Problem(
            "shared-memory",
            node.name,
            f"/dev/shm has {free:.2g} GiB free for {node.num_ranks} ranks, which should have {needed:.2g}",
            "remove what lies there, or start the container with a larger one",
            is_error=False,
        )
    open_files = world.world_size + _OTHER_OPEN_FILES
    if node is world.nodes[0] and machine.open_files < open_files:
        yield Problem(
            "open-files",
            node.name,
            f"rank 0 may open {machine.open_files} files and connections, and {world.world_size} ranks need up to "
            f"{open_files}",
            f"put `ulimit -n {open_files}` before srun, or ask for a higher limit",
            is_error=False,
            can_exclude=False,
        )
