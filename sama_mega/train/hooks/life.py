"""Keeps the file of the run's present life."""

from __future__ import annotations

from sama_mega.train.hooks.base import Hook, Run
from sama_mega.train.lives import LifeFile
from sama_mega.train.report import StepReport
from sama_mega.train.run_end import RunEnd
from sama_mega.train.startup import StartupClock


class LifeHook(Hook):
    """Writes how far the life came and how it ended; the last of the hooks, so that the end is the end.

    Args:
        life: The file, on the first rank; None on the others.
        startup: Its last part ends with the first step.
    """

    def __init__(self, life: LifeFile | None, startup: StartupClock) -> None:
        self._life = life
        self._startup = startup

    def on_step_end(self, run: Run, report: StepReport) -> None:
        """Notes the step; after the first, how long the start took."""
        if self._life is None:
            return
        if report.step == run.start_step + 1:
            self._startup.mark("first step")
            self._startup.say()
            self._life.note(last_step=report.step, startup_seconds=self._startup.seconds)
        self._life.reached(report.step)

    def on_run_end(self, run: Run, end: RunEnd) -> None:
        """Notes the end."""
        if self._life is not None:
            self._life.end(end.reason, end.message)
