"""Finds out why a step was not finite, and keeps what it takes to see it again."""

from __future__ import annotations

import logging
import time

from sama_data.loader import StepSamples
from sama_mega.checkpoint.folder import RECIPE_FILE
from sama_mega.config.errors import CheckpointError
from sama_mega.parallel.runtime import ParallelContext
from sama_mega.train.hooks.base import Hook, Run
from sama_mega.train.numerics.examine import examine
from sama_mega.train.numerics.save import save_bad_step
from sama_mega.train.state import TrainState
from sama_mega.train.step import TrainStep

_log = logging.getLogger(__name__)


class BadStepHook(Hook):
    """Takes a step that was not finite once more with every tensor looked at, and writes a report for `--replay`.

    At most `track.bad_batches` times in a life; what cannot be written is said and ends nothing.

    Args:
        train_step: Takes the steps.
        state: What they work on.
        context: The running layout.
        life: This life's number; an older life may not write.
    """

    def __init__(self, train_step: TrainStep, state: TrainState, context: ParallelContext, life: int) -> None:
        self._train_step = train_step
        self._state = state
        self._context = context
        self._life = life
        self._num_examined = 0

    def on_step_not_finite(self, run: Run, drawn: StepSamples) -> None:
        """Examines, says what was found in one line, and saves."""
        if self._num_examined >= run.recipe.track.bad_batches:
            return
        self._num_examined += 1
        began = time.perf_counter()
        step = self._state.step + 1
        found = examine(self._train_step, drawn, self._state, run.recipe, self._context)
        if found is not None:
            _log.error("step %d was not finite; taken once more: %s", step, found.describe())
        try:
            report, is_new = save_bad_step(run.folder, found, drawn, self._state, run.recipe, self._context, self._life)
        except CheckpointError as error:
            if run.is_main:
                _log.warning("step %d cannot be kept for --replay: %s", step, error)
            return
        if run.is_main:
            seconds = time.perf_counter() - began
            kept = f"kept in {seconds:.1f} s" if is_new else "an earlier life kept it"
            _log.error(
                "%s: sama-mega train %s --replay %s (ranks then: %d; another layout works too)",
                kept,
                report.with_name(RECIPE_FILE),
                report,
                self._context.world_size,
            )
