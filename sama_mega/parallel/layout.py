"""Turns the degrees of a recipe into one layout of ranks, or says in one line why it cannot be.

Pure arithmetic, without torch: `sama_mega check` answers for any world size on a laptop, and every rank can
refuse an impossible layout before a single process group exists.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import gcd
from typing import TYPE_CHECKING

from sama_mega.config.errors import ConfigError

if TYPE_CHECKING:
    from sama_mega.config.schema import ParallelRecipe, Recipe

# Degrees above this are possible but rarely what a user meant; messages suggest up to here.
LARGEST_SUGGESTED_DEGREE = 8


@dataclass(frozen=True)
class Coordinates:
    """Where one rank stands along every parallel axis."""

    tensor: int
    context: int
    data: int
    pipeline: int


@dataclass(frozen=True)
class Stage:
    """A stretch of the model: consecutive blocks, and what comes before the first and after the last of them.

    Attributes:
        index: Place in the pipeline; 0 embeds the tokens.
        layers: The blocks, counted over the whole model.
        is_first: Whether it embeds the tokens.
        is_last: Whether it holds the heads.
    """

    index: int
    layers: range
    is_first: bool
    is_last: bool


@dataclass(frozen=True)
class Layout:
    """How many ways each axis is split; their product is the number of ranks.

    Attributes:
        tensor: Ranks that share every weight matrix.
        context: Ranks that share every sample's token sequence.
        pipeline: Ranks that share the stack of blocks.
        data: Ranks that hold different samples.
        sequence: Whether tensor ranks also share the tokens between the matrices; False at tensor 1.
        world_size: All ranks.
        stage_layers: Blocks of every pipeline stage, in the model's order. There are `pipeline x interleave` stages;
            stage i runs on pipeline rank `i % pipeline` as its chunk `i // pipeline`.
        ulysses: Context ranks that exchange heads for tokens; it divides `context`. Where it is smaller, the rest of
            the sequence comes by gathering keys and values.
    """

    tensor: int
    context: int
    pipeline: int
    data: int
    sequence: bool
    world_size: int
    stage_layers: tuple[int, ...]
    ulysses: int = 1

    @property
    def sequence_shards(self) -> int:
        """Ranks that share one sample's tokens between the matrices; 1 when each holds all of them."""
        return self.context * (self.tensor if self.sequence else 1)

    @property
    def num_stages(self) -> int:
        """Pipeline stages: one or, interleaved, several a pipeline rank."""
        return len(self.stage_layers)

    @property
    def interleave(self) -> int:
        """Stages (model chunks) of each pipeline rank."""
        return self.num_stages // self.pipeline

    def stages_of(self, pipeline_rank: int) -> range:
        """The stages that one pipeline rank runs, in the order of its chunks."""
        return range(pipeline_rank, self.num_stages, self.pipeline)

    def coordinates(self, rank: int) -> Coordinates:
        """Gives a rank's place on every axis.

        The order is megatron-core's `tp-cp-ep-dp-pp`: tensor parallel ranks are neighbours, so they share a
        node.

        Args:
            rank: Global rank, 0 <= rank < world_size.
        """
        assert 0 <= rank < self.world_size, (rank, self.world_size)
        rest, tensor = divmod(rank, self.tensor)
        rest, context = divmod(rest, self.context)
        pipeline, data = divmod(rest, self.data)
        return Coordinates(tensor=tensor, context=context, data=data, pipeline=pipeline)

    def ranks_of_data_index(self, data_index: int) -> list[int]:
        """Global ranks that work together on the samples of one data-parallel index, in rank order."""
        return [rank for rank in range(self.world_size) if self.coordinates(rank).data == data_index]

    def stage(self, index: int) -> Stage:
        """Describes one stage."""
        first_layer = sum(self.stage_layers[:index])
        layers = range(first_layer, first_layer + self.stage_layers[index])
        return Stage(index, layers, is_first=index == 0, is_last=index == self.num_stages - 1)

    def split_context_ranks(self) -> tuple[list[list[int]], list[list[int]]]:
        """Global ranks that exchange heads with each other, and those that gather keys and values from each other.

        Context rank c exchanges within its run of `ulysses` neighbours and gathers across the runs, so that after the
        exchange every rank holds one stretch of consecutive tokens.
        """
        exchanging: dict[tuple[int, ...], list[int]] = {}
        gathering: dict[tuple[int, ...], list[int]] = {}
        for rank in range(self.world_size):
            place = self.coordinates(rank)
            rest = (place.tensor, place.data, place.pipeline)
            run, within = divmod(place.context, self.ulysses)
            exchanging.setdefault((*rest, run), []).append(rank)
            gathering.setdefault((*rest, within), []).append(rank)
        return list(exchanging.values()), list(gathering.values())

    def describe(self) -> str:
        """One line for terminals and logs."""
        sequence = " + sequence" if self.sequence else ""
        return (
            f"{self.world_size} rank{'s' if self.world_size > 1 else ''}: tensor {self.tensor}{sequence}, "
            f"context {self.context}{self._describe_context()}, pipeline {self.pipeline}{self._describe_stages()}, "
            f"data {self.data}"
        )

    def _describe_context(self) -> str:
        if self.context == 1:
            return ""
        return f" (exchanging heads over {self.ulysses}, gathering keys and values over {self.context // self.ulysses})"

    def _describe_stages(self) -> str:
        if self.num_stages == 1:
            return ""
        return f" (layers {'+'.join(map(str, self.stage_layers))})"


def resolve_layout(recipe: Recipe, world_size: int) -> Layout:
    """Checks a recipe's degrees against its model and a number of ranks.

    Args:
        recipe: The recipe; `parallel`, `model.num_heads`, `model.ffn_dim` and `model.num_layers` are read.
        world_size: Number of ranks that will run it.

    Raises:
        ConfigError: The layout is impossible; the message names key, value, rule and fix.
    """
    parallel, model = recipe.parallel, recipe.model
    if world_size < 1:
        raise ConfigError(f"the number of ranks ({world_size}) must be at least 1")
    for key in ("tensor", "context", "pipeline", "interleave"):
        _require_positive(f"parallel.{key}", getattr(parallel, key))
    both = gcd(model.num_heads, model.ffn_dim)
    _require_divides("parallel.tensor", parallel.tensor, "model.num_heads", model.num_heads, both)
    _require_divides("parallel.tensor", parallel.tensor, "model.ffn_dim", model.ffn_dim, both)
    ulysses = _resolve_ulysses(parallel, model.num_heads)
    stage_layers = _resolve_stage_layers(parallel, model.num_layers)
    return Layout(
        tensor=parallel.tensor,
        context=parallel.context,
        pipeline=parallel.pipeline,
        data=_resolve_data_degree(parallel, world_size),
        sequence=bool(parallel.sequence) and parallel.tensor > 1,
        world_size=world_size,
        stage_layers=stage_layers,
        ulysses=ulysses,
    )


def fewest_ranks(recipe: Recipe) -> int:
    """Ranks that the recipe's degrees need, with one data-parallel rank where `data` is auto."""
    parallel = recipe.parallel
    data = 1 if parallel.data == "auto" else parallel.data
    return parallel.tensor * parallel.context * parallel.pipeline * data


def samples_needed_per_rank(parallel: ParallelRecipe) -> int:
    """Samples of a step that every data rank must have; 0 where it may have none.

    Interleaved stages need a micro-batch for every pipeline rank; with overlap, megatron-core waits for a backward
    pass.
    """
    if parallel.interleave > 1:
        return parallel.pipeline
    return int(parallel.overlap_grad_reduce or parallel.overlap_param_gather)


def micro_batch_group_size(layout: Layout, num_micro_batches: int) -> int:
    """Micro-batches that a chunk runs before the next chunk's turn: the fewest that megatron's schedule allows.

    Interleaved stages need a micro-batch for every pipeline rank; megatron refuses a group of more than there are.
    """
    if layout.interleave == 1:
        return max(1, num_micro_batches)
    allowed = (
        size
        for size in range(layout.pipeline, num_micro_batches + 1)
        if num_micro_batches % size == 0 or num_micro_batches % size >= layout.pipeline
    )
    return next(allowed, layout.pipeline)


def too_few_samples(parallel: ParallelRecipe, num_samples: int, num_data_ranks: int) -> str:
    """The message for a step with too few samples."""
    needed, interleaved = samples_needed_per_rank(parallel), parallel.interleave > 1
    reason = "parallel.interleave" if interleaved else "parallel.overlap_grad_reduce or overlap_param_gather"
    return (
        f"a step has {num_samples} samples for {num_data_ranks} data ranks: with {reason} every rank needs"
        f" {'parallel.pipeline (' + str(needed) + ')' if interleaved else 'one'}: raise data.images_per_step or"
        " data.videos_per_step"
    )


def _require_positive(key: str, value: int) -> None:
    if value < 1:
        raise ConfigError(f"{key} ({value}) must be at least 1")


def _require_divides(key: str, degree: int, of_key: str, total: int, all_totals: int) -> None:
    """The values that it suggests divide `all_totals`: they keep the other rules too."""
    if total % degree:
        raise ConfigError(f"{key} ({degree}) must divide {of_key} ({total}): use {_join(_divisors(all_totals))}")


def _resolve_ulysses(parallel: ParallelRecipe, num_heads: int) -> int:
    """Exchanging heads sends the least; it goes as far as the heads of a tensor rank can be shared out."""
    heads = num_heads // parallel.tensor
    most = gcd(parallel.context, heads)
    if parallel.ulysses == "auto":
        return most
    allowed = [degree for degree in range(1, most + 1) if most % degree == 0]
    if parallel.ulysses not in allowed:
        raise ConfigError(
            f"parallel.ulysses ({parallel.ulysses}) must divide parallel.context ({parallel.context}) and the heads of "
            f"a tensor rank (model.num_heads / parallel.tensor = {heads}): use {_join(allowed)} or auto"
        )
    return parallel.ulysses


def _resolve_stage_layers(parallel: ParallelRecipe, num_layers: int) -> tuple[int, ...]:
    """Blocks of every stage: as the recipe lists them, else as even as can be, the first stages taking the rest."""
    pipeline, interleave = parallel.pipeline, parallel.interleave
    if pipeline == 1 and interleave > 1:
        raise ConfigError(
            f"parallel.interleave ({interleave}) needs parallel.pipeline above 1: use parallel.interleave=1"
        )
    num_stages = pipeline * interleave
    stages = f"parallel.pipeline x interleave ({pipeline} x {interleave} = {num_stages})"
    if num_stages > num_layers:
        raise ConfigError(
            f"{stages} must be at most model.num_layers ({num_layers}), a block for every stage: use "
            f"parallel.pipeline={max(1, min(pipeline, num_layers // interleave))} or fewer, or a smaller interleave"
        )
    listed = parallel.stage_layers
    if listed is None:
        each, rest = divmod(num_layers, num_stages)
        return tuple(each + (stage < rest) for stage in range(num_stages))
    if len(listed) != num_stages:
        raise ConfigError(
            f"parallel.stage_layers ({list(listed)}) has {len(listed)} entries and must have one a stage, {stages}"
        )
    if sum(listed) != num_layers:
        raise ConfigError(
            f"parallel.stage_layers ({list(listed)}) sums to {sum(listed)} and must sum to model.num_layers "
            f"({num_layers})"
        )
    return tuple(listed)


def _resolve_data_degree(parallel: ParallelRecipe, world_size: int) -> int:
    """Ranks left for data parallelism once each model copy has its ranks."""
    tensor, context, pipeline = parallel.tensor, parallel.context, parallel.pipeline
    model_ranks = tensor * context * pipeline
    if world_size % model_ranks:
        product = f"parallel.tensor x context x pipeline ({tensor} x {context} x {pipeline} = {model_ranks})"
        near = max(model_ranks, world_size - world_size % model_ranks)
        raise ConfigError(
            f"{product} must divide the number of ranks ({world_size}): start {near} ranks, or use degrees "
            f"whose product is {_join(_divisors(world_size, start=1, most=world_size))}"
        )
    data = world_size // model_ranks
    if parallel.data != "auto" and parallel.data != data:
        wanted = parallel.data * model_ranks
        raise ConfigError(
            f"parallel.data ({parallel.data}) must equal ranks / (tensor x context x pipeline) "
            f"({world_size} / {model_ranks} = {data}): use parallel.data={data} or auto, "
            f"or start {wanted} ranks"
        )
    return data


def _divisors(total: int, start: int = 2, most: int = LARGEST_SUGGESTED_DEGREE) -> list[int]:
    """Divisors worth suggesting, ascending; [1] when there is nothing larger."""
    suggested = [n for n in range(start, min(most, total) + 1) if total % n == 0]
    return suggested or [1]


def _join(numbers: list[int]) -> str:
    """'2, 4, 5 or 8'."""
    *head, last = [str(number) for number in numbers]
    return f"{', '.join(head)} or {last}" if head else last
