"""Saves checkpoints."""

from __future__ import annotations

import logging

from sama_mega.parallel.runtime import ParallelContext
from sama_mega.train.checkpoint import save_checkpoint
from sama_mega.train.hooks.base import Hook, Run
from sama_mega.train.report import StepReport
from sama_mega.train.state import TrainState

_log = logging.getLogger(__name__)


class CheckpointHook(Hook):
    """Saves every `checkpoint.every` steps and after the last one.

    Args:
        state: What is saved.
        context: The running layout.
        life: This life's number; an older life may not save.
    """

    def __init__(self, state: TrainState, context: ParallelContext, life: int) -> None:
        self._state = state
        self._context = context
        self._life = life

    def on_step_end(self, run: Run, report: StepReport) -> None:
        """Saves when a checkpoint is due."""
        if report.step % run.recipe.checkpoint.every == 0 or report.step == run.total_steps:
            path = save_checkpoint(run.folder, self._state, run.recipe, self._context, self._life)
            _log.info("saved %s", path)
