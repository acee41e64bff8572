"""When a run saves: at its interval, at its end, and when it is told to stop; around a saver that takes notes."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from sama_mega.config.errors import CheckpointError
from sama_mega.train.hooks import checkpoint as module
from sama_mega.train.hooks.checkpoint import CheckpointHook
from sama_mega.train.run_end import RunEnd

EVERY, STEPS = 4, 10


class NotingSaver:
    """A save is under way until somebody waits for it."""

    def __init__(self, folder: Any, recipe: Any, context: Any, life: int) -> None:
        self.made_with = (folder, recipe, context, life)
        self.begun: list[int] = []
        self.written: list[int] = []
        self.problem: str | None = None

    def save(self, state: Any) -> None:
        self.wait()
        self.begun.append(state.step)

    def wait(self) -> None:
        if self.problem is not None:
            raise CheckpointError(self.problem)
        self.close()

    def close(self) -> None:
        self.written = list(self.begun)

    def raise_failure(self) -> None:
        if self.problem is not None:
            raise CheckpointError(self.problem)


class Rig:
    """A hook as the loop drives it."""

    def __init__(self, start_step: int = 0) -> None:
        self.state: Any = SimpleNamespace(step=start_step)
        checkpoint = SimpleNamespace(every=EVERY)
        recipe = SimpleNamespace(checkpoint=checkpoint)
        self.run: Any = SimpleNamespace(recipe=recipe, folder="folder", start_step=start_step, total_steps=STEPS)
        context: Any = "context"
        self.hook = CheckpointHook(self.state, context, life=3)
        self.hook.on_run_start(self.run)
        saver: Any = self.hook._saver
        self.saver: NotingSaver = saver
        assert self.saver.made_with == ("folder", recipe, "context", 3)

    def steps_to(self, last: int) -> None:
        for step in range(self.state.step + 1, last + 1):
            self.state.step = step
            report: Any = SimpleNamespace(step=step)
            self.hook.on_step_end(self.run, report)


@pytest.fixture(autouse=True)
def noting_saver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CheckpointSaver", NotingSaver)


def test_it_saves_at_its_interval_and_waits_for_the_last_one() -> None:
    rig = Rig()
    rig.steps_to(STEPS - 1)
    assert rig.saver.begun == [4, 8] and rig.saver.written == [4]
    rig.steps_to(STEPS)
    assert rig.saver.begun == rig.saver.written == [4, 8, 10]


@pytest.mark.parametrize("start_step", [0, 4, 6])
def test_a_stop_before_the_first_step_saves_nothing(start_step: int) -> None:
    rig = Rig(start_step)
    rig.hook.on_stop(rig.run)
    assert rig.saver.begun == []


@pytest.mark.parametrize("start_step", [0, 6])
def test_a_stop_saves_the_steps_since_the_newest_save(start_step: int) -> None:
    rig = Rig(start_step)
    rig.steps_to(7)
    rig.hook.on_stop(rig.run)
    assert rig.saver.begun[-1] == 7
    assert rig.saver.written == rig.saver.begun, "the process ends next"


def test_a_stop_right_after_a_save_waits_for_it_and_saves_nothing_twice() -> None:
    rig = Rig()
    rig.steps_to(8)
    assert rig.saver.written == [4]
    rig.hook.on_stop(rig.run)
    assert rig.saver.begun == rig.saver.written == [4, 8]


def test_a_second_stop_saves_nothing_twice() -> None:
    rig = Rig()
    rig.steps_to(6)
    rig.hook.on_stop(rig.run)
    rig.hook.on_stop(rig.run)
    assert rig.saver.begun == [4, 6]


@pytest.mark.parametrize("last_step", [6, 8])
def test_a_save_that_failed_fails_the_stop(last_step: int) -> None:
    """Whether there is a newer step to save or not."""
    rig = Rig()
    rig.steps_to(last_step)
    rig.saver.problem = "the disk is full"
    with pytest.raises(CheckpointError, match="the disk is full"):
        rig.hook.on_stop(rig.run)


def test_a_failure_is_known_before_the_next_save() -> None:
    rig = Rig()
    rig.hook.raise_failure()
    rig.saver.problem = "the disk is full"
    with pytest.raises(CheckpointError):
        rig.hook.raise_failure()


def test_the_end_waits_for_a_save_and_raises_nothing() -> None:
    rig = Rig()
    rig.steps_to(4)
    rig.saver.problem = "the disk is full"
    rig.hook.on_run_end(rig.run, RunEnd("failed", "RuntimeError"))
    assert rig.saver.written == [4]


def test_a_run_that_failed_before_it_began_can_end() -> None:
    context: Any = None
    state: Any = None
    hook = CheckpointHook(state, context, life=1)
    hook.raise_failure()
    run: Any = None
    hook.on_run_end(run, RunEnd("failed"))
