"""Saves checkpoints."""

from __future__ import annotations

from sama_mega.parallel.runtime import ParallelContext
from sama_mega.train.checkpoint_saver import CheckpointSaver
from sama_mega.train.hooks.base import Hook, Run
from sama_mega.train.report import StepReport
from sama_mega.train.run_end import RunEnd
from sama_mega.train.state import TrainState


class CheckpointHook(Hook):
    """Saves every `checkpoint.every` steps, after the last one, and when the run is told to stop.

    Args:
        state: What is saved.
        context: The running layout.
        life: This life's number; an older life may not save.
    """

    def __init__(self, state: TrainState, context: ParallelContext, life: int) -> None:
        self._state = state
        self._context = context
        self._life = life
        self._saver: CheckpointSaver | None = None
        self._saved_step = 0
        self._began_from: int | None = None

    def on_run_start(self, run: Run) -> None:
        """Forms the saver's group, on every rank."""
        self._saver = CheckpointSaver(run.folder, run.recipe, self._context, self._life)
        self._saved_step = run.start_step
        self._began_from = run.start_step or None

    def on_step_end(self, run: Run, report: StepReport) -> None:
        """Begins a save when one is due; after the last step, waits for it: here its failure still ends the run."""
        assert self._saver is not None, "on_run_start() first"
        is_last = report.step == run.total_steps
        if report.step % run.recipe.checkpoint.every == 0 or is_last:
            self._save(self._saver)
        if is_last:
            self._saver.wait()

    def on_stop(self, run: Run) -> None:
        """Saves the steps since the newest save, if there are any, and waits until all is written."""
        assert self._saver is not None, "on_run_start() first"
        if self._state.step > self._saved_step:
            self._save(self._saver)
        self._saver.wait()

    def _save(self, saver: CheckpointSaver) -> None:
        saver.save(self._state)
        self._saved_step = self._state.step

    def newest_save(self) -> int | None:
        """Step of the newest complete checkpoint: this life's, or the one that it began from; None for none."""
        saved = None if self._saver is None else self._saver.saved_step
        return self._began_from if saved is None else saved

    def raise_failure(self) -> None:
        """Raises the failure on the ranks that know of a failed save."""
        if self._saver is not None:
            self._saver.raise_failure()

    def on_run_end(self, run: Run, end: RunEnd) -> None:
        """Waits for a save under way; one that fails now has said so in the log."""
        if self._saver is not None:
            self._saver.close()
