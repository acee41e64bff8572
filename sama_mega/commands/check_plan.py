"""The planner's part of `sama-mega check`: memory by part, step time by part, layouts that fit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from math import isfinite
from pathlib import Path
from typing import Any

from sama_mega.config import Recipe
from sama_mega.config.errors import ConfigError
from sama_mega.observe.gpu_kinds import TABLE_VARIABLE, GpuKind, load_gpu_kinds
from sama_mega.parallel.layout import Layout, resolve_layout
from sama_mega.planner.foot_guns import Cluster, FootGun, find_foot_guns
from sama_mega.planner.layouts import (
    HEADROOM_SHARE,
    MOST_GPUS_TRIED,
    Candidate,
    fewest_gpus,
    fitting_layouts,
    nearest_first,
    unsplit_gib,
)
from sama_mega.planner.memory import GIB, MemoryPlan, predict_memory
from sama_mega.planner.rank_time import PARTS
from sama_mega.planner.step_time import StepTime, predict_step_time, three_digits
from sama_mega.planner.workload import plan_workload

ASSUMED_GPU = "H200"

_SUGGESTED = 3


@dataclass(frozen=True)
class GpuRequest:
    """What the user says of the GPUs; None: nothing.

    Attributes:
        name: Of a kind in the table.
        memory_gib: What a rank may take, instead of the table's.
        table: The user's own table.
        gpus_per_node: Ranks on each node.
    """

    name: str | None = None
    memory_gib: float | None = None
    table: Path | None = None
    gpus_per_node: int = 8


@dataclass(frozen=True)
class Plan:
    """What the planner says of a recipe in a layout.

    Attributes:
        cluster: What it was planned for; None: CPU ranks.
        is_assumed: Whether nobody named the kind of GPU.
        memory: Of the worst rank.
        step: Of a step; None for CPU ranks.
        fits: Whether the memory is enough.
        suggestions: Layouts that fit: the fastest first where the recipe's own fits, else the nearest.
        foot_guns: What costs memory or time for nothing.
    """

    cluster: Cluster | None
    is_assumed: bool
    memory: MemoryPlan
    step: StepTime | None
    fits: bool
    suggestions: list[Candidate]
    foot_guns: list[FootGun]


def make_plan(recipe: Recipe, layout: Layout, request: GpuRequest) -> Plan:
    """Plans a recipe in its layout, and looks for other layouts of as many ranks.

    Where nobody names a GPU, a float32 recipe is taken for one of CPU ranks, any other for one of H200s.

    Raises:
        ConfigError: No such kind of GPU, or its table is wrong.
    """
    work = plan_workload(recipe, layout)
    cluster = find_cluster(recipe, request)
    if cluster is None:
        memory = predict_memory(recipe, layout, work, on_gpu=False)
        return Plan(None, True, memory, None, True, [], [])
    memory = predict_memory(recipe, layout, work)
    step = predict_step_time(recipe, layout, cluster.gpu, cluster.gpus_per_node, work)
    fits = _fits(memory, cluster)
    fitting = fitting_layouts(recipe, layout.world_size, cluster.gpu, cluster.gpus_per_node, cluster.limit_gib)
    best = fitting if fits else nearest_first(recipe, fitting)
    foot_guns = find_foot_guns(recipe, layout, work, memory, cluster) if fits else []
    return Plan(cluster, request.name is None, memory, step, fits, best[:_SUGGESTED], foot_guns)


def find_misfit(recipe: Recipe, layout: Layout, request: GpuRequest) -> str | None:
    """Says by how much a recipe does not fit its GPUs, without a look for layouts that do; None where it does fit.

    CPU ranks, which are taken for what `make_plan` takes for them, fit.

    Raises:
        ConfigError: No such kind of GPU, or its table is wrong.
    """
    cluster = find_cluster(recipe, request)
    if cluster is None:
        return None
    memory = predict_memory(recipe, layout, plan_workload(recipe, layout))
    return None if _fits(memory, cluster) else _describe_misfit(layout, memory, cluster, request.name is None)


def require_layout(recipe: Recipe, num_ranks: int, request: GpuRequest) -> Layout:
    """The recipe's layout of a number of ranks.

    Raises:
        ConfigError: It is impossible; names the nearest layouts of so many GPUs that are possible and fit.
    """
    try:
        return resolve_layout(recipe, num_ranks)
    except ConfigError as error:
        cluster = find_cluster(recipe, request)
        if cluster is None:
            raise
        fitting = fitting_layouts(recipe, num_ranks, cluster.gpu, cluster.gpus_per_node, cluster.limit_gib)
        if not fitting:
            raise ConfigError(f"{error}; {_nothing_fits(recipe, num_ranks, cluster)}") from None
        near = _typed(nearest_first(recipe, fitting)[:_SUGGESTED])
        raise ConfigError(f"{error}; the nearest layouts of {_gpus(num_ranks)} that fit: {near}") from None


def find_cluster(recipe: Recipe, request: GpuRequest) -> Cluster | None:
    """The GPUs that are meant, or None for CPU ranks.

    Raises:
        ConfigError: No such kind of GPU, its table is wrong, or its memory is not a number.
    """
    kinds = load_gpu_kinds(request.table) if request.table else load_gpu_kinds()
    nobody_asked = request.name is None and request.memory_gib is None
    if nobody_asked and recipe.train.precision == "float32":
        return None
    if request.memory_gib is not None and not isfinite(request.memory_gib):
        raise ConfigError(f"--gpu-memory-gib ({request.memory_gib:g}) must be a finite number")
    name = request.name or ASSUMED_GPU
    _require_kind(name, kinds)
    return Cluster(kinds[name], name, request.gpus_per_node, request.memory_gib or kinds[name].memory_gib)


def require_gpu_kind(name: str) -> None:
    """Raises ConfigError where the table of GPUs, or the user's beside it, has no such kind."""
    _require_kind(name, load_gpu_kinds())


def _require_kind(name: str, kinds: Mapping[str, GpuKind]) -> None:
    if name not in kinds:
        raise ConfigError(
            f"--gpu ({name}) must be in the table of GPUs: use {', '.join(kinds)}, or add it in a table of your own "
            f"({TABLE_VARIABLE}, or check --gpu-table FILE)"
        )


def print_plan(plan: Plan, layout: Layout) -> None:
    """Prints memory, step time and layouts."""
    print(f"GPU        {_describe_gpu(plan)}")
    where = f", pipeline rank {plan.memory.stage} of {layout.pipeline}" if layout.pipeline > 1 else ""
    unit, size_of_unit = ("GiB", GIB) if plan.memory.total >= GIB else ("MiB", GIB >> 10)
    print(f"memory     of one {'GPU' if plan.cluster else 'rank'} in {unit}, the one with most{where}")
    for part, size in plan.memory.parts.items():
        if size:
            print(f"           {part:<44}{size / size_of_unit:>9.2f}")
    print(f"           {'total':<44}{plan.memory.total / size_of_unit:>9.2f}{_verdict(plan)}")
    if plan.step is not None:
        _print_step(plan.step)
    if plan.cluster is not None:
        _print_suggestions(plan, layout)


def report_plan(plan: Plan) -> dict[str, Any]:
    """The same for ``--json``; bytes and seconds."""
    cluster, step = plan.cluster, plan.step
    return {
        "fits": plan.fits,
        "gpu": None
        if cluster is None
        else {"name": cluster.gpu_name, "assumed": plan.is_assumed, "memory_gib": cluster.limit_gib},
        "memory": {
            "bytes_by_part": plan.memory.parts,
            "total_bytes": plan.memory.total,
            "pipeline_rank": plan.memory.stage,
            "most": plan.memory.bottleneck,
        },
        "step_time": None
        if step is None
        else asdict(step) | {"most": step.bottleneck, "tokens_per_second": step.tokens_per_second},
        "layouts": [
            {
                "overrides": list(one.overrides),
                "memory_bytes": one.memory.total,
                "seconds": one.step.seconds,
                "layout": asdict(one.layout),
            }
            for one in plan.suggestions
        ],
    }


def refuse_misfit(recipe: Recipe, layout: Layout, plan: Plan) -> None:
    """Refuses a recipe that does not fit, with the nearest layouts that do.

    Raises:
        ConfigError: Always where it does not fit.
    """
    if plan.fits:
        return
    assert plan.cluster is not None
    cluster, num_gpus = plan.cluster, layout.world_size
    what = _describe_misfit(layout, plan.memory, cluster, plan.is_assumed)
    if plan.suggestions:
        near = _typed(plan.suggestions)
        raise ConfigError(f"{what}: the nearest layouts of {_gpus(num_gpus)} that fit: {near}")
    raise ConfigError(f"{what}: {_nothing_fits(recipe, num_gpus, cluster)}")


def _nothing_fits(recipe: Recipe, num_gpus: int, cluster: Cluster) -> str:
    """What to do where no layout of so many GPUs fits."""
    more = fewest_gpus(recipe, num_gpus, cluster.gpu, cluster.gpus_per_node, cluster.limit_gib)
    if more is None:
        return (
            f"no layout of {_gpus(num_gpus)} fits, nor of its doublings up to {MOST_GPUS_TRIED:,}: each data rank "
            f"needs a sample, and of {cluster.limit_gib:g} GiB CUDA and the frozen encoders take "
            f"{unsplit_gib(recipe):.1f} on every GPU"
        )
    typed = " ".join((f"--gpus {more[0]}", *more[1].overrides))
    return f"no layout of {_gpus(num_gpus)} fits; the nearest takes {more[0]:,} GPUs: {typed}"


def _describe_gpu(plan: Plan) -> str:
    cluster = plan.cluster
    if cluster is None:
        return "none: a float32 recipe is taken for one of CPU ranks; --gpu NAME plans it for GPUs"
    assumed = ", assumed: --gpu NAME names another" if plan.is_assumed else ""
    return f"{cluster.gpu_name} with {cluster.limit_gib:g} GiB, {cluster.gpus_per_node} a node{assumed}"


def _fits(memory: MemoryPlan, cluster: Cluster) -> bool:
    return memory.total <= cluster.limit_gib * GIB


def _describe_misfit(layout: Layout, memory: MemoryPlan, cluster: Cluster, is_assumed: bool) -> str:
    assumed = " (assumed)" if is_assumed else ""
    return (
        f"does not fit: {layout.describe()} needs {memory.total_gib:.0f} GiB of every GPU, most of it "
        f"{memory.bottleneck}, and the {cluster.gpu_name}{assumed} has {cluster.limit_gib:g} GiB"
    )


def _verdict(plan: Plan) -> str:
    if plan.cluster is None:
        return f"; most of it: {plan.memory.bottleneck}"
    share = plan.memory.total_gib / plan.cluster.limit_gib
    fits = "fits" if plan.fits else "does not fit"
    return f" of {plan.cluster.limit_gib:g} GiB ({share:.0%}): {fits}; most of it: {plan.memory.bottleneck}"


def _print_step(step: StepTime) -> None:
    print(f"time       {step.describe()}")
    for part, seconds in step.parts.items():
        if seconds >= 0.005 * step.seconds:
            print(f"           {PARTS[part]:<42}{three_digits(seconds):>9} s{seconds / step.seconds:>6.0%}")


def _print_suggestions(plan: Plan, layout: Layout) -> None:
    """Each with what to type after the recipe."""
    order = "the fastest first" if plan.fits else "the nearest first"
    num_gpus = layout.world_size
    none = "" if plan.suggestions else ": none"
    print(f"layouts    of {_gpus(num_gpus)} that fit with {HEADROOM_SHARE:.0%} to spare, {order}{none}")
    for one in plan.suggestions:
        typed = " ".join(one.overrides) or "(as it is)"
        print(f"           {three_digits(one.step.seconds):>8} s {one.memory.total_gib:>6.0f} GiB  {typed}")


def _typed(candidates: list[Candidate]) -> str:
    """Their overrides, as they are typed."""
    return "; or ".join(" ".join(one.overrides) for one in candidates)


def _gpus(count: int) -> str:
    return f"{count:,} GPU{'s' if count > 1 else ''}"
