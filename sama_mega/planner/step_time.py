"""How long an optimizer step takes, by what it takes it for."""

from __future__ import annotations

from dataclasses import dataclass

from sama_mega.config.schema import Recipe
from sama_mega.observe.flops import model_flops
from sama_mega.observe.gpu_kinds import GpuKind
from sama_mega.parallel.layout import Layout
from sama_mega.planner.rank_time import PARTS, RankTimes, Seconds
from sama_mega.planner.rates import Rates, rates_of
from sama_mega.planner.workload import Workload, plan_workload


@dataclass(frozen=True)
class StepTime:
    """A predicted step.

    Attributes:
        parts: Seconds by the keys of PARTS, the mean over data ranks; they sum to `seconds`.
        seconds: Of the whole step.
        hidden_message_seconds: Messages that travel beside work.
        num_tokens: Of the global batch, without padding.
        num_gpus: Ranks.
        flops: Operations of the step by the formula in `sama_mega.observe.flops`; None with low-rank training, whose
            backward pass leaves out products that it counts.
        mfu: Those a second and GPU, as a share of the data sheet's peak; None likewise.
    """

    parts: Seconds
    seconds: float
    hidden_message_seconds: float
    num_tokens: int
    num_gpus: int
    flops: float | None
    mfu: float | None

    @property
    def tokens_per_second(self) -> float:
        """Of all GPUs together."""
        return self.num_tokens / self.seconds

    @property
    def gpu_hours_per_1000_steps(self) -> float:
        """Of all GPUs together."""
        return 1000 * self.seconds * self.num_gpus / 3600

    @property
    def bottleneck(self) -> str:
        """The part that takes longest."""
        return max(self.parts, key=self.parts.__getitem__)

    def describe(self) -> str:
        """One line for terminals."""
        share = self.parts[self.bottleneck] / self.seconds
        mfu = "" if self.mfu is None else f"MFU {self.mfu:.0%}, "
        return (
            f"{three_digits(self.seconds)} s a step, {self.tokens_per_second:,.0f} tokens/s, {mfu}"
            f"{three_digits(self.gpu_hours_per_1000_steps)} GPU-hours per 1,000 steps; "
            f"most of it: {PARTS[self.bottleneck]} ({share:.0%})"
        )


def three_digits(value: float) -> str:
    """A number as people write it: 0.0109, 60.2, 2,007."""
    return f"{value:,.0f}" if value >= 99.95 else f"{value:.3g}"


def predict_step_time(
    recipe: Recipe,
    layout: Layout,
    gpu: GpuKind,
    gpus_per_node: int,
    workload: Workload | None = None,
    rates: Rates | None = None,
) -> StepTime:
    """Predicts an optimizer step.

    Args:
        recipe: The whole recipe; degrees are the layout's.
        layout: Resolved degrees.
        gpu: What it runs on.
        gpus_per_node: Ranks of a node.
        workload: The step's work; None: planned here.
        rates: What the GPU reaches; None: `rates_of` it.
    """
    precision = recipe.train.precision
    work = workload or plan_workload(recipe, layout)
    parts, hidden = predict_parts(recipe, layout, gpus_per_node, work, rates or rates_of(gpu, precision))
    seconds = sum(parts.values())
    flops = mfu = None
    if not recipe.lora.rank:
        flops = sum(count * model_flops(recipe, batch.num_tokens).total for batch, count in work.samples.items())
        mfu = flops / (seconds * layout.world_size * gpu.peak_flops(precision))
    return StepTime(parts, seconds, hidden, work.num_tokens, layout.world_size, flops, mfu)


def predict_parts(
    recipe: Recipe, layout: Layout, gpus_per_node: int, workload: Workload, rates: Rates
) -> tuple[Seconds, float]:
    """Predicts a step's parts, and the time of the messages that are hidden.

    Args:
        recipe: The whole recipe.
        layout: Resolved degrees.
        gpus_per_node: Ranks of a node.
        workload: The step's work.
        rates: What a rank reaches.
    """
    ranks = RankTimes(recipe, layout, gpus_per_node, workload, rates)
    dealt = [(times, *ranks.data_rank(batches)) for batches, times in workload.distinct_ranks.items()]
    mean = {
        name: sum(times * parts[name] for times, parts, _ in dealt) / layout.data
        for name in PARTS
        if name != "uneven_dealing"
    }
    slowest = max(sum(parts.values()) for _, parts, _ in dealt)
    # In the order in which tables show them.
    ordered = {name: mean.get(name, slowest - sum(mean.values())) for name in PARTS}
    return ordered, sum(times * hidden for times, _, hidden in dealt) / layout.data
