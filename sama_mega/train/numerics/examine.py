"""Takes a step once more, without its update, to find where it stops being finite."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from sama_data.loader import Sample, StepSamples
from sama_mega.config.schema import Recipe
from sama_mega.model import SamaDiT
from sama_mega.parallel.collectives import gather_objects_on_first
from sama_mega.parallel.optimizer import OwnedSlice
from sama_mega.parallel.runtime import ParallelContext
from sama_mega.train.batch import group_by_shape
from sama_mega.train.numerics.finding import AFTER_ALL, BEFORE_ALL, Finding, describe_tensor, earliest
from sama_mega.train.numerics.measures import is_finite
from sama_mega.train.numerics.tracer import WHOLE, StepTracer, part_of_model
from sama_mega.train.state import TrainState
from sama_mega.train.step import TrainStep

_MOST_WEIGHTS = 20
"""So many weights are named on each rank."""


@dataclass(frozen=True)
class Drawn:
    """A sample of the step, and who took it: what a report says of it."""

    slot: int
    sample_id: str
    index: int
    epoch: int
    task: str
    data_rank: int
    micro_batch: int


@dataclass(frozen=True)
class Examination:
    """What came of taking a step once more.

    Attributes:
        loss: Over the global batch.
        gradient_norm: Likewise.
        slot_losses: Flow-matching loss of each slot of the global batch.
        slot_semantic_losses: Semantic loss of each slot.
        first: The first tensor that is not finite; several, where ranks reached theirs at the same place.
        weights: All weights that were not finite before the step began, at most 20 a rank.
        micro_batches: The first tensor of every micro-batch that has one.
        samples: All of the step, by slot.
    """

    loss: float
    gradient_norm: float
    slot_losses: list[float]
    slot_semantic_losses: list[float]
    first: list[Finding]
    weights: list[Finding]
    micro_batches: list[Finding]
    samples: list[Drawn]

    @property
    def is_finite(self) -> bool:
        """Whether the loss and the gradient norm are."""
        return math.isfinite(self.loss) and math.isfinite(self.gradient_norm)

    @property
    def bad_loss_ids(self) -> list[str]:
        """Samples whose loss is not finite."""
        return [
            sample.sample_id
            for sample in self.samples
            if not math.isfinite(self.slot_losses[sample.slot] + self.slot_semantic_losses[sample.slot])
        ]

    def describe(self) -> str:
        """One line for a log: the first tensor, or what is known instead."""
        if self.first:
            return "first tensor that is not finite: " + "; and ".join(one.describe() for one in self.first)
        if self.is_finite:
            return "every tensor is finite now, so the step does not repeat itself: suspect a device or a message"
        where = f"in samples {', '.join(self.bad_loss_ids)}" if self.bad_loss_ids else "in the sum over samples alone"
        return f"every tensor between modules is finite, but the loss is not: it overflowed {where}"


@dataclass(frozen=True)
class _RankReport:
    weights: list[Finding]
    passes: list[Finding]
    samples: list[Drawn]


def examine(
    train_step: TrainStep, drawn: StepSamples, state: TrainState, recipe: Recipe, context: ParallelContext
) -> Examination | None:
    """Runs the passes of a step with every tensor looked at; every rank calls it.

    Args:
        train_step: Its `differentiate` is run: gradients are **overwritten**, weights stay.
        drawn: This rank's samples.
        state: What the step works on.
        recipe: The whole recipe.
        context: The running layout.

    Returns:
        On the first rank what was found, None on the others.
    """
    stages = [stage.module for stage in state.stages]
    micro_batches = group_by_shape(drawn.samples, recipe)
    num_layers = recipe.model.num_layers
    weights = list(_bad_weights(stages, num_layers))
    with StepTracer(stages, [[one.sample_id for one in batch] for batch in micro_batches], num_layers) as tracer:
        losses, gradient_norm = train_step.differentiate(drawn)
    passes = tracer.findings + list(_bad_sums(state.optimizer.owned, num_layers))
    mine = _RankReport(
        _signed(weights[:_MOST_WEIGHTS], context), _signed(passes, context), _describe_samples(micro_batches, context)
    )
    reports = gather_objects_on_first(mine, context.host_world_group)
    if reports is None:
        return None
    all_weights = [one for report in reports for one in report.weights]
    all_passes = [one for report in reports for one in report.passes]
    return Examination(
        loss=losses.total,
        gradient_norm=gradient_norm,
        slot_losses=losses.slot_flow_matching,
        slot_semantic_losses=losses.slot_semantic,
        first=earliest(all_weights or all_passes),
        weights=all_weights,
        micro_batches=_by_micro_batch(all_passes),
        samples=sorted((one for report in reports for one in report.samples), key=lambda one: one.slot),
    )


def _signed(findings: Sequence[Finding], context: ParallelContext) -> list[Finding]:
    """With this rank's name under them."""
    place = {name: getattr(context, f"{name}_rank") for name in ("tensor", "context", "pipeline", "data")}
    return [replace(one, ranks=(context.rank,), places=(place,)) for one in findings]


def _describe_samples(micro_batches: Sequence[Sequence[Sample]], context: ParallelContext) -> list[Drawn]:
    """This data rank's samples, from one of its ranks."""
    if context.rank != context.layout.ranks_of_data_index(context.data_rank)[0]:
        return []
    return [
        Drawn(one.slot, one.sample_id, int(one.index), int(one.epoch), one.task, context.data_rank, number)
        for number, batch in enumerate(micro_batches)
        for one in batch
    ]


def _bad_weights(stages: Sequence[SamaDiT], num_layers: int) -> Iterator[Finding]:
    for stage in stages:
        for place, (name, parameter) in enumerate(stage.named_parameters()):
            if not is_finite(parameter):
                order = (BEFORE_ALL, 0, part_of_model(name, num_layers), place)
                yield describe_tensor(order, "weights", *_module_and_own_name(name), parameter)


def _bad_sums(owned: Sequence[OwnedSlice], num_layers: int) -> Iterator[Finding]:
    """The first gradient of the global batch that is not finite: news only where no micro-batch's gradient was."""
    for place, one in enumerate(owned):
        if not is_finite(one.main_grad):
            order = (AFTER_ALL, 1, -part_of_model(one.name, num_layers), place)
            module, name = _module_and_own_name(one.name)
            yield describe_tensor(order, "sums of gradients", module, f"summed gradient of the {name}", one.main_grad)
            return


def _module_and_own_name(parameter: str) -> tuple[str, str]:
    module, _, name = parameter.rpartition(".")
    return module or WHOLE, name


def _by_micro_batch(findings: Sequence[Finding]) -> list[Finding]:
    """The first of each data rank's micro-batches."""
    groups: dict[tuple[int, int], list[Finding]] = {}
    for one in findings:
        if one.micro_batch is not None:
            groups.setdefault((one.micro_batch, one.places[0]["data"]), []).append(one)
    return [first for key in sorted(groups) for first in earliest(groups[key])]
