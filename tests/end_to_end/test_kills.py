"""A run that is killed again and again, at random moments and in the middle of saves, ends as if nothing had been."""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from sama_mega.checkpoint.folder import checkpoint_step, complete_checkpoints
from sama_mega.parallel.checkpoint_io import read_plain
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
)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

STEPS, EVERY, KEEP = 110, 2, 2
SEED = 7
MOST_STEPS_BETWEEN_KILLS = 9
TIMEOUT_SECONDS = 60.0
POLL_SECONDS = 0.001

# What a kill waits for, once so many more steps are done: ten kills, in an order that the seed draws.
MOMENTS: dict[str, int] = {"step": 3, "saving": 2, "pieces written": 2, "saved": 1, "deleting or saved": 1, "start": 1}


@dataclass(frozen=True)
class Kill:
    """What was there when a process was killed.

    Attributes:
        moment: What had been waited for.
        began_at: The step at which the process said it began, 0 for random weights; None when it did not get so far.
        last_row: The last step with a row.
        newest: Step of the newest complete checkpoint; 0 for none.
        was_saving: Whether a save was under way.
    """

    moment: str
    began_at: int | None
    last_row: int
    newest: int
    was_saving: bool


@dataclass(frozen=True)
class Runs:
    """A run that was killed ten times and then left alone, and one that was left alone from the start."""

    killed: Path
    uninterrupted: Path
    kills: list[Kill]


def arguments(run_folder: Path, world: Path) -> list[str]:
    changes = {"checkpoint.every": EVERY, "checkpoint.keep": KEEP, "train.precision": "bfloat16"}
    return ["train", str(recipe_path(0)), *tiny_overrides(run_folder, world / "raw.jsonl", STEPS, changes)]


def newest_step(folder: Path) -> int:
    found = complete_checkpoints(folder / "checkpoints")
    return (checkpoint_step(found[-1]) or 0) if found else 0


def hidden(folder: Path, pattern: str) -> bool:
    return any((folder / "checkpoints").glob(pattern))


def said_starts(folder: Path) -> list[int]:
    """Steps that the lives of a run said they began at; one that was killed before it could say so is left out."""
    log = (folder / "log.txt").read_text() if (folder / "log.txt").exists() else ""
    found = re.findall(r" INFO (?:resumed \S*/step-(\d+)|started from random weights)", log)
    return [int(step or 0) for step in found]


def number_of_lives(folder: Path) -> int:
    return len(list((folder / "lives").glob("*.json")))


def condition(moment: str, folder: Path, steps: int) -> Callable[[], bool]:
    """When to kill a process that is started now; `steps` is how many it is to take first."""
    lives, starts, start = number_of_lives(folder), len(said_starts(folder)), newest_step(folder)
    if moment == "start":
        return lambda: number_of_lives(folder) > lives

    def has_happened() -> bool:
        rows = read_rows(folder)
        # Before it has said where it starts, rows are those of the process before.
        if len(said_starts(folder)) == starts or not rows or rows[-1]["step"] < start + steps:
            return False
        return {
            "step": lambda: True,
            "saving": lambda: hidden(folder, ".saving-*"),
            "pieces written": lambda: hidden(folder, ".saving-*/*.distcp"),
            "saved": lambda: newest_step(folder) > start,
            "deleting or saved": lambda: hidden(folder, ".deleting-*") or newest_step(folder) > start + EVERY,
        }[moment]()

    return has_happened


@contextmanager
def started(command: list[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process that SIGKILL ends with the block."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            cwd=REPOSITORY,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def run_until_killed(folder: Path, world: Path, moment: str, steps: int, log: Path) -> None:
    has_happened = condition(moment, folder, steps)
    deadline = time.monotonic() + TIMEOUT_SECONDS
    with started([sys.executable, "-m", "sama_mega", *arguments(folder, world)], log) as process:
        while not has_happened():
            assert process.poll() is None, f"ended before it could be killed ({moment}):\n{log.read_text()}"
            assert time.monotonic() < deadline, f"{moment} did not happen:\n{log.read_text()}"
            time.sleep(POLL_SECONDS)
    assert process.returncode == -signal.SIGKILL


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    world, root = tiny_world(tmp_path_factory), tmp_path_factory.mktemp("kills")
    draw = random.Random(SEED)
    moments = [moment for moment, count in MOMENTS.items() for _ in range(count)]
    draw.shuffle(moments)
    folder, kills = root / "killed", []
    for number, moment in enumerate(moments):
        steps = draw.randint(1, MOST_STEPS_BETWEEN_KILLS)
        said_before = said_starts(folder)
        run_until_killed(folder, world, moment, steps, root / f"kill-{number}.txt")
        rows, said = read_rows(folder), said_starts(folder)[len(said_before) :]
        last_row, was_saving = rows[-1]["step"] if rows else 0, hidden(folder, ".saving-*")
        kills.append(Kill(moment, said[0] if said else None, last_row, newest_step(folder), was_saving))
    for name in ("killed", "uninterrupted"):
        assert call_main(*arguments(root / name, world)) == 0
    return Runs(folder, root / "uninterrupted", kills)


def test_kills_came_at_different_moments(runs: Runs) -> None:
    assert len(runs.kills) == 10
    assert sum(kill.was_saving for kill in runs.kills) >= 3
    assert len({kill.last_row for kill in runs.kills}) >= 6
    assert runs.kills[-1].newest < STEPS - MOST_STEPS_BETWEEN_KILLS


def test_every_life_goes_on_from_the_newest_checkpoint_of_the_kill(runs: Runs) -> None:
    began = [*(kill.began_at for kill in runs.kills[1:]), said_starts(runs.killed)[-1]]
    assert sum(start is not None for start in began) >= 9
    for kill, start in zip(runs.kills, began, strict=True):
        assert start in (kill.newest, None), (kill, start)


def test_no_more_is_lost_than_the_steps_since_the_save_before_last(runs: Runs) -> None:
    """A save begins only when the one before it is complete."""
    newest = [kill.newest for kill in runs.kills]
    assert newest == sorted(newest)
    for kill in runs.kills:
        assert kill.newest >= kill.last_row - 2 * EVERY, kill


def test_the_end_is_that_of_an_uninterrupted_run(runs: Runs) -> None:
    ours, truth = ([repeatable(row) for row in read_rows(folder)] for folder in (runs.killed, runs.uninterrupted))
    assert [row["step"] for row in ours] == list(range(1, STEPS + 1))
    assert ours == truth
    ends = [read_plain(newest_checkpoint(folder)) for folder in (runs.killed, runs.uninterrupted)]
    assert any(name.startswith("optimizer.master.") for name in ends[0])
    assert_bitwise_equal(*ends)
    for folder in (runs.killed, runs.uninterrupted):
        kept = [f"step-{step:08d}" for step in range(STEPS - EVERY * (KEEP - 1), STEPS + 1, EVERY)]
        assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == kept
