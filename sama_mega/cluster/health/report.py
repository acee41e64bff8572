"""The report of a health check: a few lines for people, one object for scripts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from sama_mega.cluster.health.first_rank import Outcome
from sama_mega.cluster.health.probes import digest_all
from sama_mega.cluster.health.rules import HEALTHY
from sama_mega.cluster.health.world import Node, World
from sama_mega.cluster.node_list import compress_nodes

_SHOWN_PACKAGES = ("torch", "megatron-core", "triton")
_MIB_PER_GIB = 1024


def report_lines(outcome: Outcome) -> list[str]:
    """What the nodes are like, for a terminal or a log; the findings are told beside it."""
    world = outcome.world
    return [
        *_node_lines(world),
        *_folder_lines(world),
        *_clock_lines(world),
        *_software_lines(world),
        *_bandwidth_lines(outcome),
        _verdict_line(outcome),
    ]


def report_values(outcome: Outcome) -> dict[str, Any]:
    """The same and more as JSON values."""
    world, measured = outcome.world, outcome.bandwidth
    return {
        "ok": outcome.status == HEALTHY,
        "status": outcome.status,
        "seconds": round(outcome.seconds, 3),
        "world_size": world.world_size,
        "nodes": [_node_values(node, world) for node in world.nodes],
        "clock_skew_seconds": _skew(world),
        "bandwidth_gigabytes_per_second": None
        if measured is None
        else {"nodes": dict(measured.nodes), "network": dict(measured.network), "world": measured.world},
        "errors": _findings(outcome, True),
        "warnings": _findings(outcome, False),
    }


def _node_lines(world: World) -> list[str]:
    """One line for every kind of node."""
    kinds: dict[str, list[str]] = {}
    for node in world.nodes:
        kinds.setdefault(_describe_node(node), []).append(node.name)
    return [
        f"nodes      {compress_nodes(names)}:{' each' if len(names) > 1 else ''} {kind}"
        for kind, names in kinds.items()
    ]


def _describe_node(node: Node) -> str:
    ranks = f"{node.num_ranks} rank{'s' if node.num_ranks > 1 else ''}"
    cpus = f", {node.machine.cpus} CPU{'s' if node.machine.cpus > 1 else ''}" if node.machine else ""
    return f"{ranks}{cpus}, {_describe_gpus(node)}"


def _describe_gpus(node: Node) -> str:
    gpus = node.gpus.gpus if node.gpus is not None else ()
    if not gpus:
        return "no GPU"
    names = {gpu.name: sum(other.name == gpu.name for other in gpus) for gpu in gpus}
    free = [gpu.memory_free_mib for gpu in gpus if gpu.memory_free_mib is not None]
    memory = f", {min(free) / _MIB_PER_GIB:.0f} GiB free" if free else ""
    kinds = " and ".join(f"{count} x {name}" for name, count in names.items())
    return f"{kinds}{memory}, driver {' and '.join(sorted({gpu.driver for gpu in gpus}))}"


def _folder_lines(world: World) -> Iterable[str]:
    folders = [node.folder for node in world.nodes if node.folder is not None]
    if folders:
        free = [folder.free_gib for folder in folders if folder.free_gib is not None]
        space = f"{min(free):.3g} GiB free" if free else "cannot be used"
        shared = len(folders) > 1 and all(folder.shows_marker for folder in folders)
        yield f"run folder {folders[0].path}: {space}{', the same on all nodes' if shared else ''}"


def _clock_lines(world: World) -> Iterable[str]:
    skew = _skew(world)
    if skew is not None:
        yield f"clocks     at most {skew:.3f} s apart"


def _software_lines(world: World) -> Iterable[str]:
    first = world.nodes[0]
    if first.software is not None:
        known = [f"{name} {found}" for name in _SHOWN_PACKAGES if (found := first.software.versions.get(name))]
        known = [f"Python {first.reports[0].python}", *known, f"digest of the code {_digest(first)}"]
        yield f"software   {', '.join(known)}"


def _bandwidth_lines(outcome: Outcome) -> Iterable[str]:
    measured = outcome.bandwidth
    if measured is None:
        return
    if measured.nodes:
        slowest = min(measured.nodes, key=lambda name: measured.nodes[name])
        yield f"all-reduce {measured.nodes[slowest]:.3g} GB/s in a node ({slowest}, the slowest)"
    if measured.network:
        slowest = min(measured.network, key=lambda name: measured.network[name])
        yield f"all-reduce {measured.network[slowest]:.3g} GB/s between two nodes ({slowest}, the slowest)"
    if measured.world is not None:
        yield f"all-reduce {measured.world:.3g} GB/s over {outcome.world.world_size} ranks (bus bandwidth)"


def _verdict_line(outcome: Outcome) -> str:
    verdict = "healthy" if outcome.status == HEALTHY else "unhealthy"
    counts = [_count(len(_findings(outcome, True)), "error"), _count(len(_findings(outcome, False)), "warning")]
    told = ", ".join(count for count in counts if count)
    return f"{verdict:<11}after {outcome.seconds:.1f} s{f': {told}' if told else ''}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' if number > 1 else ''}" if number else ""


def _skew(world: World) -> float | None:
    """Between the two clocks that are furthest apart."""
    if not world.clock_offsets:
        return None
    offsets = [0.0, *(offset.seconds for offset in world.clock_offsets.values())]
    return max(offsets) - min(offsets)


def _digest(node: Node) -> str:
    return digest_all(node.software.code) if node.software is not None else ""


def _node_values(node: Node, world: World) -> Mapping[str, Any]:
    offset = world.clock_offsets.get(node.name)
    return {
        "name": node.name,
        "ranks": [report.rank for report in node.reports],
        "python": node.reports[0].python,
        "code": _digest(node),
        "versions": node.software.versions if node.software is not None else {},
        "gpus": node.gpus.model_dump(mode="json") if node.gpus is not None else None,
        "run_folder": node.folder.model_dump(mode="json") if node.folder is not None else None,
        "machine": node.machine.model_dump(mode="json") if node.machine is not None else None,
        "clock_offset_seconds": offset.seconds if offset is not None else None,
    }


def _findings(outcome: Outcome, is_error: bool) -> list[dict[str, Any]]:
    return [
        {"rule": finding.rule, "nodes": list(finding.nodes), "line": finding.line}
        for finding in outcome.findings
        if finding.is_error == is_error
    ]
