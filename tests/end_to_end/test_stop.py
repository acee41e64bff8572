"""A run that a real signal tells to stop: at any moment it ends well, all of it saved, and goes on bit for bit."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from sama_mega.checkpoint import write
from sama_mega.parallel.checkpoint_io import read_plain
from sama_mega.train import run as run_module
from sama_mega.train.hooks.checkpoint import CheckpointHook
from sama_mega.train.lives import LifeRecord, read_lives
from sama_mega.train.run_folder import RunFolder
from sama_mega.train.step import TrainStep
from sama_mega.train.stop import StopRequest
from tests.support.tiny_recipe import (
    REPOSITORY,
    assert_bitwise_equal,
    call_main,
    newest_checkpoint,
    read_rows,
    recipe_path,
    repeatable,
    tiny_overrides,
    tiny_world,
    wait_until,
)

SIGNALS = (signal.SIGUSR1, signal.SIGTERM)
STEPS, EVERY = 10, 4
LONG_STEPS = 2000
"""More than a process takes before it is told to stop from outside."""
TIMEOUT_SECONDS = 90.0


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_world(tmp_path_factory)


def train_arguments(run_folder: Path, world: Path, steps: int = STEPS) -> list[str]:
    changes = {"checkpoint.every": EVERY, "checkpoint.keep": 9, "track.log_sample_ids": True}
    # A schedule that depends on the last step would tell a long run from a short one.
    changes |= {"optimizer.warmup_steps": 3}
    return ["train", "--json", str(recipe_path(0)), *tiny_overrides(run_folder, world / "raw.jsonl", steps, changes)]


@dataclass(frozen=True)
class Uninterrupted:
    """What every run below must come to."""

    rows: list[dict[str, Any]]
    tensors: dict[str, Any]


@pytest.fixture(scope="module")
def truth(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Uninterrupted:
    folder = tmp_path_factory.mktemp("uninterrupted")
    assert call_main(*train_arguments(folder, world)) == 0
    return Uninterrupted([repeatable(row) for row in read_rows(folder)], read_plain(newest_checkpoint(folder)))


@pytest.fixture(autouse=True)
def nobody_listens() -> Iterator[list[int]]:
    """A signal that comes outside a run is noted; it would end the tests."""
    heard: list[int] = []

    def listen(number: int, frame: FrameType | None) -> None:
        heard.append(number)

    before = {number: signal.signal(number, listen) for number in SIGNALS}
    yield heard
    for number, handler in before.items():
        signal.signal(number, handler)
    assert heard == []


class Run:
    """A run in this process, whose signals it sends itself."""

    def __init__(self, folder: Path, world: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
        self.folder = folder
        self.arguments = train_arguments(folder, world)
        self._patched, self._capfd = monkeypatch, capfd
        self.heard: list[int] = []
        request = StopRequest.request

        def noted(stop: StopRequest, number: int) -> None:
            request(stop, number)
            self.heard.append(number)

        monkeypatch.setattr(StopRequest, "request", noted)

    def send(self, *numbers: int) -> None:
        for number in numbers:
            count = len(self.heard)
            os.kill(os.getpid(), number)
            wait_until(lambda count=count: len(self.heard) > count, [], TIMEOUT_SECONDS)  # type: ignore[misc]

    def before(self, place: Any, name: str, action: Callable[..., object]) -> None:
        """Calls an action before a function, with its arguments; in the first life only."""
        function = getattr(place, name)

        def call(*arguments: Any, **options: Any) -> Any:
            action(*arguments)
            return function(*arguments, **options)

        self._patched.setattr(place, name, call)

    def signal_in_step(self, step: int, *numbers: int) -> None:
        self.before(TrainStep, "run", lambda _, drawn, rate: self.send(*numbers) if drawn.step == step - 1 else None)

    def live(self) -> dict[str, Any]:
        """One life; what `--json` says of it."""
        self._capfd.readouterr()
        assert call_main(*self.arguments) == 0
        captured = self._capfd.readouterr()
        assert "Traceback" not in captured.err and "error" not in captured.err
        return dict(json.loads(captured.out.splitlines()[-1]))

    def go_on(self) -> dict[str, Any]:
        """The next life, which nobody disturbs."""
        self._patched.undo()
        return self.live()

    def checkpoints(self) -> list[int]:
        """Hidden ones too."""
        names = [path.name for path in (self.folder / "checkpoints").iterdir()]
        return sorted(int(name.removeprefix("step-")) for name in names)

    def lives(self) -> list[LifeRecord]:
        return read_lives(RunFolder(self.folder))

    def assert_stopped(self, said: dict[str, Any], step: int, by: signal.Signals) -> None:
        assert (said["ended"], said["steps"], said["samples_seen"]) == ("stopped", step, 4 * step)
        newest = newest_checkpoint(self.folder)
        assert said["checkpoint"] == str(newest) and newest.name == f"step-{step:08d}"
        assert [row["step"] for row in read_rows(self.folder)] == list(range(1, step + 1))
        life = self.lives()[-1]
        assert (life.reason, life.last_step, life.message) == ("stopped", step, f"told to stop by {by.name}")
        assert f"told to stop by {by.name} after step {step} of" in (self.folder / "log.txt").read_text()

    def assert_goes_on_as(self, truth: Uninterrupted) -> None:
        """In the next life."""
        start = self.lives()[-1].last_step
        said = self.go_on()
        assert (said["ended"], said["steps"]) == ("finished", STEPS)
        assert (self.lives()[-1].start_step, self.lives()[-1].reason) == (start, "finished")
        assert [repeatable(row) for row in read_rows(self.folder)] == truth.rows
        assert_bitwise_equal(read_plain(newest_checkpoint(self.folder)), truth.tensors)


@pytest.fixture
def run(tmp_path: Path, world: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    return Run(tmp_path / "run", world, monkeypatch, capfd)


# --- moments --------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_in_the_middle(run: Run, truth: Uninterrupted, number: signal.Signals) -> None:
    run.signal_in_step(6, number)
    run.assert_stopped(run.live(), 6, number)
    assert run.checkpoints() == [4, 6]
    run.assert_goes_on_as(truth)
    assert run.checkpoints() == [4, 6, 8, 10]


@pytest.mark.parametrize("place", ["load_recipe", "build_train_state", "begin_life"])
def test_before_the_first_step(run: Run, truth: Uninterrupted, place: str) -> None:
    from sama_mega.commands import train as command

    run.before(command if place == "load_recipe" else run_module, place, lambda *_: run.send(signal.SIGUSR1))
    said = run.live()
    assert (said["ended"], said["steps"], said["checkpoint"]) == ("stopped", 0, None)
    assert run.checkpoints() == [] and read_rows(run.folder) == []
    (life,) = run.lives()
    assert (life.reason, life.start_step, life.last_step) == ("stopped", 0, 0)
    assert "nothing was done that could be lost" in (run.folder / "log.txt").read_text()
    run.assert_goes_on_as(truth)


def test_before_the_first_step_of_a_later_life(run: Run, truth: Uninterrupted) -> None:
    """Nothing is saved again, and what was saved is named."""
    run.signal_in_step(6, signal.SIGUSR1)
    run.live()
    saved_at = newest_checkpoint(run.folder).stat().st_mtime_ns
    run.before(run_module, "begin_life", lambda *_: run.send(signal.SIGUSR1))
    run.assert_stopped(run.live(), 6, signal.SIGUSR1)
    assert newest_checkpoint(run.folder).stat().st_mtime_ns == saved_at
    assert [life.start_step for life in run.lives()] == [0, 6]
    run.assert_goes_on_as(truth)


def test_twice_and_again_while_it_stops(run: Run, truth: Uninterrupted) -> None:
    """The batch script sends until the ranks are gone; the first signal names the end."""
    run.signal_in_step(6, signal.SIGUSR1, signal.SIGTERM)
    run.before(CheckpointHook, "on_stop", lambda *_: run.send(signal.SIGUSR1, signal.SIGTERM))
    run.before(CheckpointHook, "on_run_end", lambda *_: run.send(signal.SIGTERM))
    run.assert_stopped(run.live(), 6, signal.SIGUSR1)
    assert len(run.heard) == 5
    assert run.checkpoints() == [4, 6]
    run.assert_goes_on_as(truth)


@pytest.mark.parametrize("step", [4, 6])
def test_during_a_save(run: Run, truth: Uninterrupted, step: int) -> None:
    """The save of step 4 is under way when the run is told, in that step or later, and ends only after that."""
    told, there_when_told = threading.Event(), list[bool]()
    fourth = run.folder / "checkpoints/step-00000004"

    def tell(hook: CheckpointHook, loop: Any, report: Any) -> None:
        if report.step == step:
            run.send(signal.SIGUSR1)

    def note(*_: Any) -> None:
        there_when_told.append(fourth.exists())
        told.set()

    def wait_to_be_told(unfinished: Path, final: Path) -> None:
        assert told.wait(TIMEOUT_SECONDS)

    run.before(write, "put_in_place", wait_to_be_told)
    run.before(CheckpointHook, "on_step_end", tell)
    run.before(CheckpointHook, "on_stop", note)
    run.assert_stopped(run.live(), step, signal.SIGUSR1)
    assert there_when_told == [False]
    assert run.checkpoints() == [4, *([6] if step == 6 else [])]
    run.assert_goes_on_as(truth)


def test_in_the_last_step_it_finishes(run: Run, truth: Uninterrupted) -> None:
    run.signal_in_step(STEPS, signal.SIGUSR1)
    said = run.live()
    assert (said["ended"], said["steps"]) == ("finished", STEPS)
    assert run.lives()[-1].reason == "finished"
    assert [repeatable(row) for row in read_rows(run.folder)] == truth.rows


def test_a_save_that_fails_at_the_stop_is_no_stop(
    run: Run, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def full(unfinished: Path, final: Path) -> None:
        if final.name == "step-00000006":
            raise OSError(28, "No space left on device")

    run.before(write, "put_in_place", full)
    run.signal_in_step(6, signal.SIGUSR1)
    assert call_main(*run.arguments) == 2
    captured = capfd.readouterr()
    assert captured.out == "" and "No space left on device" in captured.err.splitlines()[-1]
    assert run.lives()[-1].reason == "refused" and run.checkpoints() == [4]


# --- another process ------------------------------------------------------------------------------


def test_a_process_ends_with_status_zero(world: Path, tmp_path: Path) -> None:
    """Told from outside, at a moment of the machine's choosing, by both signals."""
    folder = tmp_path / "run"
    command = [sys.executable, "-m", "sama_mega", *train_arguments(folder, world, LONG_STEPS)]
    with (tmp_path / "out.txt").open("w") as out, (tmp_path / "err.txt").open("w") as err:
        process = subprocess.Popen(
            command,
            cwd=REPOSITORY,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
        )
    try:
        wait_until(lambda: len(read_rows(folder)) >= 5, [process], TIMEOUT_SECONDS)
        process.send_signal(signal.SIGTERM)
        process.send_signal(signal.SIGUSR1)
        assert process.wait(TIMEOUT_SECONDS) == 0, (tmp_path / "err.txt").read_text()
    finally:
        process.kill()
        process.wait()
    said = json.loads((tmp_path / "out.txt").read_text().splitlines()[-1])
    rows = read_rows(folder)
    assert (said["ended"], said["steps"]) == ("stopped", len(rows)) and 5 <= len(rows) < LONG_STEPS
    assert newest_checkpoint(folder).name == f"step-{len(rows):08d}"
    (life,) = read_lives(RunFolder(folder))
    assert (life.reason, life.last_step) == ("stopped", len(rows))
