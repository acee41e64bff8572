"""When things happen in a run; what a step does is `step.py`, everything else is a hook."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from sama_data.dataset import Dataset
from sama_data.loader import StepSamples
from sama_mega.config.errors import UserError
from sama_mega.config.schema import Recipe
from sama_mega.train.hooks.base import Hook
from sama_mega.train.learning_rate import learning_rate_at
from sama_mega.train.report import StepReport
from sama_mega.train.run_end import RunEnd, end_by
from sama_mega.train.run_folder import RunFolder
from sama_mega.train.state import TrainState
from sama_mega.train.step import StepOutcome, TrainStep
from sama_mega.train.stop import RunStopped

_log = logging.getLogger(__name__)


class TrainingStalledError(UserError):
    """The run takes no steps any more."""


@dataclass(frozen=True)
class Run:
    """What hooks may see of a run; see `hooks.base.Run`."""

    recipe: Recipe
    folder: RunFolder
    is_main: bool
    start_step: int
    total_steps: int


class Loop:
    """Takes optimizer steps until the recipe's last.

    Args:
        run: What the hooks see.
        dataset: Names the samples for the report.
        state: Its step and sample counts advance here.
        train_step: Does one step.
        hooks: Called in this order.
    """

    def __init__(
        self, run: Run, dataset: Dataset, state: TrainState, train_step: TrainStep, hooks: Sequence[Hook]
    ) -> None:
        self._run = run
        self._dataset = dataset
        self._state = state
        self._train_step = train_step
        self._hooks = hooks
        self._skipped_in_a_row = 0

    def run(self, batches: Iterator[StepSamples]) -> RunEnd:
        """Trains on every batch the iterator gives; hooks hear of the end whatever it is.

        Args:
            batches: This rank's samples, one item a remaining step; RunStopped from it ends the run early.

        Returns:
            Whether it finished or was stopped.
        """
        try:
            for hook in self._hooks:
                hook.on_run_start(self._run)
            end = self._take_steps_until_told_to_stop(batches)
        except BaseException as error:
            self._end(end_by(error))
            raise
        self._end(end)
        return end

    def _take_steps_until_told_to_stop(self, batches: Iterator[StepSamples]) -> RunEnd:
        try:
            self._take_steps(batches)
        except RunStopped as stopped:
            for hook in self._hooks:
                hook.on_stop(self._run)
            return RunEnd("stopped", str(stopped))
        return RunEnd("finished")

    def _end(self, end: RunEnd) -> None:
        """Tells every hook; one that fails neither silences the others nor replaces the run's own error."""
        for hook in self._hooks:
            try:
                hook.on_run_end(self._run, end)
            except Exception:
                _log.exception("%s failed at the end of the run", type(hook).__name__)

    def _take_steps(self, batches: Iterator[StepSamples]) -> None:
        while self._state.step < self._run.total_steps:
            started = time.perf_counter()
            drawn = next(batches)
            data_ready = time.perf_counter()
            recipe = self._run.recipe
            rate = learning_rate_at(self._state.step, self._run.total_steps, recipe.optimizer)
            outcome = self._train_step.run(drawn, rate)
            if not outcome.is_finite:
                self._tell_not_finite(drawn)
            self._count_skips(outcome)
            self._state.step += 1
            self._state.samples_seen += drawn.num_slots
            finished = time.perf_counter()
            report = self._report(drawn, outcome, rate, finished - started, data_ready - started)
            for hook in self._hooks:
                hook.on_step_end(self._run, report)

    def _tell_not_finite(self, drawn: StepSamples) -> None:
        for hook in self._hooks:
            hook.on_step_not_finite(self._run, drawn)

    def _count_skips(self, outcome: StepOutcome) -> None:
        """Ends a run that no longer moves: the numbers are the same on every rank, so all end together."""
        self._skipped_in_a_row = self._skipped_in_a_row + 1 if outcome.skipped else 0
        limit = self._run.recipe.train.max_skipped_steps
        if self._skipped_in_a_row >= limit:
            stalled = TrainingStalledError(
                f"{limit} steps in a row were skipped (train.max_skipped_steps), the last because {outcome.skipped}:"
                " lower optimizer.learning_rate, raise the limits, or look at the newest samples"
            )
            stalled.told_by_first_rank = not self._run.is_main
            raise stalled

    def _report(
        self,
        drawn: StepSamples,
        outcome: StepOutcome,
        rate: float,
        step_seconds: float,
        data_wait_seconds: float,
    ) -> StepReport:
        losses = outcome.losses
        sample_ids = None
        if self._run.recipe.track.log_sample_ids:
            sample_ids = tuple(self._dataset[index].sample_id for index in losses.slot_sample_indices)
        return StepReport(
            step=self._state.step,
            loss=losses.total,
            flow_matching_loss=losses.flow_matching,
            semantic_loss=losses.semantic,
            gradient_norm=outcome.gradient_norm,
            learning_rate=rate,
            skipped=outcome.skipped,
            step_seconds=step_seconds,
            data_wait_seconds=data_wait_seconds,
            ended_at_seconds=round(time.time(), 3),
            tokens=losses.num_tokens,
            model_tflop=outcome.model_tflop,
            num_images=drawn.num_image_slots,
            num_videos=drawn.num_slots - drawn.num_image_slots,
            samples_seen=self._state.samples_seen,
            grouped_losses=losses.grouped,
            sample_digest=losses.sample_digest,
            sample_ids=sample_ids,
        )
