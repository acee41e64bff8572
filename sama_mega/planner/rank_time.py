"""How long the ranks of one layout compute, and wait for messages."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

from sama_mega.config.schema import Recipe
from sama_mega.observe.flops import (
    ENCODER_OPERATIONS_PER_ANCHOR,
    ENCODER_OPERATIONS_PER_PIXEL,
    ENCODER_OPERATIONS_PER_TOKEN,
)
from sama_mega.parallel.layout import Layout
from sama_mega.planner import messages
from sama_mega.planner.links import members, message_seconds
from sama_mega.planner.messages import Message, Names, names_of
from sama_mega.planner.pipeline_schedule import simulate_1f1b
from sama_mega.planner.rank_parameters import Buffer, RankParameter, pack_buffers, stage_parameters
from sama_mega.planner.rates import Rates
from sama_mega.planner.work import Passes, block_passes, block_sizes, ends_passes, input_gradient_gemm
from sama_mega.planner.workload import MicroBatchShape, Workload, encoded_again

PARTS = {
    "gemm": "products of matrices",
    "attention": "attention",
    "memory_bound": "element-wise operations",
    "recompute": "forward passes again",
    "node_messages": "messages in a node",
    "network_messages": "messages between nodes",
    "pipeline_bubble": "stages that wait",
    "optimizer": "optimizer and moving average",
    "encoders": "frozen encoders",
    "uneven_dealing": "data ranks that wait",
    "overhead": "launches",
}
"""What a step's time goes to, and in words; messages count as far as nothing hides them."""
PROMPT_TOKENS = 128
"""Of a prompt, for the text encoder's time: an assumption."""

Seconds = dict[str, float]


@dataclass(frozen=True)
class _Pass:
    """One rank's pass over one micro-batch: exposed seconds by part, and hidden ones of messages."""

    parts: Seconds
    hidden: float

    @property
    def seconds(self) -> float:
        return sum(self.parts.values())


class RankTimes:
    """Times of the ranks of one layout.

    Args:
        recipe: The whole recipe.
        layout: Resolved degrees.
        gpus_per_node: Ranks of a node.
        workload: The step's work.
        rates: What a rank reaches.
    """

    def __init__(self, recipe: Recipe, layout: Layout, gpus_per_node: int, workload: Workload, rates: Rates) -> None:
        self._recipe = recipe
        self._layout = layout
        self._gpus_per_node = gpus_per_node
        self._rates = rates
        self._workload = workload
        self._parameters: dict[int, list[list[RankParameter]]] = {
            rank: [stage_parameters(recipe, layout, layout.stage(index)) for index in layout.stages_of(rank)]
            for rank in range(layout.pipeline)
        }
        self.passes = cache(self._passes)

    def data_rank(self, batches: Sequence[MicroBatchShape]) -> tuple[Seconds, float]:
        """Parts of a data rank's step, of its slowest pipeline rank, and hidden messages."""
        times = {rank: [self.passes(rank, batch) for batch in batches] for rank in range(self._layout.pipeline)}
        busy = {
            rank: sum(forward.seconds + backward.seconds for forward, backward in own) for rank, own in times.items()
        }
        slowest = max(busy, key=busy.__getitem__)
        each = [one for both in times[slowest] for one in both]
        parts, hidden = _sum_parts(one.parts for one in each), sum(one.hidden for one in each)
        parts["pipeline_bubble"] = self._bubble(times, busy[slowest])
        parts["encoders"] += self._encoder_seconds(batches)
        parts["overhead"] += len(batches) * self._rates.micro_batch_seconds + self._rates.step_seconds
        parts["optimizer"] = self._optimizer_seconds(slowest)
        exposed, beside = self._step_messages(slowest, times[slowest])
        for batch in batches:
            self._expose(exposed, messages.encoding(self._names(slowest, batch)))
        return _sum_parts([parts, exposed]), hidden + beside

    def _bubble(self, times: Mapping[int, Sequence[tuple[_Pass, _Pass]]], busy: float) -> float:
        if self._layout.pipeline == 1 or not times[0]:
            return 0.0
        forward = [[forward.seconds for forward, _ in own] for own in times.values()]
        backward = [[backward.seconds for _, backward in own] for own in times.values()]
        # Interleaved, a rank waits for parts of a stage.
        return (simulate_1f1b(forward, backward) - busy) / self._layout.interleave

    def _passes(self, pipeline_rank: int, batch: MicroBatchShape) -> tuple[_Pass, _Pass]:
        """A rank's forward and backward pass over a micro-batch; between them, half of what stages send each."""
        recipe, layout, names = self._recipe, self._layout, self._names(pipeline_rank, batch)
        stages = [layout.stage(index) for index in layout.stages_of(pipeline_rank)]
        sizes = block_sizes(recipe, layout, batch)
        num_blocks = sum(len(stage.layers) for stage in stages)
        work = block_passes(sizes, recipe.train.recompute, trains_weights=not recipe.lora.rank) * num_blocks
        for stage in stages:
            work += ends_passes(recipe, layout, batch, stage)
        forward, backward = self._compute(work, pipeline_rank)
        sends = messages.micro_batch_forward(names)
        self._expose(forward, messages.block_forward(names), num_blocks)
        for parts in (forward, backward):
            self._expose(parts, sends, 0.5)
        self._expose(backward, messages.micro_batch_backward(names))
        self._expose(backward, messages.block_again(names), num_blocks)
        beside = input_gradient_gemm(sizes) / self._rates.gemm_flops
        hidden = self._expose_beside(
            backward, messages.block_backward(names), num_blocks, beside, 0.0 if recipe.lora.rank else beside
        )
        return _Pass(forward, 0.0), _Pass(backward, hidden)

    def _compute(self, work: Passes, pipeline_rank: int) -> tuple[Seconds, Seconds]:
        rates = self._rates
        forward, backward = _no_parts(), _no_parts()
        for parts, own in ((forward, work.forward), (backward, work.backward)):
            parts["gemm"] = own.gemm_seconds(rates)
            parts["attention"] = own.attention_seconds(rates)
            parts["memory_bound"] = own.moved_seconds(rates)
            parts["overhead"] = own.launch_seconds(rates)
        backward["memory_bound"] += self._accumulated_bytes(pipeline_rank) / rates.memory_bytes
        backward["recompute"] = work.again.seconds(rates)
        return forward, backward

    def _accumulated_bytes(self, pipeline_rank: int) -> float:
        """A weight's gradient is written, read and added to the float32 sum."""
        own = self._parameters[pipeline_rank]
        return sum(one.numel * (2 * one.num_bytes + 8) for stage in own for one in stage if one.is_trained)

    def _expose(self, parts: Seconds, sent: Iterable[Message], times: float = 1.0) -> None:
        """Adds the time of messages that nothing hides."""
        for message in sent:
            name, seconds = self._time(message)
            parts[name] += times * seconds

    def _expose_beside(
        self, parts: Seconds, sent: Iterable[Message], times: float, inputs: float, weights: float
    ) -> float:
        """Adds a block's messages of the backward pass, less what products hide; gives what they hide."""
        hidden = 0.0
        for message in sent:
            name, seconds = self._time(message)
            work = 0.0
            if message.what == messages.TOKENS_AGAIN:
                work = inputs
            elif message.what in messages.TOKEN_GRADIENTS:
                work = weights
            covered = min(seconds, self._rates.overlap * work)
            hidden += times * covered
            parts[name] += times * (seconds - covered)
        return hidden

    def _step_messages(self, pipeline_rank: int, times: Sequence[tuple[_Pass, _Pass]]) -> tuple[Seconds, float]:
        """Messages of the optimizer step: exposed by link, and hidden."""
        recipe, layout, parts, hidden = self._recipe, self._layout, _no_parts(), 0.0
        names = self._names(pipeline_rank, self._workload.largest[0])
        owners = layout.data * layout.context
        own = [one for stage in self._parameters[pipeline_rank] for one in stage if one.is_trained]
        copied_to_tensor_ranks = sum(one.numel for one in own if _has_tensor_copies(one)) // owners
        copied_to_stages = sum(one.numel for one in own if one.is_copied) // owners
        num_slots = self._workload.num_samples
        self._expose(parts, messages.optimizer_step(names, copied_to_tensor_ranks, copied_to_stages, num_slots))
        overlaps = {
            "reduce-scatter": recipe.parallel.overlap_grad_reduce and pipeline_rank == 0,
            "all-gather": recipe.parallel.overlap_param_gather,
        }
        beside = {"reduce-scatter": times[-1][1].seconds, "all-gather": times[0][0].seconds} if times else {}
        for buffer in self._buffers(pipeline_rank):
            for message in messages.bucket(names, buffer.numel, buffer.num_bytes):
                name, seconds = self._time(message)
                room = beside.get(message.collective, 0.0) if overlaps[message.collective] else 0.0
                covered = min(seconds, self._rates.overlap * room)
                if message.collective in beside:
                    beside[message.collective] -= covered
                hidden += covered
                parts[name] += seconds - covered
        return parts, hidden

    def _buffers(self, pipeline_rank: int) -> list[Buffer]:
        """What travels between the data ranks, and what is updated."""
        owners, overlap = self._layout.data * self._layout.context, self._recipe.parallel.overlap_grad_reduce
        return [
            buffer
            for stage in self._parameters[pipeline_rank]
            for buffer in pack_buffers(stage, owners, overlap, pipeline_rank)
        ]

    def _optimizer_seconds(self, pipeline_rank: int) -> float:
        """By bytes: zeroing, norm, clipping, AdamW, rounding to the model's weights, moving average."""
        settings, total, to_host = self._recipe.optimizer, 0.0, 0.0
        for buffer in self._buffers(pipeline_rank):
            total += 4 * buffer.numel
            norm, adam = 4 + (8 if settings.clip_grad_norm else 0), 4 + 8 + 16
            publish = 0 if buffer.num_bytes == 4 else 4 + buffer.num_bytes
            total += buffer.owned * (norm + adam + publish + 12)
            to_host += buffer.owned * 8 if settings.ema_device == "host" else 0
        return total / self._rates.memory_bytes + to_host / self._rates.host_bytes

    def _encoder_seconds(self, batches: Sequence[MicroBatchShape]) -> float:
        """Of a data rank's samples, which the ranks of a model copy share evenly."""
        recipe, rates, layout = self._recipe, self._rates, self._layout
        is_cached = recipe.data.cache is not None
        operations = pixels = 0.0
        for batch in batches:
            again = encoded_again(recipe, batch) * batch.source_frames
            frames = again if is_cached else batch.num_frames + batch.source_frames
            both = batch.width * batch.height * frames
            if recipe.encoders.video == "wan":
                operations += batch.num_samples * both * ENCODER_OPERATIONS_PER_PIXEL
            else:
                pixels += batch.num_samples * both
            if is_cached:
                continue
            if recipe.encoders.text == "umt5":
                operations += batch.num_samples * PROMPT_TOKENS * ENCODER_OPERATIONS_PER_TOKEN
            if recipe.encoders.semantic == "siglip":
                operations += batch.num_samples * recipe.anchor.num_frames * ENCODER_OPERATIONS_PER_ANCHOR
        alone = operations / rates.encoder_flops + pixels * rates.pixel_seconds
        return alone / (layout.tensor * layout.context * layout.pipeline)

    def _names(self, pipeline_rank: int, batch: MicroBatchShape) -> Names:
        return names_of(self._recipe, self._layout, pipeline_rank, batch)

    def _time(self, message: Message) -> tuple[str, float]:
        """The part that a message belongs to, and its seconds."""
        group = members(self._layout, message.group, self._gpus_per_node)
        part = "network_messages" if group.spans_nodes else "node_messages"
        return part, message_seconds(message, group, self._rates)


def _has_tensor_copies(parameter: RankParameter) -> bool:
    return not parameter.is_split and not parameter.name.startswith("text_embedding")


def _no_parts() -> Seconds:
    return dict.fromkeys((name for name in PARTS if name != "uneven_dealing"), 0.0)


def _sum_parts(several: Iterable[Seconds]) -> Seconds:
    total = _no_parts()
    for parts in several:
        for name, seconds in parts.items():
            total[name] += seconds
    return total
