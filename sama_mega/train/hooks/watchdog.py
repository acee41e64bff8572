"""Ends a run that hangs."""

from __future__ import annotations

from collections.abc import Callable

from sama_mega.parallel.runtime import ParallelContext
from sama_mega.train.hooks.base import Hook, Run
from sama_mega.train.report import StepReport
from sama_mega.train.run_end import RunEnd
from sama_mega.train.watchdog import Watchdog


class WatchdogHook(Hook):
    """Watches for `train.hang_seconds` without a step; first of the hooks, so that theirs is part of the next step.

    Args:
        context: The running layout.
        life: Number of this life.
        on_hang: See `Watchdog`.
    """

    def __init__(self, context: ParallelContext, life: int, on_hang: Callable[[str], None]) -> None:
        self._context = context
        self._life = life
        self._on_hang = on_hang
        self._watchdog: Watchdog | None = None

    def on_run_start(self, run: Run) -> None:
        """Begins to watch."""
        if run.recipe.train.hang_seconds is None:
            return
        self._watchdog = Watchdog(
            run.recipe.train.hang_seconds,
            lambda rank: run.folder.stacks_path(self._life, rank),
            self._context.rank,
            self._context.world_size,
            self._on_hang,
        )
        self._watchdog.start(run.start_step)

    def on_step_end(self, run: Run, report: StepReport) -> None:
        """All is well."""
        if self._watchdog is not None:
            self._watchdog.beat(report.step)

    def on_run_end(self, run: Run, end: RunEnd) -> None:
        """Stops watching."""
        if self._watchdog is not None:
            self._watchdog.stop()
