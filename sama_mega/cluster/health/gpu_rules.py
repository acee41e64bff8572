"""GPUs: as many as ranks, all well, all free, all alike."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from sama_mega.cluster.health.agreement_rules import find_reference
from sama_mega.cluster.health.facts import Gpu, GpuFacts
from sama_mega.cluster.health.problems import Problem
from sama_mega.cluster.health.settings import MEMORY_VARIABLE, Settings
from sama_mega.cluster.health.world import Node, World

_MIB_PER_GIB = 1024
_REPAIR = "have the node drained and the GPU reset or replaced"


def gpu_problems(world: World, settings: Settings) -> list[Problem]:
    """Every node whose GPUs are too few, broken, in use, or unlike the others'."""
    problems: list[Problem] = []
    all_came = sum(node.num_ranks for node in world.nodes) == world.world_size
    for node in world.nodes:
        facts = node.gpus
        if facts is None or node.shares_gpus:
            continue
        problems += _grant_problems(node, facts)
        if world.is_job:
            problems += _rank_problems(node, facts, all_came)
        for gpu in facts.gpus:
            problems += _single_gpu_problems(node.name, gpu, settings)
        problems += _log_problems(node.name, facts)
    problems += _kind_problems(world)
    return problems


def _grant_problems(node: Node, facts: GpuFacts) -> Iterator[Problem]:
    """What Slurm granted against what the driver shows."""
    granted, shown = facts.granted or 0, len(facts.gpus)
    if not granted or facts.has_slices:
        return
    grant = f"Slurm granted {granted} GPU{'s' if granted > 1 else ''}"
    if shown < granted:
        why = f" ({facts.error})" if facts.error is not None else ""
        text = f"{grant} and the driver shows {shown or 'none'}{why}; it must show all of them"
        yield Problem("gpu-grant", node.name, text, "have the node drained and its GPUs and driver looked at")
    elif shown > granted:
        yield Problem(
            "gpu-grant",
            node.name,
            f"{grant} and the driver shows {shown}: some are another job's",
            "set ConstrainDevices in Slurm's cgroup.conf, or CUDA_VISIBLE_DEVICES",
            is_error=False,
            can_exclude=False,
        )


def _rank_problems(node: Node, facts: GpuFacts, all_came: bool) -> Iterator[Problem]:
    usable, ranks = facts.granted or len(facts.gpus), node.num_ranks
    if not usable:
        return
    has = f"{ranks} rank{'s' if ranks > 1 else ''} for {usable} GPU{'s' if usable > 1 else ''}"
    if ranks > usable:
        fix = f"submit with --gpus-per-node={ranks}, or start {usable} rank{'s' if usable > 1 else ''} a node"
        text = f"{has}; every rank must have one of its own"
        yield Problem("gpu-count", node.name, text, fix, can_exclude=False)
    elif ranks < usable and all_came:
        text, fix = f"{has}: the others stay idle", f"start {usable} ranks a node (--ntasks-per-node={usable})"
        yield Problem("gpu-count", node.name, text, fix, is_error=False, can_exclude=False)


def _single_gpu_problems(node: str, gpu: Gpu, settings: Settings) -> Iterator[Problem]:
    subject = f"GPU {gpu.index} ({gpu.name})"
    if gpu.fault is not None:
        text = f"{subject}: the driver says {gpu.fault!r}; a GPU must answer"
        yield Problem("gpu-fault", node, text, _REPAIR, subject=subject)
    if gpu.uncorrected_errors:
        errors = f"{gpu.uncorrected_errors} uncorrected ECC error{'s' if gpu.uncorrected_errors > 1 else ''}"
        text = f"{subject} has {errors} since its driver started; it must have none"
        yield Problem("gpu-ecc", node, text, _REPAIR, subject=subject)
    total, free = gpu.memory_total_mib, gpu.memory_free_mib
    if total and free is not None and free / total < settings.min_free_gpu_memory_share:
        yield Problem(
            "gpu-memory",
            node,
            f"{subject} has {free / _MIB_PER_GIB:.1f} of {total / _MIB_PER_GIB:.1f} GiB free "
            f"({free / total:.2f}); {MEMORY_VARIABLE} is {settings.min_free_gpu_memory_share:g}",
            "end the process that holds it (nvidia-smi shows it)",
            subject=subject,
        )


def _log_problems(node: str, facts: GpuFacts) -> Iterator[Problem]:
    """A warning only: the log does not say whether the GPU recovered; the driver's own answers above do."""
    for line in facts.log:
        text = f"the kernel's log has {line[:120]!r} since the node started; that is broken hardware or was"
        yield Problem("gpu-log", node, text, "have its GPUs looked at", subject=line, is_error=False)


def _kind_problems(world: World) -> Iterator[Problem]:
    """One kind of GPU and driver on all nodes; a node without any among nodes that have some cannot take part."""
    shown = {node.name: node.gpus for node in world.nodes if node.gpus is not None and not node.shares_gpus}
    having = {name: facts for name, facts in shown.items() if facts.gpus}
    if not having:
        return
    first = next(iter(having))
    for name, facts in shown.items():
        if not facts.gpus and not facts.granted:  # a grant that the driver does not show is told above
            why = f" ({facts.error})" if facts.error is not None else ""
            text = f"it has no GPU{why}, {first} has {len(having[first].gpus)}; all nodes must have some"
            yield Problem("gpu-kind", name, text, "request GPUs on every node with --gpus-per-node")
    yield from _differing("GPUs", {name: _kinds(facts) for name, facts in having.items()})
    yield from _differing("driver", {name: _drivers(facts) for name, facts in having.items()})


def _differing(what: str, values: Mapping[str, str | None]) -> Iterator[Problem]:
    reference = find_reference(values)
    for name, value in values.items():
        if value != values[reference]:
            text = f"{what} {value}, on {reference} {values[reference]}; the slowest node sets the pace"
            yield Problem(
                "gpu-kind", name, text, "request one kind with --constraint", subject=f"{what} {value}", is_error=False
            )


def _kinds(facts: GpuFacts) -> str:
    counts: dict[str, int] = {}
    for gpu in facts.gpus:
        counts[gpu.name] = counts.get(gpu.name, 0) + 1
    return ", ".join(f"{count} x {name}" for name, count in sorted(counts.items()))


def _drivers(facts: GpuFacts) -> str:
    return ", ".join(sorted({gpu.driver for gpu in facts.gpus}))
