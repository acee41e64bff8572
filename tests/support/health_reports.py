"""Reports of healthy nodes for the health check's rules; a test changes the one thing that it is about."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sama_mega.cluster.health.facts import FolderFacts, Gpu, GpuFacts, MachineFacts, RankReport, SoftwareFacts
from sama_mega.cluster.health.problems import group_problems
from sama_mega.cluster.health.rules import exit_status, find_problems
from sama_mega.cluster.health.settings import Settings
from sama_mega.cluster.health.world import World, group_by_node
from sama_mega.config import load_recipe
from sama_mega.config.schema import Recipe

NO_GPUS = GpuFacts(granted=None, gpus=(), error="nvidia-smi is not installed")


def gpu(index: int = 0, **changes: Any) -> Gpu:
    values: dict[str, Any] = {
        "index": index,
        "uuid": f"GPU-{index:04d}",
        "name": "NVIDIA H100 80GB HBM3",
        "driver": "570.86.15",
        "memory_total_mib": 81559.0,
        "memory_free_mib": 81000.0,
        "uncorrected_errors": 0,
    }
    return Gpu(**{**values, **changes})


def gpus(count: int = 8, **changes: Any) -> GpuFacts:
    values: dict[str, Any] = {"granted": count, "gpus": tuple(gpu(index) for index in range(count))}
    return GpuFacts(**{**values, **changes})


def folder(**changes: Any) -> FolderFacts:
    values: dict[str, Any] = {"path": "/runs/x", "free_gib": 100.0, "error": None, "shows_marker": True}
    return FolderFacts(**{**values, **changes})


def machine(**changes: Any) -> MachineFacts:
    values: dict[str, Any] = {
        "cpus": 8,
        "shared_memory_free_gib": 50.0,
        "loopback": None,
        "interface": "ib0",
        "chosen_interfaces": (),
        "open_files": 65536,
    }
    return MachineFacts(**{**values, **changes})


def software(versions: Mapping[str, str] | None = None, code: Mapping[str, str] | None = None) -> SoftwareFacts:
    return SoftwareFacts(
        versions={"torch": "2.13.0", "numpy": "2.4.6", **(versions or {})},
        code={"sama_mega/a.py": "aa", "sama_mega/b.py": "bb", **(code or {})},
    )


def node_reports(name: str, first_rank: int = 0, num_ranks: int = 1, **changes: Any) -> list[RankReport]:
    """The ranks of one node; `changes` are of the first, which speaks for it."""
    values: dict[str, Any] = {
        "python": "3.11.7",
        "gpus": NO_GPUS,
        "folder": folder(),
        "software": software(),
        "machine": machine(),
    }
    first = RankReport(rank=first_rank, local_rank=0, node=name, **{**values, **changes})
    others = [
        RankReport(rank=first_rank + local, local_rank=local, node=name, python="3.11.7", backend=first.backend)
        for local in range(1, num_ranks)
    ]
    return [first, *others]


def world_of(*reports: list[RankReport], **changes: Any) -> World:
    together = [report for of_node in reports for report in of_node]
    values: dict[str, Any] = {"world_size": len(together), "nodes": group_by_node(together)}
    return World(**{**values, **changes})


def two_nodes(**changes: Any) -> World:
    """Two nodes of two ranks; `changes` are the second's."""
    return world_of(node_reports("node1", 0, 2), node_reports("node2", 2, 2, **changes))


def three_nodes(**changes: Any) -> World:
    """Three nodes of one rank; `changes` are the second's."""
    return world_of(node_reports("node1"), node_reports("node2", 1, **changes), node_reports("node3", 2))


def gpu_nodes(first: GpuFacts | None = None, second: GpuFacts | None = None, ranks: int = 8, **changes: Any) -> World:
    """Two nodes of eight GPUs and ranks; `changes` are both nodes'."""
    return world_of(
        node_reports("node1", 0, ranks, gpus=first or gpus(), **changes),
        node_reports("node2", ranks, ranks, gpus=second or gpus(), **changes),
    )


def with_degrees(**degrees: object) -> Recipe:
    """The demo's recipe with eight heads and these degrees."""
    overrides = ["model.num_heads=8", *(f"parallel.{axis}={degree}" for axis, degree in degrees.items())]
    return load_recipe("recipes/demo_stage0.yaml", overrides)


def told(world: World, recipe: Recipe | None = None, settings: Settings | None = None) -> list[str]:
    """What a user reads."""
    findings = group_problems(find_problems(world, recipe, settings or Settings()), world.node_names)
    return [f"{'error' if finding.is_error else 'warning'}: {finding.line}" for finding in findings]


def status(world: World, recipe: Recipe | None = None) -> int:
    """How the command exits."""
    return exit_status(find_problems(world, recipe, Settings()))
