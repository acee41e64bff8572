"""One optimizer step: what happens to the samples of one global batch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from sama_data.loader import Sample, StepSamples
from sama_mega.config.schema import Recipe
from sama_mega.diffusion.losses import sama_loss
from sama_mega.diffusion.schedule import FlowMatchingSchedule
from sama_mega.parallel.data_parallel import finalize_gradients
from sama_mega.parallel.runtime import ParallelContext
from sama_mega.parallel.schedule import run_forward_backward
from sama_mega.parallel.transfer import read_numbers
from sama_mega.train.batch import Batcher, group_by_shape
from sama_mega.train.forward import count_tokens, forward_errors, noise_micro_batch
from sama_mega.train.slots import SlotStatistics, StepLosses
from sama_mega.train.state import TrainState


@dataclass(frozen=True)
class StepOutcome:
    """What one optimizer step did.

    Attributes:
        losses: The step's losses over the global batch.
        gradient_norm: Global L2 norm before clipping.
        skipped: Why the optimizer did not step, or None.
    """

    losses: StepLosses
    gradient_norm: float
    skipped: str | None


class TrainStep:
    """Runs optimizer steps.

    Args:
        recipe: The whole recipe.
        context: The running layout.
        state: Model, optimizer and moving average; mutated by `run`.
        batcher: Encodes samples.
    """

    def __init__(
        self,
        recipe: Recipe,
        context: ParallelContext,
        state: TrainState,
        batcher: Batcher,
    ) -> None:
        self._recipe = recipe
        self._context = context
        self._state = state
        self._batcher = batcher
        diffusion = recipe.diffusion
        self._schedule = FlowMatchingSchedule(diffusion.num_train_timesteps, diffusion.shift, diffusion.timestep_weight)

    def run(self, drawn: StepSamples, learning_rate: float) -> StepOutcome:
        """Encodes, noises, predicts, differentiates and steps, on this rank's samples of one global batch.

        Args:
            drawn: This rank's samples; the loss is weighted over all ranks' samples.
            learning_rate: Of this step.

        Returns:
            Losses over the global batch and what the optimizer did. Model, optimizer and average are mutated.
        """
        model, optimizer = self._state.model, self._state.optimizer
        statistics = SlotStatistics(drawn, self._recipe, self._context)

        def forward_step(samples: Sequence[Sample]) -> Tensor:
            batch = self._batcher.encode(samples)
            noised = noise_micro_batch(batch, self._schedule, self._recipe)
            errors = forward_errors(model, noised, self._recipe.kernels.ops)
            statistics.record(batch, errors, noised.timesteps, count_tokens(noised, self._recipe))
            weight = self._recipe.anchor.weight
            flow_matching, semantic = errors.flow_matching, errors.semantic_share
            return sama_loss(flow_matching, semantic, batch.weights, statistics.total_weight, weight).total

        optimizer.zero_grad()
        run_forward_backward(model, group_by_shape(drawn.samples, self._recipe), forward_step)
        finalize_gradients(model, self._context)
        # The one place of a step where the host waits for the device.
        *table, gradient_norm = read_numbers(statistics.reduce(), optimizer.gradient_norm_tensor())
        losses = statistics.losses(table)
        skipped = self._reason_to_skip(losses.total, gradient_norm)
        if skipped is None:
            optimizer.step(learning_rate, self._recipe.optimizer.clip_grad_norm or None, gradient_norm)
            self._state.average.update()
        return StepOutcome(losses, gradient_norm, skipped)

    def _reason_to_skip(self, loss: float, gradient_norm: float) -> str | None:
        """Every rank sees the same reduced numbers, so all ranks skip together."""
        train = self._recipe.train
        if not math.isfinite(loss) or not math.isfinite(gradient_norm):
            return f"loss {loss:.6g} or gradient norm {gradient_norm:.6g} is not finite"
        if train.skip_loss_above is not None and loss > train.skip_loss_above:
            return f"loss {loss:.6g} is above train.skip_loss_above ({train.skip_loss_above:g})"
        if train.skip_grad_norm_above is not None and gradient_norm > train.skip_grad_norm_above:
            return (
                f"gradient norm {gradient_norm:.6g} is above train.skip_grad_norm_above"
                f" ({train.skip_grad_norm_above:g})"
            )
        return None
