"""A training step in a layout against the same step on one rank: losses, every gradient, every update.

Everything is what `train` runs: the encoders' micro-batches, the model, the losses, the schedule, the reductions, the
optimizer. Only the samples are made up, and the pretrained encoders replaced by the embedded ones.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from sama_data.samples import Sample
from sama_mega.config.schema import Recipe
from sama_mega.encoders import build_encoders
from sama_mega.model.initialize import perturb_weights
from sama_mega.parallel.collectives import broadcast_object
from sama_mega.parallel.data_parallel import parameter_names, synchronize_parameters
from sama_mega.parallel.layout import samples_needed_per_rank
from sama_mega.parallel.runtime import ParallelContext, solo_context
from sama_mega.parallel.sharded_state import ShardedState, shard_parameters
from sama_mega.train.batch import Batcher
from sama_mega.train.shared_encoding import Sharing
from sama_mega.train.state import TrainState, build_train_state
from sama_mega.train.step import StepOutcome, TrainStep
from sama_mega.verify.plants import find_plant
from sama_mega.verify.report import Check, Report, compare
from sama_mega.verify.samples import global_batch, share_of
from sama_mega.verify.whole_tensors import WholeTensors, compare_whole, owned_gradients, put_together

LOSS_LIMIT = 1e-5
GRADIENT_LIMIT = 1e-4
LEARNING_RATE = 100.0
"""With AdamW's epsilon as `verification_recipe` sets it, a step moves a parameter by this many gradients."""


@dataclass(frozen=True)
class StepResult:
    """What a step and the one after it did, whole; gradients and updates on the first rank only.

    Attributes:
        losses: Of the step, by name: scalars, and vectors by sample, float64.
        next_losses: Of the step after it, whose parameters have come as they do in training.
        gradients: Of the step, of every parameter; each copy.
        updates: How far the step moved every parameter; each copy, on every data rank.
    """

    losses: dict[str, Tensor]
    next_losses: dict[str, Tensor]
    gradients: WholeTensors
    updates: WholeTensors


def check_layout(recipe: Recipe, context: ParallelContext, plant: str | None = None) -> Report:
    """Runs the step in the layout and, on the first rank, alone; every rank calls it and gets the report.

    Args:
        recipe: From `verification_recipe`.
        context: The running layout.
        plant: Name of a bug to plant in the layout's step.

    Raises:
        ConfigError: The bug is not known, or cannot be wrong in this layout.
    """
    layout = context.layout
    bug = None if plant is None else find_plant(plant, layout, recipe.parallel)
    samples = global_batch(recipe.train.stage, max(1, samples_needed_per_rank(recipe.parallel)), layout.data)
    with nullcontext() if bug is None else bug.planted():
        ours = run_step(recipe, context, samples)
    alone = solo_context(context)
    checks = compare_steps(ours, run_step(recipe, alone, samples)) if context.is_first_rank else []
    # Also keeps the others from leaving while the first rank computes.
    checks = broadcast_object(checks, context.world_group)
    if bug is None:
        return Report(tuple(checks))
    return Report(tuple(checks), frozenset(one.tensor for one in checks if bug.must_break(one.tensor, recipe)))


def run_step(recipe: Recipe, context: ParallelContext, samples: list[Sample]) -> StepResult:
    """One optimizer step from perturbed fresh weights, and one that moves nothing; every rank of the layout calls it.

    The second tells whether the first one's parameters reached every rank in time.

    Args:
        recipe: From `verification_recipe`.
        context: The running layout.
        samples: The global batch of both; each data rank takes its share.
    """
    state = build_train_state(recipe, context, initialize=True)
    for stage in state.stages:
        perturb_weights(stage.module, recipe.train.seed)
    before = put_together(_parameters(state, context), context)
    batcher = Batcher(recipe, build_encoders(recipe, context.device), context.device, Sharing.among(context))
    train_step = TrainStep(recipe, context, state, batcher)
    drawn = share_of(samples, context.data_rank, context.layout.data)
    losses = _losses(train_step.run(drawn, LEARNING_RATE))
    gradients = put_together(owned_gradients(state), context)
    next_losses = _losses(train_step.run(drawn, learning_rate=0.0))
    after = put_together(_parameters(state, context), context)
    updates = {name: [new - old for new, old in zip(after[name], before[name], strict=True)] for name in after}
    return StepResult(losses, next_losses, gradients, updates)


def _losses(outcome: StepOutcome) -> dict[str, Tensor]:
    losses = outcome.losses
    numbers = {
        "loss": losses.total,
        "flow_matching_loss": losses.flow_matching,
        "semantic_loss": losses.semantic,
        "flow_matching_loss by sample": losses.slot_flow_matching,
        "semantic_loss by sample": losses.slot_semantic,
        "gradient_norm": outcome.gradient_norm,
    }
    return {name: torch.tensor(value, dtype=torch.float64) for name, value in numbers.items()}


def compare_steps(ours: StepResult, truth: StepResult) -> list[Check]:
    """Every loss, gradient and update; of copies the worst. On the first rank only."""
    checks = [
        compare(name, ours.losses[name], truth.losses[name], GRADIENT_LIMIT if name == "gradient_norm" else LOSS_LIMIT)
        for name in truth.losses
    ]
    checks += [
        compare(f"next {name}", ours.next_losses[name], truth.next_losses[name], GRADIENT_LIMIT)
        for name in truth.next_losses
    ]
    checks += compare_whole("grad ", ours.gradients, truth.gradients, GRADIENT_LIMIT)
    return checks + compare_whole("update ", ours.updates, truth.updates, GRADIENT_LIMIT)


def _parameters(state: TrainState, context: ParallelContext) -> ShardedState:
    """A copy of every trained parameter as each rank holds it, arrived or not by what the step itself waits for."""
    pieces: ShardedState = {}
    for stage in state.stages:
        synchronize_parameters(stage)
        values = {
            name: parameter.detach().clone()
            for name, parameter in parameter_names(stage).items()
            if parameter.requires_grad
        }
        pieces |= shard_parameters(stage, context, "", values, trainable=True)
    return pieces
