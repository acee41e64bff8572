"""How a run ends: what the hooks hear, in which order, and under which reason; around steps that do nothing."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sama_data.errors import DataError
from sama_mega.config.errors import CheckpointError, ConfigError, UserError
from sama_mega.train.hooks.base import Hook
from sama_mega.train.lives import SupersededError
from sama_mega.train.loop import Loop, Run, TrainingStalledError
from sama_mega.train.run_end import RunEnd
from sama_mega.train.run_folder import RunFolder
from sama_mega.train.stop import RunStopped
from tests.support.tiny_recipe import tiny_recipe

STEPS = 4
STOPPED = RunEnd("stopped", "told to stop by SIGUSR1")


class NotingHook(Hook):
    """Notes its calls in a list that it shares; raises where it is told to."""

    def __init__(self, name: str, calls: list[Any], raises_in: str = "", error: BaseException | None = None) -> None:
        self._name, self._calls, self._raises_in, self._error = name, calls, raises_in, error

    def _note(self, method: str, *details: Any) -> None:
        self._calls.append((self._name, method, *details))
        if method == self._raises_in and self._error is not None:
            raise self._error

    def on_run_start(self, run: Any) -> None:
        self._note("start")

    def on_step_end(self, run: Any, report: Any) -> None:
        self._note("step", report.step)

    def on_step_not_finite(self, run: Any, drawn: Any) -> None:
        self._note("not finite", drawn.num_slots)

    def on_stop(self, run: Any) -> None:
        self._note("stop")

    def on_run_end(self, run: Any, end: RunEnd) -> None:
        self._note("end", end)


class Rig:
    """A loop of four steps with two hooks."""

    def __init__(self, folder: Path, start_step: int = 0, skips: bool = False, **second: Any) -> None:
        self.calls: list[Any] = []
        changes = {"train.max_skipped_steps": 2}
        recipe = tiny_recipe(0, folder, Path("none.jsonl"), STEPS, changes)
        run = Run(recipe, RunFolder(folder), True, start_step, STEPS)
        self.state: Any = SimpleNamespace(step=start_step, samples_seen=0)
        losses = SimpleNamespace(
            total=1.0,
            flow_matching=1.0,
            semantic=0.0,
            num_tokens=9,
            grouped={},
            sample_digest="d",
            slot_sample_indices=(),
        )
        outcome = SimpleNamespace(
            losses=losses,
            gradient_norm=1.0,
            skipped="loss is nan" if skips else None,
            is_finite=not skips,
            model_tflop=0.5,
        )
        step: Any = SimpleNamespace(run=lambda drawn, rate: outcome)
        dataset: Any = None
        hooks = [NotingHook("first", self.calls), NotingHook("second", self.calls, **second)]
        self.loop = Loop(run, dataset, self.state, step, hooks)

    def run(self, after: int = STEPS, error: BaseException | None = None) -> RunEnd:
        """Gives so many batches, then the error."""
        return self.loop.run(batches(after, error))

    def of(self, method: str) -> list[Any]:
        return [call for call in self.calls if call[1] == method]


def batches(count: int, error: BaseException | None) -> Iterator[Any]:
    for _ in range(count):
        yield SimpleNamespace(num_slots=3, num_image_slots=1)
    if error is not None:
        raise error


def both(method: str, *details: Any) -> list[Any]:
    return [("first", method, *details), ("second", method, *details)]


def test_a_run_to_the_last_step_finishes_and_hears_nothing_of_a_stop(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    # The request comes during the last step: there is none after it that would not be taken.
    assert rig.run(STEPS, RunStopped(signal.SIGUSR1)) == RunEnd("finished")
    assert rig.calls == [
        *both("start"),
        *(call for step in range(1, STEPS + 1) for call in both("step", step)),
        *both("end", RunEnd("finished")),
    ]
    assert (rig.state.step, rig.state.samples_seen) == (STEPS, 3 * STEPS)


@pytest.mark.parametrize("after", [0, 2])
def test_a_request_ends_the_run_at_a_step_boundary(tmp_path: Path, after: int) -> None:
    rig = Rig(tmp_path)
    assert rig.run(after, RunStopped(signal.SIGUSR1)) == STOPPED
    steps = [call for step in range(1, after + 1) for call in both("step", step)]
    assert rig.calls == [*both("start"), *steps, *both("stop"), *both("end", STOPPED)]
    assert rig.state.step == after


def test_a_finished_run_that_is_started_again_has_nothing_to_stop(tmp_path: Path) -> None:
    rig = Rig(tmp_path, start_step=STEPS)
    assert rig.run(0, RunStopped(signal.SIGTERM)) == RunEnd("finished")
    assert rig.of("stop") == []


def test_a_save_that_fails_at_the_stop_fails_the_run(tmp_path: Path) -> None:
    """Else the job would start again as if nothing had been lost."""
    rig = Rig(tmp_path, raises_in="stop", error=CheckpointError("the disk is full"))
    with pytest.raises(CheckpointError, match="the disk is full"):
        rig.run(2, RunStopped(signal.SIGUSR1))
    assert rig.of("stop") == both("stop")
    assert rig.of("end") == both("end", RunEnd("refused", "the disk is full"))


@pytest.mark.parametrize(
    ("error", "end"),
    [
        (ConfigError("no\n  such manifest"), RunEnd("refused", "no such manifest")),
        (UserError("the disk is full"), RunEnd("refused", "the disk is full")),
        # One node lost touch with its storage: another may not have.
        (UserError("no save: Stale file handle"), RunEnd("failed", "UserError: no save: Stale file handle")),
        (DataError("all clips are bad"), RunEnd("refused", "all clips are bad")),
        (SupersededError("life 2 has begun"), RunEnd("superseded", "life 2 has begun")),
        (KeyboardInterrupt(), RunEnd("interrupted", "by the keyboard")),
        (RuntimeError("CUDA out\nof memory"), RunEnd("failed", "RuntimeError: CUDA out of memory")),
        (
            RuntimeError("[pair.cc:553] Connection closed by peer [10.0.0.1]"),
            RunEnd("failed", "lost touch with another rank, which has ended"),
        ),
        (MemoryError(), RunEnd("failed", "MemoryError: ")),
        (SystemExit(3), RunEnd("failed", "SystemExit: 3")),
    ],
)
@pytest.mark.parametrize("place", ["batches", "start", "step"])
def test_every_error_has_its_reason_and_passes_on(
    tmp_path: Path, error: BaseException, end: RunEnd, place: str
) -> None:
    rig = Rig(tmp_path) if place == "batches" else Rig(tmp_path, raises_in=place, error=error)
    with pytest.raises(type(error)) as caught:
        rig.run(1, error if place == "batches" else None)
    assert caught.value is error
    assert rig.of("end") == both("end", end)
    assert rig.of("stop") == []


def test_a_run_that_skips_every_step_is_refused(tmp_path: Path) -> None:
    rig = Rig(tmp_path, skips=True)
    with pytest.raises(TrainingStalledError) as caught:
        rig.run()
    assert not caught.value.told_by_first_rank
    (_, _, end), _ = rig.of("end")
    assert end.reason == "refused" and "train.max_skipped_steps" in end.message
    # Heard of with the step's samples before it is counted, the last one too.
    assert rig.calls[2:6] == [*both("not finite", 3), *both("step", 1)] and len(rig.of("not finite")) == 4
    assert rig.state.step == 1


def test_a_hook_that_fails_at_the_end_silences_no_other(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    calls_after: list[str] = []

    class LastHook(Hook):
        def on_run_end(self, run: Any, end: RunEnd) -> None:
            calls_after.append(end.reason)

    rig = Rig(tmp_path, raises_in="end", error=OSError("no room"))
    rig.loop._hooks = [*rig.loop._hooks, LastHook()]
    with pytest.raises(DataError):
        rig.run(1, DataError("all clips are bad"))
    assert calls_after == ["refused"]
    assert "NotingHook failed at the end of the run" in caplog.text
