"""What the life's file says while the run goes on and when it ends."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sama_mega.train.hooks.life import LifeHook
from sama_mega.train.lives import LifeFile, LifeRecord, read_lives
from sama_mega.train.run_end import EndReason, RunEnd
from sama_mega.train.run_folder import RunFolder
from sama_mega.train.startup import StartupClock


class Rig:
    """A hook of a life that begins after step 4, and its file."""

    def __init__(self, root: Path) -> None:
        self.folder = RunFolder.create(root)
        self.clock = StartupClock({}, iter([10.0, 13.0, 20.0]).__next__)
        self.clock.mark("imports")
        self.hook = LifeHook(LifeFile.claim(self.folder, 4, {}), self.clock)
        self.run: Any = SimpleNamespace(start_step=4)

    def step(self, step: int) -> LifeRecord:
        report: Any = SimpleNamespace(step=step)
        self.hook.on_step_end(self.run, report)
        return self.record()

    def record(self) -> LifeRecord:
        (record,) = read_lives(self.folder)
        return record


def test_the_first_step_ends_the_start(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    record = rig.step(5)
    assert (record.last_step, record.startup_seconds) == (5, {"imports": 3.0, "first step": 7.0})
    # The clock has no more times to give: it is asked once.
    assert rig.step(6).startup_seconds == record.startup_seconds


@pytest.mark.parametrize("reason", ["finished", "stopped", "interrupted", "superseded", "refused", "failed"])
def test_the_end_has_its_reason_and_the_last_step(tmp_path: Path, reason: EndReason) -> None:
    rig = Rig(tmp_path)
    for step in (5, 6, 7):
        rig.step(step)
    rig.hook.on_run_end(rig.run, RunEnd(reason, "because"))
    record = rig.record()
    assert (record.reason, record.message, record.last_step) == (reason, "because", 7)
    assert record.ended_at is not None


def test_other_ranks_write_nothing(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    before = rig.record()
    hook = LifeHook(None, rig.clock)
    report: Any = SimpleNamespace(step=5)
    hook.on_step_end(rig.run, report)
    hook.on_run_end(rig.run, RunEnd("finished"))
    assert rig.record() == before
    assert "first step" not in rig.clock.seconds
