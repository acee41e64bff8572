"""Layouts that the rules allow and a GPU's memory holds, the fastest first."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import log2
from typing import Any

from sama_mega.config.errors import ConfigError
from sama_mega.config.schema import Recipe
from sama_mega.observe.gpu_kinds import GpuKind
from sama_mega.parallel.layout import Layout, resolve_layout, samples_needed_per_rank
from sama_mega.planner.encoder_memory import encoder_weight_bytes
from sama_mega.planner.memory import GIB, RUNTIME_BYTES, MemoryPlan, predict_memory
from sama_mega.planner.step_time import StepTime, predict_step_time
from sama_mega.planner.workload import Workload, plan_workload

RECOMPUTE_MODES = ("none", "selective", "selective_ffn", "full")
"""From the fastest to the smallest."""

HEADROOM_SHARE = 0.05
"""Of a GPU's memory that a suggested layout leaves free: the prediction may be that wrong, and clips differ."""

_LARGEST_CONTEXT, _LARGEST_PIPELINE = 64, 16
MOST_GPUS_TRIED = 4096
"""By `fewest_gpus`."""


@dataclass(frozen=True)
class Candidate:
    """One way to run a recipe.

    Attributes:
        recipe: With its degrees, recompute mode and place of the average.
        layout: Of that recipe.
        overrides: What makes it of the recipe that was asked about; none: it is that recipe.
        memory: Of its worst rank.
        step: Of its step.
    """

    recipe: Recipe
    layout: Layout
    overrides: tuple[str, ...]
    memory: MemoryPlan
    step: StepTime


def fitting_layouts(
    recipe: Recipe, num_gpus: int, gpu: GpuKind, gpus_per_node: int, limit_gib: float
) -> list[Candidate]:
    """Every layout that fits with room to spare, each with the least recompute that does, the fastest first.

    `resolve_layout` judges which are allowed; besides, tensor ranks stay inside a node, every data rank gets a sample,
    and stages are as even as can be. The average of the weights goes to the host where nothing fits otherwise.

    Args:
        recipe: The whole recipe; its degrees, recompute mode and ``ema_device`` are replaced.
        num_gpus: All of them are used.
        gpu: Gives the times.
        gpus_per_node: Ranks of a node.
        limit_gib: Memory of a GPU, of which HEADROOM_SHARE stays free.
    """
    found, room = [], (1 - HEADROOM_SHARE) * limit_gib
    for degrees in _degrees(recipe, num_gpus, gpus_per_node):
        fitted = _least_recompute(_with_degrees(recipe, degrees), num_gpus, room)
        if fitted is not None:
            changed, layout, work, memory = fitted
            step = predict_step_time(changed, layout, gpu, gpus_per_node, work)
            found.append(Candidate(changed, layout, _overrides(recipe, changed), memory, step))
    return sorted(found, key=lambda one: one.step.seconds)


def best_layout(
    recipe: Recipe, num_gpus: int, gpu: GpuKind, gpus_per_node: int, limit_gib: float | None = None
) -> Candidate | None:
    """The fastest that fits, or None.

    Args:
        recipe: As for `fitting_layouts`.
        num_gpus: All of them are used.
        gpu: Gives the times, and its memory where no limit is given.
        gpus_per_node: Ranks of a node.
        limit_gib: Memory of a GPU.
    """
    found = fitting_layouts(recipe, num_gpus, gpu, gpus_per_node, limit_gib or gpu.memory_gib)
    return found[0] if found else None


def nearest_first(recipe: Recipe, candidates: list[Candidate]) -> list[Candidate]:
    """Orders candidates by how little they change of a recipe: doublings of degrees and steps of recompute."""
    return sorted(candidates, key=lambda one: (_distance(recipe, one.recipe), one.step.seconds))


def fewest_gpus(
    recipe: Recipe, more_than: int, gpu: GpuKind, gpus_per_node: int, limit_gib: float
) -> tuple[int, Candidate] | None:
    """The smallest doubling of a number of GPUs, up to MOST_GPUS_TRIED, on which a layout fits, and the fastest one."""
    if unsplit_gib(recipe) > limit_gib:
        return None
    num_gpus = 2 * more_than
    while num_gpus <= MOST_GPUS_TRIED:
        found = best_layout(recipe, num_gpus, gpu, gpus_per_node, limit_gib)
        if found is not None:
            return num_gpus, found
        num_gpus *= 2
    return None


def unsplit_gib(recipe: Recipe) -> float:
    """What no layout splits: CUDA, libraries and the frozen encoders."""
    return (RUNTIME_BYTES + sum(encoder_weight_bytes(recipe).values())) / GIB


def _degrees(recipe: Recipe, num_gpus: int, gpus_per_node: int) -> Iterator[dict[str, Any]]:
    for tensor in range(1, min(num_gpus, gpus_per_node) + 1):
        if gpus_per_node % tensor:
            continue
        for context in range(1, min(num_gpus // tensor, _LARGEST_CONTEXT) + 1):
            for pipeline in range(1, min(num_gpus // (tensor * context), _LARGEST_PIPELINE) + 1):
                if num_gpus % (tensor * context * pipeline) == 0:
                    yield {"tensor": tensor, "context": context, "pipeline": pipeline}


def _with_degrees(recipe: Recipe, degrees: dict[str, Any]) -> Recipe:
    """The recipe in other degrees; what else it says of them stays where it still can."""
    own = recipe.parallel
    fixed: dict[str, Any] = {"data": "auto", "sequence": True}
    if degrees["pipeline"] != own.pipeline:
        fixed |= {"interleave": 1, "stage_layers": None}
    if (degrees["tensor"], degrees["context"]) != (own.tensor, own.context):
        fixed |= {"ulysses": "auto"}
    return recipe.model_copy(update={"parallel": own.model_copy(update=degrees | fixed)})


def _least_recompute(
    recipe: Recipe, num_gpus: int, limit_gib: float
) -> tuple[Recipe, Layout, Workload, MemoryPlan] | None:
    try:
        layout = resolve_layout(recipe, num_gpus)
    except ConfigError:
        return None
    samples = recipe.data.images_per_step + recipe.data.videos_per_step
    if max(1, samples_needed_per_rank(recipe.parallel)) * layout.data > samples:
        return None
    work = plan_workload(recipe, layout)
    for place in ("device", "host"):
        for mode in RECOMPUTE_MODES:
            changed = recipe.model_copy(
                update={
                    "train": recipe.train.model_copy(update={"recompute": mode}),
                    "optimizer": recipe.optimizer.model_copy(update={"ema_device": place}),
                }
            )
            memory = predict_memory(changed, layout, work)
            if memory.total <= limit_gib * GIB:
                return changed, layout, work, memory
    return None


def _overrides(recipe: Recipe, changed: Recipe) -> tuple[str, ...]:
    """What to type after the recipe."""
    typed = []
    for section in ("parallel", "train", "optimizer"):
        before, after = (getattr(one, section).model_dump(mode="json") for one in (recipe, changed))
        typed += [f"{section}.{key}={_typed(value)}" for key, value in after.items() if value != before[key]]
    return tuple(item for item in typed if item != "parallel.sequence=true" or changed.parallel.tensor > 1)


def _typed(value: object) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _distance(recipe: Recipe, changed: Recipe) -> float:
    degrees = sum(
        abs(log2(getattr(changed.parallel, key) / getattr(recipe.parallel, key)))
        for key in ("tensor", "context", "pipeline")
    )
    modes = [RECOMPUTE_MODES.index(one.train.recompute) for one in (recipe, changed)]
    moved = recipe.optimizer.ema_device != changed.optimizer.ema_device
    return degrees + 0.5 * abs(modes[0] - modes[1]) + 0.5 * moved
