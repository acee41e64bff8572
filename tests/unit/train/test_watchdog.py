"""The watchdog: when it bites, what it leaves behind, and that nothing keeps it from ending a process.

When it bites is asked with a clock that the test moves; what a real hang looks like, of real processes.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sama_mega.train import watchdog as module
from sama_mega.train.hooks.watchdog import WatchdogHook
from sama_mega.train.run_end import RunEnd
from sama_mega.train.run_folder import RunFolder
from sama_mega.train.watchdog import GRACE_SECONDS, HEAD_START_SECONDS, HUNG_STATUS, Watchdog
from tests.support.tiny_recipe import REPOSITORY, wait_until

PATIENCE_SECONDS = 30.0
HANG_SECONDS = 100.0
"""On the clock of the test; the interpreter's own timer, which is real, is taken away before it fires."""


class World:
    """A clock on which waiting takes no time, and what happens at some of its moments."""

    def __init__(self) -> None:
        self.now = 5000.0
        self.events: list[tuple[float, Callable[[], None]]] = []
        self.ended: list[tuple[float, int]] = []
        self.said: list[str] = []

    def after(self, seconds: float, action: Callable[[], None]) -> None:
        self.events = sorted([*self.events, (5000.0 + seconds, action)], key=lambda event: event[0])

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        until = self.now + seconds
        while self.events and self.events[0][0] <= until:
            self.now, action = self.events.pop(0)
            action()
        self.now = until

    def end_process(self, status: int) -> None:
        self.ended.append((self.now - 5000.0, status))


class Event:
    """threading.Event on the clock of a world."""

    def __init__(self, world: World) -> None:
        self._world, self._set = world, False

    def set(self) -> None:
        self._set = True

    def wait(self, seconds: float) -> bool:
        if not self._set:
            self._world.sleep(seconds)
        return self._set


@pytest.fixture(autouse=True)
def no_timer_left() -> Iterator[None]:
    """The interpreter's own timer would end the tests."""
    yield
    faulthandler.cancel_dump_traceback_later()


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    """Watching happens when a watchdog is started, on this thread and until it ends."""
    world = World()

    def thread(target: Callable[[], None], **_: Any) -> Any:
        return SimpleNamespace(start=target)

    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=world.monotonic, sleep=world.sleep))
    monkeypatch.setattr(module, "threading", SimpleNamespace(Event=lambda: Event(world), Thread=thread))
    return world


def make(world: World, folder: Path, rank: int = 0, num_ranks: int = 1) -> Watchdog:
    return Watchdog(HANG_SECONDS, stacks_in(folder), rank, num_ranks, world.said.append, world.end_process)


def stacks_in(folder: Path) -> Callable[[int], Path]:
    return lambda rank: folder / "stacks" / f"rank-{rank}.txt"


def put_stacks(folder: Path, rank: int) -> None:
    path = stacks_in(folder)(rank)
    path.parent.mkdir(exist_ok=True)
    path.write_text("stacks")


# --- when it bites --------------------------------------------------------------------------------


def test_steps_keep_it_quiet_and_silence_does_not(world: World, tmp_path: Path) -> None:
    dog = make(world, tmp_path)
    for step in range(1, 8):
        world.after(60 * step, lambda step=step: dog.beat(step))  # type: ignore[misc]
    dog.start(0)
    (ended,) = world.ended
    assert ended == (pytest.approx(7 * 60 + HANG_SECONDS, abs=0.2), HUNG_STATUS)
    assert "no step for 100 s after step 7" in world.said[0] and "train.hang_seconds 100" in world.said[0]


def test_a_step_in_the_last_moment_is_in_time(world: World, tmp_path: Path) -> None:
    dog = make(world, tmp_path)
    world.after(HANG_SECONDS, lambda: dog.beat(1))
    world.after(HANG_SECONDS + 50, dog.stop)
    dog.start(0)
    assert world.ended == [] and world.said == []


def test_a_step_while_the_others_write_their_stacks_is_too_late(world: World, tmp_path: Path) -> None:
    """They have given up by then: to go on would mean to wait for ranks that are gone."""
    dog = make(world, tmp_path, num_ranks=2)
    world.after(HANG_SECONDS + 1, lambda: dog.beat(1))
    world.after(HANG_SECONDS + 2, lambda: put_stacks(tmp_path, 1))
    dog.start(0)
    (ended,) = world.ended
    assert ended == (pytest.approx(HANG_SECONDS + 2, abs=0.2), HUNG_STATUS)


def test_a_stopped_watchdog_ends_nothing(world: World, tmp_path: Path) -> None:
    dog = make(world, tmp_path)
    world.after(HANG_SECONDS - 1, dog.stop)
    dog.start(0)
    dog.stop()
    assert world.ended == [] and not stacks_in(tmp_path)(0).exists()


# --- what it says ---------------------------------------------------------------------------------


def test_the_lowest_rank_speaks_once_all_have_written(world: World, tmp_path: Path) -> None:
    world.after(HANG_SECONDS + 3, lambda: put_stacks(tmp_path, 1))
    make(world, tmp_path, num_ranks=2).start(4)
    assert world.said == [
        "no step for 100 s after step 4 (train.hang_seconds 100): the stacks of 2 of 2 ranks are in"
        f" {tmp_path / 'stacks'}"
    ]
    assert world.ended[0][0] == pytest.approx(HANG_SECONDS + 3, abs=0.2)


def test_another_rank_is_silent_where_a_lower_one_has_written(world: World, tmp_path: Path) -> None:
    put_stacks(tmp_path, 0)
    make(world, tmp_path, rank=1, num_ranks=2).start(4)
    assert world.said == []
    # Not before the lower one had the time to speak: it would lose touch with this one.
    ((ended_after, _),) = world.ended
    assert ended_after == pytest.approx(HANG_SECONDS + HEAD_START_SECONDS, abs=0.2)


def test_the_lowest_rank_that_can_names_those_that_cannot(world: World, tmp_path: Path) -> None:
    put_stacks(tmp_path, 3)
    make(world, tmp_path, rank=1, num_ranks=5).start(4)
    (said,) = world.said
    assert "the stacks of 2 of 5 ranks" in said
    assert "none yet from ranks 0, 2, 4, stopped or on a node that is gone" in said
    assert world.ended[0][0] == pytest.approx(HANG_SECONDS + GRACE_SECONDS, abs=0.3)


@pytest.mark.parametrize(
    ("num_ranks", "words"), [(2, "from rank 1, "), (9, "from ranks 1, 2, 3, 4, 5, 6, 7, 8, s"), (10, "7, 8, ..., ")]
)
def test_a_long_list_of_ranks_is_cut(world: World, tmp_path: Path, num_ranks: int, words: str) -> None:
    make(world, tmp_path, num_ranks=num_ranks).start(0)
    assert words in world.said[0]


def test_stacks_that_cannot_be_written_are_not_promised(
    world: World, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "stacks").write_text("a file in place of the folder")
    make(world, tmp_path, num_ranks=2).start(4)
    assert "the stacks of 0 of 2 ranks" in world.said[0] and "none yet from ranks 0, 1" in world.said[0]
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    assert str(stacks_in(tmp_path)(0)) in caplog.text
    assert world.ended[0][1] == HUNG_STATUS


def waits_for_an_event_that_never_comes(event: threading.Event) -> bool:
    return event.wait(PATIENCE_SECONDS)


def test_the_stacks_show_what_every_thread_does(tmp_path: Path) -> None:
    ended, statuses, said = threading.Event(), list[int](), list[str]()

    def end_process(status: int) -> None:
        statuses.append(status)
        ended.set()

    dog = Watchdog(0.2, stacks_in(tmp_path), 0, 1, said.append, end_process)
    dog.start(7)
    assert waits_for_an_event_that_never_comes(ended)
    assert statuses == [HUNG_STATUS] and len(said) == 1
    header, *stacks = stacks_in(tmp_path)(0).read_text().splitlines()
    assert header.startswith(f"rank 0 on {os.uname().nodename}, process {os.getpid()}: no step for 0 s after step 7")
    assert any("waits_for_an_event_that_never_comes" in line for line in stacks)
    assert any("_write_stacks" in line for line in stacks)
    assert [path.name for path in (tmp_path / "stacks").iterdir()] == ["rank-0.txt"]


# --- the hook -------------------------------------------------------------------------------------


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What a watchdog of the hook was told."""
    calls: list[Any] = []

    class Recorder:
        def __init__(self, timeout_seconds: float, stacks_path: Any, rank: int, num_ranks: int, on_hang: Any) -> None:
            calls.append((timeout_seconds, stacks_path(1), rank, num_ranks, on_hang))
            self.start = lambda step: calls.append(("start", step))
            self.beat = lambda step: calls.append(("beat", step))
            self.stop = lambda: calls.append("stop")

    monkeypatch.setattr("sama_mega.train.hooks.watchdog.Watchdog", Recorder)
    return calls


def drive(hang_seconds: float | None, folder: Path) -> Callable[[str], None]:
    """The hook as the loop drives it; returns what it was to call when a run hangs."""
    train = SimpleNamespace(hang_seconds=hang_seconds)
    run: Any = SimpleNamespace(recipe=SimpleNamespace(train=train), folder=RunFolder(folder), start_step=4)
    context: Any = SimpleNamespace(rank=2, world_size=4)

    def on_hang(line: str) -> None:
        """Nothing hangs here."""

    hook = WatchdogHook(context, 3, on_hang)
    hook.on_run_start(run)
    for step in (5, 6):
        report: Any = SimpleNamespace(step=step)
        hook.on_step_end(run, report)
    hook.on_run_end(run, RunEnd("finished"))
    return on_hang


def test_the_hook_tells_of_every_step(made: list[Any], tmp_path: Path) -> None:
    on_hang = drive(30.0, tmp_path)
    stacks_path = RunFolder(tmp_path).stacks_path(3, 1)
    assert made == [(30.0, stacks_path, 2, 4, on_hang), ("start", 4), ("beat", 5), ("beat", 6), "stop"]


def test_it_can_be_switched_off(made: list[Any], tmp_path: Path) -> None:
    drive(None, tmp_path)
    assert made == []


# --- real processes -------------------------------------------------------------------------------

PROGRAM = """
import ctypes, sys, threading
from pathlib import Path
from sama_mega.train import watchdog

folder, grace_seconds, timeout_seconds, how = Path(sys.argv[1]), float(sys.argv[2]), float(sys.argv[3]), sys.argv[4]
watchdog.GRACE_SECONDS = grace_seconds

def hangs_between_calls():
    threading.Event().wait(60)

def hangs_and_holds_the_lock():
    ctypes.PyDLL(None).sleep(60)

watchdog.Watchdog(timeout_seconds, lambda rank: folder / f"rank-{rank}.txt", 0, 1, print).start(3)
(folder / "started").touch()
globals()[how]()
"""


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts a process that hangs; it is ended with the test."""
    started: list[subprocess.Popen[str]] = []

    def start(how: str, grace_seconds: float, timeout_seconds: float) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", PROGRAM, str(tmp_path), str(grace_seconds), str(timeout_seconds), how]
        process = subprocess.Popen(
            command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True
        )
        started.append(process)
        wait_until((tmp_path / "started").exists, [process], PATIENCE_SECONDS)  # type: ignore[list-item]
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_a_process_whose_main_thread_hangs_is_ended(
    start: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    process = start("hangs_between_calls", 60.0, 0.3)
    _, complaints = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == HUNG_STATUS == 1
    assert complaints == ""
    stacks = (tmp_path / "rank-0.txt").read_text()
    assert "hangs_between_calls" in stacks and f"process {process.pid}: no step for 0 s after step 3" in stacks


def test_a_process_that_holds_python_s_lock_is_ended_by_the_interpreter(
    start: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    process = start("hangs_and_holds_the_lock", 0.1, 0.3)
    _, complaints = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == HUNG_STATUS
    assert "hangs_and_holds_the_lock" in complaints, "no thread of Python's could run: the stacks are on stderr"
    assert not (tmp_path / "rank-0.txt").exists()


def test_a_process_that_was_stopped_writes_its_stacks_once_it_is_continued(
    start: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    process = start("hangs_between_calls", 60.0, 1.0)
    os.kill(process.pid, signal.SIGSTOP)
    stopped_at = time.monotonic()
    wait_until(lambda: time.monotonic() > stopped_at + 1.3, [process], PATIENCE_SECONDS)  # type: ignore[list-item]
    assert not (tmp_path / "rank-0.txt").exists()
    os.kill(process.pid, signal.SIGCONT)
    process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == HUNG_STATUS
    assert "hangs_between_calls" in (tmp_path / "rank-0.txt").read_text()
