"""Shows progress."""

from __future__ import annotations

from collections.abc import Callable

from sama_mega.observe.progress import RunProgress, stderr_is_terminal
from sama_mega.train.hooks.base import Hook, Run
from sama_mega.train.report import StepReport
from sama_mega.train.run_end import RunEnd


class ProgressHook(Hook):
    """A bar on a terminal, plain lines in the log."""

    def __init__(
        self,
        draws_bar: bool | None = None,
        peak_tflops: float | None = None,
        newest_save: Callable[[], int | None] = lambda: None,
    ) -> None:
        """Decides on the bar.

        Args:
            draws_bar: None asks whether stderr is a terminal. Give `observe.log.RunLog` the same answer.
            peak_tflops: Of all ranks together, for the MFU; None where it is not known.
            newest_save: Gives the step of the newest checkpoint.
        """
        self._peak_tflops = peak_tflops
        self._newest_save = newest_save
        self._draws_bar = stderr_is_terminal() if draws_bar is None else draws_bar
        self._progress: RunProgress | None = None

    def on_run_start(self, run: Run) -> None:
        """Shows the bar."""
        if not run.is_main:
            return
        self._progress = RunProgress(
            f"stage {run.recipe.train.stage}",
            run.start_step,
            run.total_steps,
            run.recipe.train.log_every,
            draws_bar=self._draws_bar,
            peak_tflops=self._peak_tflops,
            newest_save=self._newest_save,
        )
        self._progress.start()

    def on_step_end(self, run: Run, report: StepReport) -> None:
        """Moves the bar; every few steps writes a line."""
        if self._progress is not None:
            self._progress.step(report.as_row())

    def on_run_end(self, run: Run, end: RunEnd) -> None:
        """Takes the bar away."""
        if self._progress is not None:
            self._progress.close()
