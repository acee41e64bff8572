"""Measures how fast the steps go."""

from __future__ import annotations

from sama_mega.train.hooks.base import Hook, Run
from sama_mega.train.report import StepReport
from sama_mega.train.throughput import Throughput


class SpeedHook(Hook):
    """Adds `speed` to every report, before the hooks that write it down.

    Args:
        throughput: Counts to rates.
    """

    def __init__(self, throughput: Throughput) -> None:
        self._throughput = throughput

    def on_step_end(self, run: Run, report: StepReport) -> None:
        """Adds the step's rates."""
        if run.is_main:
            report.measured["speed"] = self._throughput.of(report)
