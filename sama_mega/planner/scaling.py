"""Simulated scaling: how a recipe's step would go from 8 to 4,096 GPUs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from sama_mega.config.errors import ConfigError
from sama_mega.config.schema import Recipe
from sama_mega.observe.gpu_kinds import GpuKind
from sama_mega.parallel.layout import Layout, resolve_layout, samples_needed_per_rank, too_few_samples
from sama_mega.planner.rank_time import PROMPT_TOKENS
from sama_mega.planner.rates import describe_rates
from sama_mega.planner.step_time import StepTime, predict_step_time

GPU_COUNTS = (8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)
Mode = Literal["strong", "weak"]
Choose = Callable[[Recipe, int], tuple[Recipe, Layout]]
"""From a recipe and a number of GPUs to the recipe with the degrees to run it with, and their layout."""


@dataclass(frozen=True)
class ScalingRow:
    """One number of GPUs.

    Attributes:
        mode: `strong`: the recipe's global batch; `weak`: one that grows with the GPUs.
        num_gpus: How many.
        layout: None where there is none.
        num_samples: Of a step.
        time: Predicted; None where it would not run.
        efficiency: Tokens a second and GPU, as a share of the fewest GPUs' that run in this mode.
        problem: Why it would not run.
        recompute: The `train.recompute` that goes with the layout; None where there is none.
    """

    mode: Mode
    num_gpus: int
    layout: Layout | None
    num_samples: int
    time: StepTime | None
    efficiency: float | None
    problem: str | None
    recompute: str | None = None

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        time = self.time
        rates = {} if time is None else {"tokens_per_second": time.tokens_per_second, "bottleneck": time.bottleneck}
        return asdict(self) | rates


def own_degrees(recipe: Recipe, num_gpus: int) -> tuple[Recipe, Layout]:
    """Keeps the recipe's degrees: what is more goes to data ranks.

    Raises:
        ConfigError: They do not divide the number.
    """
    grown = recipe.model_copy(update={"parallel": recipe.parallel.model_copy(update={"data": "auto"})})
    return grown, resolve_layout(grown, num_gpus)


def simulate_scaling(
    recipe: Recipe,
    gpu: GpuKind,
    gpus_per_node: int,
    gpu_counts: Sequence[int] = GPU_COUNTS,
    choose: Choose = own_degrees,
) -> list[ScalingRow]:
    """Predicts a step for each number of GPUs, at the recipe's global batch and at one that grows with them.

    Args:
        recipe: The recipe; weak scaling starts from its samples a step at the fewest GPUs that run.
        gpu: What it runs on.
        gpus_per_node: Ranks of a node.
        gpu_counts: Ascending.
        choose: Picks degrees; raises ConfigError where there are none.
    """
    modes: tuple[Mode, ...] = ("strong", "weak")
    return [row for mode in modes for row in _scale(recipe, gpu, gpus_per_node, gpu_counts, choose, mode)]


def scaling_assumptions(gpu: GpuKind, precision: str) -> list[str]:
    """What the figures stand on, a line each."""
    return [
        *describe_rates(gpu, precision),
        "every sample is of the largest bucket, every clip of data.max_frames; samples are dealt as a run deals them",
        f"pretrained encoders by their operations, prompts of {PROMPT_TOKENS} tokens, shared evenly by a copy's ranks",
        "weak scaling keeps the degrees of the fewest GPUs and multiplies the samples of a step: how that trains is "
        "another question",
    ]


def _scale(
    recipe: Recipe, gpu: GpuKind, gpus_per_node: int, gpu_counts: Sequence[int], choose: Choose, mode: Mode
) -> list[ScalingRow]:
    rows: list[ScalingRow] = []
    first: StepTime | None = None
    for num_gpus in gpu_counts:
        row, chosen = _row(recipe, gpu, gpus_per_node, num_gpus, choose, mode, first)
        rows.append(row)
        if first is None and row.time is not None and chosen is not None:
            first = row.time
            if mode == "weak":
                choose = _grow(chosen, num_gpus)
    return rows


def _grow(recipe: Recipe, num_gpus: int) -> Choose:
    """More copies of the model as it is spread over the first number of GPUs, and samples for them."""

    def choose(_: Recipe, wanted: int) -> tuple[Recipe, Layout]:
        return own_degrees(_with_more_samples(recipe, wanted / num_gpus), wanted)

    return choose


def _row(
    recipe: Recipe,
    gpu: GpuKind,
    gpus_per_node: int,
    num_gpus: int,
    choose: Choose,
    mode: Mode,
    first: StepTime | None,
) -> tuple[ScalingRow, Recipe | None]:
    """A row, and the recipe with the degrees that were chosen."""
    try:
        chosen, layout = choose(recipe, num_gpus)
    except ConfigError as error:
        return ScalingRow(mode, num_gpus, None, _num_samples(recipe), None, None, str(error)), None
    num_samples = _num_samples(chosen)
    if num_samples < samples_needed_per_rank(chosen.parallel) * layout.data:
        problem = too_few_samples(chosen.parallel, num_samples, layout.data)
        return ScalingRow(mode, num_gpus, layout, num_samples, None, None, problem, chosen.train.recompute), None
    time = predict_step_time(chosen, layout, gpu, gpus_per_node)
    base = first or time
    efficiency = (time.tokens_per_second / time.num_gpus) / (base.tokens_per_second / base.num_gpus)
    return ScalingRow(mode, num_gpus, layout, num_samples, time, efficiency, None, chosen.train.recompute), chosen


def _num_samples(recipe: Recipe) -> int:
    return recipe.data.images_per_step + recipe.data.videos_per_step


def _with_more_samples(recipe: Recipe, times: float) -> Recipe:
    data = recipe.data
    more = {
        "images_per_step": round(data.images_per_step * times),
        "videos_per_step": round(data.videos_per_step * times),
    }
    return recipe.model_copy(update={"data": data.model_copy(update=more)})
