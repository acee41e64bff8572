"""What a recipe allows and a cluster punishes: each with the thing, its value, the rule and the fix."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from sama_mega.config.schema import BUILT_IN_ENCODERS, Recipe
from sama_mega.observe.gpu_kinds import GpuKind
from sama_mega.parallel.layout import Layout
from sama_mega.planner.activations import BlockSizes
from sama_mega.planner.encoder_memory import encoder_weight_bytes
from sama_mega.planner.layouts import HEADROOM_SHARE, RECOMPUTE_MODES
from sama_mega.planner.memory import GIB, MemoryPlan, predict_memory
from sama_mega.planner.step_time import predict_step_time
from sama_mega.planner.workload import Workload

_REPLICATED_SHARE, _ENCODERS_SHARE = 0.3, 0.2
_WORTH_SAYING = 0.03
_IDLE_SHARE = 0.2


@dataclass(frozen=True)
class Cluster:
    """What a recipe is to run on.

    Attributes:
        gpu: One GPU.
        gpu_name: Its name in the table.
        gpus_per_node: Ranks of a node.
        limit_gib: Memory that a rank may take.
    """

    gpu: GpuKind
    gpu_name: str
    gpus_per_node: int
    limit_gib: float


@dataclass(frozen=True)
class FootGun:
    """One finding.

    Attributes:
        key: The recipe's key to look at.
        text: One line.
    """

    key: str
    text: str


def find_foot_guns(
    recipe: Recipe, layout: Layout, work: Workload, memory: MemoryPlan, cluster: Cluster
) -> list[FootGun]:
    """Looks for what costs memory or time for nothing.

    Args:
        recipe: The whole recipe.
        layout: Resolved degrees.
        work: Of the recipe in that layout.
        memory: Likewise.
        cluster: What it is to run on.
    """
    found: list[FootGun] = []
    found += _replicated(recipe, layout, memory, cluster)
    found += _needless_recompute(recipe, layout, work, cluster)
    found += _whole_tokens(recipe, layout, work, memory)
    found += _context_of_images(recipe)
    found += _idle_stages(layout, work)
    found += _slow_arithmetic(recipe, layout, work, memory, cluster)
    found += _large_encoders(recipe, cluster)
    found += _open_messages(recipe, layout)
    return found


def _replicated(recipe: Recipe, layout: Layout, memory: MemoryPlan, cluster: Cluster) -> Iterator[FootGun]:
    held = memory.parts["weights"] + memory.parts["gradients"]
    if layout.data == layout.world_size > 1 and held > _REPLICATED_SHARE * cluster.limit_gib * GIB:
        yield FootGun(
            "parallel.tensor",
            f"parallel.tensor, context and pipeline are 1: each of {layout.world_size} GPUs holds all weights and "
            f"gradients, {held / GIB:.0f} of {cluster.limit_gib:g} GiB: split them with parallel.tensor or "
            "parallel.pipeline",
        )


def _needless_recompute(recipe: Recipe, layout: Layout, work: Workload, cluster: Cluster) -> Iterator[FootGun]:
    mode = recipe.train.recompute
    now = predict_step_time(recipe, layout, cluster.gpu, cluster.gpus_per_node, work).seconds
    for less in RECOMPUTE_MODES[: RECOMPUTE_MODES.index(mode)]:
        changed = recipe.model_copy(update={"train": recipe.train.model_copy(update={"recompute": less})})
        memory = predict_memory(changed, layout, work)
        if memory.total > (1 - HEADROOM_SHARE) * cluster.limit_gib * GIB:
            continue
        faster = 1 - predict_step_time(changed, layout, cluster.gpu, cluster.gpus_per_node, work).seconds / now
        if faster > _WORTH_SAYING:
            yield FootGun(
                "train.recompute",
                f"train.recompute ({mode}) computes again what there is room to keep: train.recompute={less} takes "
                f"{memory.total_gib:.0f} of {cluster.limit_gib:g} GiB and {faster:.0%} less time",
            )
        return


def _whole_tokens(recipe: Recipe, layout: Layout, work: Workload, memory: MemoryPlan) -> Iterator[FootGun]:
    if layout.tensor == 1 or layout.sequence:
        return
    yield FootGun(
        "parallel.sequence",
        f"parallel.sequence (false): each of {layout.tensor} tensor ranks holds all tokens between the matrices, and "
        "messages are no smaller for it: use parallel.sequence=true",
    )


def _context_of_images(recipe: Recipe) -> Iterator[FootGun]:
    if recipe.parallel.context > 1 and not recipe.data.videos_per_step:
        yield FootGun(
            "parallel.context",
            f"parallel.context ({recipe.parallel.context}) splits images, which are short: their messages cost more "
            "than they save: use parallel.context=1",
        )


def _idle_stages(layout: Layout, work: Workload) -> Iterator[FootGun]:
    most = max(map(len, work.data_ranks))
    waiting = (layout.pipeline - 1) / layout.interleave
    idle = waiting / (most + waiting)
    if idle > _IDLE_SHARE:
        yield FootGun(
            "parallel.pipeline",
            f"parallel.pipeline ({layout.pipeline}) idles {idle:.0%} of a step: a data rank has {most} "
            f"micro-batches, and stages fill and drain in {waiting:g}: use fewer stages, or smaller micro-batches",
        )


def _slow_arithmetic(
    recipe: Recipe, layout: Layout, work: Workload, memory: MemoryPlan, cluster: Cluster
) -> Iterator[FootGun]:
    gpu = cluster.gpu
    if recipe.train.precision == "float32":
        times = gpu.peak_flops("bfloat16") / gpu.peak_flops("float32")
        yield FootGun(
            "train.precision",
            f"train.precision (float32) leaves {cluster.gpu_name}'s tensor cores idle, {times:.0f} times slower by "
            "its data sheet: use train.precision=bfloat16, which keeps float32 master weights",
        )
    if recipe.kernels.ops == "reference":
        fused = recipe.model_copy(update={"kernels": recipe.kernels.model_copy(update={"ops": "auto"})})
        saved = memory.total - predict_memory(fused, layout, work).total
        yield FootGun(
            "kernels.ops",
            f"kernels.ops (reference) is for checks and takes {saved / GIB:.1f} GiB more: use kernels.ops=auto",
        )
    if recipe.kernels.attention == "reference":
        largest = max(work.largest, key=lambda batch: batch.num_samples * batch.num_tokens**2)
        heads = BlockSizes.of(recipe, layout, largest).heads
        scores = 4 * largest.num_samples * heads * largest.num_tokens**2 // layout.context
        yield FootGun(
            "kernels.attention",
            f"kernels.attention (reference) writes out all scores of {largest.num_tokens:,} tokens, "
            f"{scores / GIB:,.1f} GiB at a time: use kernels.attention=auto",
        )


def _large_encoders(recipe: Recipe, cluster: Cluster) -> Iterator[FootGun]:
    weights = encoder_weight_bytes(recipe)
    held = sum(weights.values())
    if held > _ENCODERS_SHARE * cluster.limit_gib * GIB:
        names = ", ".join(f"{getattr(recipe.encoders, role)} {size / GIB:.1f}" for role, size in weights.items())
        builtin = ", ".join(f"{role} {name}" for role, name in BUILT_IN_ENCODERS.items())
        fix = (
            "train.precision=bfloat16 halves them"
            if recipe.train.precision == "float32"
            else f"only the built-in ones ({builtin}) take none; data.cache saves their time, not their memory"
        )
        yield FootGun(
            "encoders.text",
            f"encoders take {held / GIB:.1f} of {cluster.limit_gib:g} GiB of every GPU ({names}): {fix}",
        )


def _open_messages(recipe: Recipe, layout: Layout) -> Iterator[FootGun]:
    parallel = recipe.parallel
    off = [key for key in ("overlap_grad_reduce", "overlap_param_gather") if not getattr(parallel, key)]
    if off and layout.data * layout.context > 1 and layout.world_size > 1:
        keys = " and ".join(f"parallel.{key}" for key in off)
        yield FootGun(
            f"parallel.{off[0]}",
            f"{keys} (false): gradients and weights travel while nothing is computed: use true",
        )
