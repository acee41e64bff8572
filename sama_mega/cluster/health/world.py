"""All that rank 0 knows when the reports are in: the input of the rules."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from sama_mega.cluster.health.facts import FolderFacts, Gpu, GpuFacts, MachineFacts, RankReport, SoftwareFacts


@dataclass(frozen=True)
class ClockOffset:
    """How far a node's clock is ahead of rank 0's, in seconds, and how far off that estimate may be."""

    seconds: float
    uncertainty_seconds: float


@dataclass(frozen=True)
class Attendance:
    """Who was expected and did not report.

    Attributes:
        timeout_seconds: How long rank 0 waited.
        came: Node by rank, of those that connected; rank 0 among them.
        left: Ranks whose connection closed before the verdict.
        misfits: Ranks whose report does not fit this version of the check.
        tasks_by_node: How many ranks Slurm started where; empty where it does not say.
        refusals: Connections that were turned away.
    """

    timeout_seconds: float = 0.0
    came: Mapping[int, str] = field(default_factory=dict)
    left: frozenset[int] = frozenset()
    misfits: frozenset[int] = frozenset()
    tasks_by_node: Mapping[str, int] = field(default_factory=dict)
    refusals: tuple[str, ...] = ()


@dataclass(frozen=True)
class Node:
    """The reports of one node's ranks, the first of which speaks for it."""

    name: str
    reports: tuple[RankReport, ...]

    @property
    def num_ranks(self) -> int:
        """Ranks that reported."""
        return len(self.reports)

    @cached_property
    def gpus(self) -> GpuFacts | None:
        """The GPUs of all its ranks together, each once; None where no rank looked."""
        facts = [report.gpus for report in self.reports if report.gpus is not None]
        if not facts:
            return None
        by_uuid: dict[str, Gpu] = {gpu.uuid: gpu for fact in facts for gpu in fact.gpus}
        errors = [fact.error for fact in facts if fact.error is not None]
        return GpuFacts(
            granted=facts[0].granted,
            gpus=tuple(sorted(by_uuid.values(), key=lambda gpu: (gpu.index, gpu.uuid))),
            error=errors[0] if errors else None,
            has_slices=any(fact.has_slices for fact in facts),
            log=tuple(dict.fromkeys(line for fact in facts for line in fact.log)),
        )

    @property
    def folder(self) -> FolderFacts | None:
        """The run folder from here."""
        return next((report.folder for report in self.reports if report.folder is not None), None)

    @property
    def software(self) -> SoftwareFacts | None:
        """Versions and code."""
        return next((report.software for report in self.reports if report.software is not None), None)

    @property
    def machine(self) -> MachineFacts | None:
        """The rest."""
        return next((report.machine for report in self.reports if report.machine is not None), None)

    @property
    def shares_gpus(self) -> bool:
        """Whether the user said that ranks talk through gloo: they may share GPUs then, or have none."""
        return self.reports[0].backend == "gloo"


@dataclass(frozen=True)
class World:
    """The job.

    Attributes:
        world_size: Ranks that were started.
        nodes: Those that reported, by their lowest rank.
        clock_offsets: By node; rank 0's node has none.
        attendance: Who is missing.
        is_job: Whether ranks were started at all, by srun or torchrun; False for a look at one node by hand.
    """

    world_size: int
    nodes: tuple[Node, ...]
    clock_offsets: Mapping[str, ClockOffset] = field(default_factory=dict)
    attendance: Attendance = Attendance()
    is_job: bool = True

    @property
    def node_names(self) -> list[str]:
        """Every node that is known of, whether it reported or not."""
        names = [node.name for node in self.nodes]
        names += [*self.attendance.came.values(), *self.attendance.tasks_by_node]
        return list(dict.fromkeys(names))

    @property
    def uses_gpus(self) -> bool:
        """Whether ranks train on GPUs: every node shows one, and nobody asked for gloo."""
        return all(node.gpus is not None and bool(node.gpus.gpus) and not node.shares_gpus for node in self.nodes)


def group_by_node(reports: list[RankReport]) -> tuple[Node, ...]:
    """Sorts reports into nodes, by their lowest rank."""
    by_name: dict[str, list[RankReport]] = {}
    for report in sorted(reports, key=lambda report: report.rank):
        by_name.setdefault(report.node, []).append(report)
    return tuple(Node(name, tuple(of_node)) for name, of_node in by_name.items())
