"""Names the slowest rank and its node."""

from __future__ import annotations

import json
import logging
import socket
from dataclasses import asdict

from sama_mega.parallel.collectives import gather_objects_on_first
from sama_mega.parallel.runtime import ParallelContext
from sama_mega.train.hooks.base import Hook, Run
from sama_mega.train.pace import Pace, describe_pace, how_far_behind
from sama_mega.train.report import StepReport

WORTH_A_WORD = 0.05
"""How far behind the middle of all ranks the slowest must be, as a share, to be named."""

_log = logging.getLogger(__name__)


class PaceHook(Hook):
    """Every `train.pace_every` steps, names a rank that lags and appends all ranks' times to `pace.jsonl`.

    Args:
        pace: This rank's time.
        context: The running layout.
    """

    def __init__(self, pace: Pace, context: ParallelContext) -> None:
        self._pace = pace
        self._context = context

    def on_step_end(self, run: Run, report: StepReport) -> None:
        """Counts the step; gathers when it is due."""
        self._pace.end_step()
        every = run.recipe.train.pace_every
        if self._context.world_size == 1 or not every or report.step % every:
            return
        steps = self._pace.steps
        mine = self._pace.take(socket.gethostname())
        ranks = gather_objects_on_first(mine, self._context.host_world_group)
        if ranks is None:
            return
        if how_far_behind(ranks) >= WORTH_A_WORD:
            _log.info("%s", describe_pace(ranks, steps))
        row = {"step": report.step, "ranks": [asdict(pace) for pace in ranks]}
        try:
            with run.folder.pace_path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
        except OSError as error:
            _log.warning("%s cannot be written: %s", run.folder.pace_path, error.strerror or error)
