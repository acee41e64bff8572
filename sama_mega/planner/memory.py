"""Memory of one GPU by part, on the rank that needs most, for any recipe and layout."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sama_mega.config.schema import Recipe
from sama_mega.parallel.layout import Layout, micro_batch_group_size
from sama_mega.planner.activations import (
    BlockSizes,
    Kernels,
    attention_workspace_bytes,
    backward_bytes,
    block_bytes,
    embedding_bytes,
    head_bytes,
    rotary_bytes,
)
from sama_mega.planner.encoder_memory import encoder_weight_bytes, encoding_bytes, input_bytes
from sama_mega.planner.rank_parameters import Buffer, pack_buffers, stage_parameters
from sama_mega.planner.workload import MicroBatchShape, Workload, plan_workload

GIB = 1 << 30
FRAGMENTATION_SHARE = 0.08
"""Of what is allocated anew every step; buffers that are allocated once fit where they lie."""
RUNTIME_BYTES = 3 * GIB // 4
"""CUDA's context and modules, cuBLAS's and cuDNN's workspaces: an assumption."""
COMMUNICATOR_BYTES = GIB // 8
"""Of NCCL, for each group of several ranks: an assumption."""

_FLOAT = 4


@dataclass(frozen=True)
class MemoryPlan:
    """What one GPU holds when it holds most.

    Attributes:
        parts: Bytes by part, in the order of a table.
        stage: Pipeline rank that it is counted for.
        in_flight: Micro-batches whose activations it holds at once.
    """

    parts: dict[str, int]
    stage: int
    in_flight: int

    @property
    def total(self) -> int:
        """Bytes of all parts."""
        return sum(self.parts.values())

    @property
    def total_gib(self) -> float:
        """The same in GiB."""
        return self.total / GIB

    @property
    def bottleneck(self) -> str:
        """The largest part."""
        return max(self.parts, key=lambda part: self.parts[part])


def predict_memory(
    recipe: Recipe, layout: Layout, workload: Workload | None = None, *, on_gpu: bool = True
) -> MemoryPlan:
    """Adds up a rank's memory by part, on the pipeline rank with most.

    Weights, gradients, optimizer and average, by `state_bytes`. Activations: `sama_mega/planner/activations.py`, of the
    largest micro-batch that dealing can give a rank; with pipeline stages, of as many of a rank's largest as are
    between their passes at once (`count_in_flight`), with the inputs of the whole step, which is encoded before the
    first stage runs (`Sharing.among` in `sama_mega/train/shared_encoding.py`). Encoding and training hold their own
    memory one after the other: what encoding needs beyond training counts.

    Args:
        recipe: The whole recipe; the degrees come from the layout.
        layout: Resolved degrees.
        workload: Of the recipe in that layout; planned here by default.
        on_gpu: Whether ``kernels.ops: auto`` means the fused operations, and a GPU's runtime counts.
    """
    work = workload or plan_workload(recipe, layout)
    plans = [_plan_rank(recipe, layout, work, rank, on_gpu) for rank in _distinct_ranks(layout)]
    return max(plans, key=lambda plan: plan.total)


def state_bytes(recipe: Recipe, layout: Layout, pipeline_rank: int) -> dict[str, int]:
    """Bytes of what a rank keeps from step to step, by part.

    - weights: every parameter in its dtype, in megatron's buffers with their padding; frozen ones as they are.
    - gradients: float32, of the same buffers (``grad_reduce_in_fp32`` in `sama_mega/parallel/data_parallel.py`).
    - optimizer: two float32 moments, and for bfloat16 weights a float32 master, of the rank's share of every bucket
      (`sama_mega/parallel/optimizer.py`; data times context ranks share). Float32 weights are their own masters.
    - average of the weights: float32, of the same share (`sama_mega/train/ema.py`); with ``ema_device: host`` only the
      largest tensor on its way.

    Args:
        recipe: The whole recipe.
        layout: Resolved degrees.
        pipeline_rank: Whose stages.
    """
    buffers: list[Buffer] = []
    frozen, largest = 0, 0
    for index in layout.stages_of(pipeline_rank):
        parameters = stage_parameters(recipe, layout, layout.stage(index))
        frozen += sum(one.numel * one.num_bytes for one in parameters if not one.is_trained)
        largest = max([largest, *(one.numel for one in parameters if one.is_trained)])
        buffers += pack_buffers(
            parameters, layout.data * layout.context, recipe.parallel.overlap_grad_reduce, pipeline_rank
        )
    owned = sum(buffer.owned for buffer in buffers)
    masters = sum(buffer.owned for buffer in buffers if buffer.num_bytes < _FLOAT)
    on_device = recipe.optimizer.ema_device == "device"
    return {
        "weights": frozen + sum(buffer.numel * buffer.num_bytes for buffer in buffers),
        "gradients": _FLOAT * sum(buffer.numel for buffer in buffers),
        "optimizer": _FLOAT * (2 * owned + masters),
        "average of the weights": _FLOAT * (owned if on_device else min(largest, owned)),
    }


def count_in_flight(layout: Layout, pipeline_rank: int, num_micro_batches: int) -> int:
    """Micro-batches, each of one chunk, whose activations a pipeline rank holds at once, at most.

    megatron's 1F1B runs forward passes ahead: on rank p of P, P - p of them. Interleaved, with v chunks a rank,
    2 (P - p - 1) + (v - 1) g + 1 passes of single chunks, in groups of g micro-batches (`micro_batch_group_size`): P
    of them, or up to 2 P - 1 where their number is no multiple of the stages.

    Source: megatron-core 0.16.1 ``get_pp_rank_microbatches``, as `sama_mega/parallel/pipeline.py` calls it.
    """
    ahead = layout.pipeline - pipeline_rank
    if layout.interleave == 1:
        return min(num_micro_batches, ahead)
    group_size = micro_batch_group_size(layout, num_micro_batches)
    passes = 2 * (ahead - 1) + (layout.interleave - 1) * group_size + 1
    return min(num_micro_batches * layout.interleave, passes)


def _distinct_ranks(layout: Layout) -> Sequence[int]:
    """First and last hold embeddings and heads; of those between with equal blocks the first runs furthest ahead."""
    ranks = range(layout.pipeline)
    first: dict[tuple[int, ...], int] = {}
    for rank in ranks[1:-1]:
        first.setdefault(tuple(layout.stage_layers[index] for index in layout.stages_of(rank)), rank)
    return sorted({0, *first.values(), ranks[-1]})


def _plan_rank(recipe: Recipe, layout: Layout, work: Workload, pipeline_rank: int, on_gpu: bool) -> MemoryPlan:
    kernels = Kernels.of(recipe, on_gpu)
    # Fewer micro-batches may come in larger groups.
    in_flight = max(count_in_flight(layout, pipeline_rank, len(rank)) for rank in work.distinct_ranks)
    batches = _worst_batches(recipe, layout, work, kernels, -(-in_flight // layout.interleave))
    held = _held_in_flight(recipe, layout, batches, kernels, pipeline_rank, in_flight)
    largest = batches[0]
    sizes = BlockSizes.of(recipe, layout, largest)
    has_heads = layout.stage(layout.stages_of(pipeline_rank)[-1]).is_last
    heads = head_bytes(recipe, layout, largest, kernels) if has_heads else 0
    inputs = _held_inputs(recipe, layout, work)
    parts = state_bytes(recipe, layout, pipeline_rank)
    encoders = sum(encoder_weight_bytes(recipe).values())
    # Head and losses are gone when the last block's backward pass begins.
    training = {
        "activations": held,
        "one block's backward, or heads and losses": max(backward_bytes(recipe, sizes, kernels), heads),
        "attention workspace": attention_workspace_bytes(sizes, kernels, largest.num_tokens),
    }
    encoding = max(encoding_bytes(recipe, batch) for batch in work.largest)
    passing = {
        **training,
        "latents, text and features": inputs,
        "encoding beyond training": max(0, encoding - sum(training.values())),
    }
    parts |= passing | {"encoders": encoders, "messages": _message_bytes(recipe, layout, sizes, on_gpu)}
    parts["CUDA and libraries"] = RUNTIME_BYTES if on_gpu else 0
    parts["fragmentation"] = round(FRAGMENTATION_SHARE * sum(passing.values())) if on_gpu else 0
    return MemoryPlan(parts, pipeline_rank, in_flight)


def _worst_batches(
    recipe: Recipe, layout: Layout, work: Workload, kernels: Kernels, num_held: int
) -> list[MicroBatchShape]:
    """A rank's micro-batches by what they hold, the largest first, and before them the largest there can be."""
    known: dict[MicroBatchShape, int] = {}

    def size(batch: MicroBatchShape) -> int:
        if batch not in known:
            known[batch] = block_bytes(recipe, BlockSizes.of(recipe, layout, batch), kernels) + backward_bytes(
                recipe, BlockSizes.of(recipe, layout, batch), kernels
            )
        return known[batch]

    first = max(work.largest, key=size)
    ranks = [sorted(rank, key=size, reverse=True) for rank in work.distinct_ranks]
    fullest = max(ranks, key=lambda rank: sum(map(size, rank[:num_held])))
    return [first, *fullest[1:]]


def _held_in_flight(
    recipe: Recipe,
    layout: Layout,
    batches: Sequence[MicroBatchShape],
    kernels: Kernels,
    pipeline_rank: int,
    in_flight: int,
) -> int:
    """Activations of the micro-batches that are between their passes.

    Interleaved, each pass also keeps what it sent (T d): see ``deallocate_pipeline_outputs`` in
    `sama_mega/parallel/pipeline.py`. Of the last rank's outermost chunk, which sends nothing, it is counted too.
    """
    stages = [layout.stage(index) for index in layout.stages_of(pipeline_rank)]
    blocks = max(len(stage.layers) for stage in stages)
    held = 0
    for position in range(in_flight):
        batch = batches[min(position // layout.interleave, len(batches) - 1)]
        sizes = BlockSizes.of(recipe, layout, batch)
        held += blocks * block_bytes(recipe, sizes, kernels)
        held += sizes.own * sizes.dim * sizes.num_bytes if layout.interleave > 1 else 0
        held += max(embedding_bytes(recipe, layout, batch, stage) for stage in stages)
        held += rotary_bytes(recipe, layout, batch, kernels)
    return held


def _held_inputs(recipe: Recipe, layout: Layout, work: Workload) -> int:
    """Encoded inputs that wait: of one micro-batch; of one a sharing rank; with stages, of all of the step."""
    ranks = layout.tensor * layout.context * layout.pipeline
    if layout.num_stages > 1:
        return max(sum(input_bytes(recipe, batch) for batch in rank) for rank in work.distinct_ranks)
    return max(
        max(
            sum(sorted((input_bytes(recipe, batch) for batch in rank), reverse=True)[:ranks])
            for rank in work.distinct_ranks
        ),
        max(input_bytes(recipe, batch) for batch in work.largest),
    )


def _message_bytes(recipe: Recipe, layout: Layout, sizes: BlockSizes, on_gpu: bool) -> int:
    """Memory of messages.

    Gathered tokens of sequence parallel (U d: `sama_mega/model/parallel_products.py`), what stages send each other (4 T
    d: sent and received, both ways), and NCCL's own buffers of every group of several ranks. Gradients and weights
    travel in megatron's own buffers: they need none.
    """
    gathered = sizes.inside * sizes.dim * sizes.num_bytes if sizes.inside > sizes.own else 0
    between = 4 * sizes.own * sizes.dim * sizes.num_bytes if layout.num_stages > 1 else 0
    degrees = (layout.tensor, layout.context, layout.pipeline, layout.data * layout.context, layout.world_size)
    groups = sum(degree > 1 for degree in degrees)
    return gathered + between + (groups * COMMUNICATOR_BYTES if on_gpu else 0)
