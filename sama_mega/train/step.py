"""One optimizer step: what happens to the samples of one global batch."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass

from torch import Tensor, nn

from sama_data.loader import StepSamples
from sama_mega.config.schema import Recipe
from sama_mega.diffusion.losses import sama_loss
from sama_mega.diffusion.schedule import FlowMatchingSchedule
from sama_mega.model import ModelOutput
from sama_mega.observe.flops import step_flops
from sama_mega.parallel.gradients import finalize_gradients
from sama_mega.parallel.runtime import ParallelContext
from sama_mega.parallel.schedule import run_forward_backward
from sama_mega.parallel.transfer import read_numbers
from sama_mega.train.batch import Batcher, MicroBatch, group_by_shape
from sama_mega.train.forward import NoisedBatch, count_tokens, measure_errors, noise_micro_batch
from sama_mega.train.numerics.layer_statistics import LayerStatistics
from sama_mega.train.pace import Pace
from sama_mega.train.slots import SlotStatistics, StepLosses
from sama_mega.train.state import TrainState


@dataclass(frozen=True)
class StepOutcome:
    """What one optimizer step did.

    Attributes:
        losses: The step's losses over the global batch.
        gradient_norm: Global L2 norm before clipping.
        skipped: Why the optimizer did not step, or None.
        model_tflop: Operations (1e12) of the model on the global batch; None with low-rank training, whose backward
            pass leaves out products that `step_flops` counts.
    """

    losses: StepLosses
    gradient_norm: float
    skipped: str | None
    model_tflop: float | None

    @property
    def is_finite(self) -> bool:
        """Whether the loss and the gradient norm are."""
        return math.isfinite(self.losses.total) and math.isfinite(self.gradient_norm)


class TrainStep:
    """Runs optimizer steps.

    Args:
        recipe: The whole recipe.
        context: The running layout.
        state: Model, optimizer and moving average; mutated by `run`.
        batcher: Encodes samples.
        pace: Counts this rank's own time; None: one that nobody reads.
        statistics: Looks at the layers of some steps; None: of none.
    """

    def __init__(
        self,
        recipe: Recipe,
        context: ParallelContext,
        state: TrainState,
        batcher: Batcher,
        pace: Pace | None = None,
        statistics: LayerStatistics | None = None,
    ) -> None:
        self._recipe = recipe
        self._context = context
        self._state = state
        self._batcher = batcher
        self._pace = pace or Pace(context.device)
        self._statistics = statistics
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
        with self._statistics.taking(self._state.step + 1) if self._statistics else nullcontext():
            losses, gradient_norm = self.differentiate(drawn)
        skipped = self._reason_to_skip(losses.total, gradient_norm)
        if skipped is None:
            self._state.optimizer.step(learning_rate, self._recipe.optimizer.clip_grad_norm or None, gradient_norm)
            self._state.average.update()
        model_tflop = None if self._recipe.lora.rank else step_flops(self._recipe, losses.slot_tokens) / 1e12
        return StepOutcome(losses, gradient_norm, skipped, model_tflop)

    def differentiate(self, drawn: StepSamples) -> tuple[StepLosses, float]:
        """Does all of a step but the update.

        Args:
            drawn: This rank's samples.

        Returns:
            Losses and gradient norm over the global batch; the optimizer's gradients are **overwritten**.
        """
        stages, optimizer = self._state.stages, self._state.optimizer
        statistics = SlotStatistics(drawn, self._recipe, self._context)

        def prepare(encode: Callable[[], MicroBatch]) -> tuple[MicroBatch, NoisedBatch]:
            batch = encode()
            return batch, noise_micro_batch(batch, self._schedule, self._recipe)

        def forward_step(stage: nn.Module, prepared: tuple[MicroBatch, NoisedBatch]) -> Tensor:
            batch, noised = prepared
            output = stage(noised.given)
            if not isinstance(output, ModelOutput):
                return output  # of an earlier pipeline stage: the next one goes on from here
            errors = measure_errors(output, noised, self._recipe.kernels.ops)
            statistics.record(batch, errors, noised.given.timesteps, count_tokens(noised, self._recipe))
            weight = self._recipe.anchor.weight
            flow_matching, semantic = errors.flow_matching, errors.semantic_share
            return sama_loss(flow_matching, semantic, batch.weights, statistics.total_weight, weight).total

        def hidden_shape(prepared: tuple[MicroBatch, NoisedBatch]) -> tuple[int, int, int]:
            return stages[0].module.hidden_shape(prepared[1].given)

        optimizer.zero_grad()
        with self._pace.computing():
            micro_batches = self._batcher.encode_step(group_by_shape(drawn.samples, self._recipe))
            run_forward_backward(stages, micro_batches, prepare, forward_step, hidden_shape, self._context)
        finalize_gradients(stages, optimizer.owned, self._context)
        # The one place of a step where the host waits for the device.
        *table, gradient_norm = read_numbers(statistics.reduce(), optimizer.gradient_norm_tensor())
        return statistics.losses(table), gradient_norm

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
