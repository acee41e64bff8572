"""What a hook may see of a run, and when each of its methods runs."""

from __future__ import annotations

from typing import Protocol

from sama_data.loader import StepSamples
from sama_mega.config.schema import Recipe
from sama_mega.train.report import StepReport
from sama_mega.train.run_end import RunEnd
from sama_mega.train.run_folder import RunFolder


class Run(Protocol):
    """The part of a run that hooks read."""

    @property
    def recipe(self) -> Recipe:
        """The resolved recipe."""

    @property
    def folder(self) -> RunFolder:
        """The run folder."""

    @property
    def is_main(self) -> bool:
        """True on global rank 0, the only one that writes."""

    @property
    def start_step(self) -> int:
        """Finished optimizer steps in the state that was resumed, 0 for a new run."""

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole run."""


class Hook:
    """One concern of a run; every method does nothing unless overridden.

    Hooks run on every rank, in the order of the loop's list; one that writes checks `run.is_main`. What a
    hook raises ends the run, so a hook for something optional handles its own failures.
    """

    def on_run_start(self, run: Run) -> None:
        """Runs once, after the model, the data and a checkpoint are loaded, before the first step."""

    def on_step_end(self, run: Run, report: StepReport) -> None:
        """Runs after every optimizer step, a skipped one too, before the next step's data is asked for."""

    def on_step_not_finite(self, run: Run, drawn: StepSamples) -> None:
        """Runs on every rank, before `on_step_end`, when a step's loss or gradient norm is not finite.

        The weights are still those that the step began with; `drawn` is what this rank trained on.
        """

    def on_stop(self, run: Run) -> None:
        """Runs once when the run was told to stop early, at a step boundary; what must not be lost is saved here."""

    def on_run_end(self, run: Run, end: RunEnd) -> None:
        """Runs once, after the last step or after whatever ended the run early, also when it failed.

        Not after a kill: a hook must not rely on it for anything that has to survive one.
        """
