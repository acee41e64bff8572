"""Turns the degrees of a recipe into one layout of ranks, or says in one line why it cannot be.

Pure arithmetic, without torch: `sama_mega check` answers for any world size on a laptop, and every rank can
refuse an impossible layout before a single process group exists.
"""

from __future__ import annotations

from dataclasses import dataclass
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
class Layout:
    """How many ways each axis is split; their product is the number of ranks.

    Attributes:
        tensor: Ranks that share every weight matrix.
        context: Ranks that share every sample's token sequence.
        pipeline: Ranks that share the stack of blocks.
        data: Ranks that hold different samples.
        sequence: Whether tensor ranks also share the tokens between the matrices; False at tensor 1.
        world_size: All ranks.
    """

    tensor: int
    context: int
    pipeline: int
    data: int
    sequence: bool
    world_size: int

    @property
    def model_parallel_size(self) -> int:
        """Ranks that work on the same samples together: tensor x context x pipeline."""
        return self.tensor * self.context * self.pipeline

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

    def describe(self) -> str:
        """One line for terminals and logs."""
        sequence = " + sequence" if self.sequence else ""
        return (
            f"{self.world_size} rank{'s' if self.world_size > 1 else ''}: tensor {self.tensor}{sequence}, "
            f"context {self.context}, pipeline {self.pipeline}, data {self.data}"
        )


def resolve_layout(recipe: Recipe, world_size: int) -> Layout:
    """Checks a recipe's degrees against its model and a number of ranks.

    Args:
        recipe: The recipe; `parallel`, `model.num_heads`, `model.ffn_dim` and `model.num_layers` are read.
        world_size: Number of ranks that will run it.

    Raises:
        ConfigError: The layout is impossible or not available; the message names key, value, rule and fix.
    """
    parallel, model = recipe.parallel, recipe.model
    if world_size < 1:
        raise ConfigError(f"the number of ranks ({world_size}) must be at least 1")
    for axis in ("tensor", "context", "pipeline"):
        _require_positive(f"parallel.{axis}", getattr(parallel, axis))
    _require_divides("parallel.tensor", parallel.tensor, "model.num_heads", model.num_heads)
    _require_divides("parallel.tensor", parallel.tensor, "model.ffn_dim", model.ffn_dim)
    _require_divides("parallel.context", parallel.context, "model.num_heads", model.num_heads)
    _require_divides("parallel.pipeline", parallel.pipeline, "model.num_layers", model.num_layers)
    data = _resolve_data_degree(parallel, world_size)
    _require_available(parallel)
    return Layout(
        tensor=parallel.tensor,
        context=parallel.context,
        pipeline=parallel.pipeline,
        data=data,
        sequence=bool(parallel.sequence) and parallel.tensor > 1,
        world_size=world_size,
    )


def _require_positive(key: str, value: int) -> None:
    if value < 1:
        raise ConfigError(f"{key} ({value}) must be at least 1")


def _require_divides(key: str, degree: int, of_key: str, total: int) -> None:
    if total % degree:
        raise ConfigError(f"{key} ({degree}) must divide {of_key} ({total}): use {_join(_divisors(total))}")


def _resolve_data_degree(parallel: ParallelRecipe, world_size: int) -> int:
    """Ranks left for data parallelism once each model copy has its ranks."""
    tensor, context, pipeline = parallel.tensor, parallel.context, parallel.pipeline
    model_ranks = tensor * context * pipeline
    if world_size % model_ranks:
        product = f"parallel.tensor x context x pipeline ({tensor} x {context} x {pipeline} = {model_ranks})"
        near = max(model_ranks, world_size - world_size % model_ranks)
        raise ConfigError(
            f"{product} must divide the number of ranks ({world_size}): start {near} ranks, or use degrees "
            f"whose product is {_join(_divisors(world_size, start=1))}"
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


def _require_available(parallel: ParallelRecipe) -> None:
    """Refuses the axes whose communication is not built yet, instead of computing something else."""
    for axis in ("context", "pipeline"):
        degree = getattr(parallel, axis)
        if degree > 1:
            raise ConfigError(
                f"parallel.{axis} ({degree}) is not available yet: this version has tensor, sequence and "
                f"data parallelism only; use parallel.{axis}=1 and a larger parallel.tensor or more ranks"
            )


def _divisors(total: int, start: int = 2) -> list[int]:
    """Divisors worth suggesting, ascending; [1] when there is nothing larger."""
    suggested = [n for n in range(start, LARGEST_SUGGESTED_DEGREE + 1) if n <= total and total % n == 0]
    return suggested or [1]


def _join(numbers: list[int]) -> str:
    """'2, 4, 5 or 8'."""
    *head, last = [str(number) for number in numbers]
    return f"{', '.join(head)} or {last}" if head else last
