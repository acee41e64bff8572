"""Compares the ranks: names the slowest and its node, and finds who has most memory in use."""

from __future__ import annotations

import logging
import socket
from collections.abc import Sequence
from dataclasses import asdict

from sama_mega.observe.metrics import SideFile
from sama_mega.parallel.collectives import gather_objects_on_first
from sama_mega.parallel.runtime import ParallelContext
from sama_mega.train.hooks.base import Hook, Run
from sama_mega.train.pace import Pace, RankPace, describe_pace, how_far_behind, pace_numbers
from sama_mega.train.rank_load import LoadMeter, QuarantineTally, most_memory
from sama_mega.train.report import StepReport
from sama_mega.train.run_end import RunEnd

WORTH_A_WORD = 0.05
"""How far behind the middle of all ranks the slowest must be, as a share, to be named."""

_log = logging.getLogger(__name__)


class PaceHook(Hook):
    """Every `train.pace_every` steps, in one message of all ranks, compares their times and loads.

    Names a rank that lags, appends all ranks' times to `pace.jsonl`, and adds `ranks`, `memory` and `data` to the
    report, before the hooks that write it down.

    Args:
        pace: This rank's time.
        load: This rank's load.
        context: The running layout.
    """

    def __init__(self, pace: Pace, load: LoadMeter, context: ParallelContext) -> None:
        self._pace = pace
        self._load = load
        self._context = context
        self._quarantine: QuarantineTally | None = None
        self._file: SideFile | None = None

    def on_run_start(self, run: Run) -> None:
        """Finds the quarantine; cuts pace.jsonl to the resumed step and opens it."""
        self._quarantine = QuarantineTally(run.folder.quarantine_path)
        if run.is_main and run.recipe.train.pace_every and self._context.world_size > 1:
            self._file = SideFile(run.folder.pace_path)
            self._file.open(run.start_step)

    def on_step_end(self, run: Run, report: StepReport) -> None:
        """Counts the step; gathers when it is due."""
        self._pace.end_step()
        every = run.recipe.train.pace_every
        if not every or report.step % every:
            return
        steps = self._pace.steps
        mine = (self._pace.take(socket.gethostname()), self._load.measure())
        alone = self._context.world_size == 1
        ranks = [mine] if alone else gather_objects_on_first(mine, self._context.host_world_group)
        if ranks is None:
            return
        assert self._quarantine is not None, "on_run_start() first"
        loads = [load for _, load in ranks]
        cut = sum(load.num_truncated_prompts for load in loads)
        report.measured["memory"] = most_memory(loads)
        report.measured["data"] = {"truncated_prompts": cut, **self._quarantine.read()}
        if not alone:
            self._compare(run, report, [pace for pace, _ in ranks], steps)

    def _compare(self, run: Run, report: StepReport, ranks: Sequence[RankPace], steps: int) -> None:
        report.measured["ranks"] = pace_numbers(ranks)
        if how_far_behind(ranks) >= WORTH_A_WORD:
            _log.info("%s", describe_pace(ranks, steps))
        assert self._file is not None, "the first rank gathers, and writes"
        self._file.append({"step": report.step, "ranks": [asdict(pace) for pace in ranks]})

    def on_run_end(self, run: Run, end: RunEnd) -> None:
        """Closes the file."""
        if self._file is not None:
            self._file.close()
