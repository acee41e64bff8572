"""Writes metrics.jsonl."""

from __future__ import annotations

import logging

from sama_mega.observe.metrics import MetricsFile
from sama_mega.train.hooks.base import Hook, Run
from sama_mega.train.report import StepReport
from sama_mega.train.run_end import RunEnd

_log = logging.getLogger(__name__)


class MetricsHook(Hook):
    """One row per optimizer step; a resumed run first drops the rows that it will write again."""

    def __init__(self) -> None:
        """Holds no file before the run starts."""
        self._file: MetricsFile | None = None

    def on_run_start(self, run: Run) -> None:
        """Cuts the file to the resumed step and opens it."""
        if not run.is_main:
            return
        self._file = MetricsFile(run.folder.metrics_path)
        dropped = self._file.open(run.start_step)
        if dropped:
            _log.info("%s: dropped %d rows after step %d", run.folder.metrics_path, dropped, run.start_step)

    def on_step_end(self, run: Run, report: StepReport) -> None:
        """Appends the step's row."""
        if self._file is not None:
            self._file.append(report.as_row())

    def on_run_end(self, run: Run, end: RunEnd) -> None:
        """Closes the file."""
        if self._file is not None:
            self._file.close()
