"""Writes statistics.jsonl."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict

from sama_mega.observe.metrics import SideFile
from sama_mega.train.hooks.base import Hook, Run
from sama_mega.train.numerics.layer_statistics import LayerNumbers, LayerStatistics
from sama_mega.train.report import StepReport
from sama_mega.train.run_end import RunEnd


class StatisticsHook(Hook):
    """One row every `track.statistics_every` steps; a disk that refuses it is said once and ends nothing.

    Args:
        statistics: Looks at the steps.

    Attributes:
        newest: On every rank the numbers of the step that just ended, by layer; empty when none were taken.
    """

    def __init__(self, statistics: LayerStatistics) -> None:
        self._statistics = statistics
        self._file: SideFile | None = None
        self.newest: Mapping[str, LayerNumbers] = {}

    def on_run_start(self, run: Run) -> None:
        """Cuts the file to the resumed step and opens it."""
        if run.is_main and run.recipe.track.statistics_every:
            self._file = SideFile(run.folder.statistics_path)
            self._file.open(run.start_step)

    def on_step_end(self, run: Run, report: StepReport) -> None:
        """Sums up over the ranks and appends the row, where the step was looked at."""
        self.newest = {}
        if not self._statistics.is_due(report.step):
            return
        self.newest = self._statistics.finish(updated=report.skipped is None)
        if run.is_main:
            report.measured["layers"] = layer_metrics(self.newest)
        if self._file is not None:
            layers = {layer: _finite(asdict(numbers)) for layer, numbers in self.newest.items()}
            self._file.append({"step": report.step, "layers": layers})

    def on_run_end(self, run: Run, end: RunEnd) -> None:
        """Closes the file."""
        if self._file is not None:
            self._file.close()


def layer_metrics(newest: Mapping[str, LayerNumbers]) -> dict[str, float]:
    """The same numbers as flat metrics: `gradient_norm/blocks.3`; what there is none of is left out."""
    return {
        f"{name}/{layer}": value
        for layer, numbers in newest.items()
        for name, value in asdict(numbers).items()
        if value is not None
    }


def _finite(values: dict[str, float | None]) -> dict[str, float | None]:
    # NaN is no JSON; `activation_not_finite` and the step's `skipped` say what happened.
    return {name: value if value is not None and math.isfinite(value) else None for name, value in values.items()}
