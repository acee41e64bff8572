"""Two ranks of which one is told to stop, and two of which one is slow.

Two ranks are started twice: once as the command line starts them, to be told from outside, and once for the rest.
"""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from sama_mega.train.hooks.pace import WORTH_A_WORD
from sama_mega.train.pace import RankPace, how_far_behind
from tests.support.distributed import run_distributed
from tests.support.mixed_world import meeting_points
from tests.support.tiny_recipe import (
    assert_bitwise_equal,
    newest_checkpoint,
    read_rows,
    recipe_path,
    repeatable,
    tiny_overrides,
    tiny_recipe,
    tiny_world,
    wait_until,
)

pytestmark = pytest.mark.distributed

STEPS, EVERY = 60, 50
TOLD_AFTER = 5
PACE_EVERY, SLOW_STEPS, SLOW_SECONDS = 4, 8, 0.3
TIMEOUT_SECONDS = 120.0
CHANGES: dict[str, Any] = {
    "parallel.data": 2,
    "checkpoint.every": EVERY,
    "optimizer.warmup_steps": 3,
    "track.log_sample_ids": True,
    "train.pace_every": PACE_EVERY,
}


@dataclass(frozen=True)
class Runs:
    """Run folders: one whose second rank was told to stop and that went on later, and one with a slow second rank.

    Attributes:
        statuses: Exit statuses of the ranks that were stopped.
        said: What the first of them printed.
        stopped_at: Steps with a row when they had ended.
        saved: Names of the checkpoints then.
    """

    told: Path
    slow: Path
    statuses: list[int | None]
    said: str
    stopped_at: int
    saved: list[str]


# --- run by the two ranks -------------------------------------------------------------------------


def two_ranks(told: str, slow: str, manifest: str, meet_in: str) -> None:
    """Goes on with the run that was stopped, and runs another without a stop."""
    from sama_mega.train import step
    from sama_mega.train.run import train

    meet = meeting_points(Path(meet_in))
    meet("told")
    train(tiny_recipe(0, Path(told), Path(manifest), STEPS, CHANGES))
    if os.environ["RANK"] == "1":
        step.run_forward_backward = slowed(step.run_forward_backward)
    meet("slow")
    train(tiny_recipe(0, Path(slow), Path(manifest), STEPS, CHANGES))


def slowed(passes: Callable[..., None]) -> Callable[..., None]:
    """The passes of a step on a bad node, in the first steps."""
    done = 0

    def run(*arguments: Any) -> None:
        nonlocal done
        done += 1
        if done <= SLOW_STEPS:
            time.sleep(SLOW_SECONDS)
        passes(*arguments)

    return run


# --- started once ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    from sama_mega.parallel.launch import end_ranks, start_ranks, wait_for_ranks

    root, manifest = tmp_path_factory.mktemp("two"), tiny_world(tmp_path_factory) / "raw.jsonl"
    told, slow, logs = root / "told", root / "slow", [root / "0.txt", root / "1.txt"]
    overrides = tiny_overrides(told, manifest, STEPS, CHANGES)
    command = [sys.executable, "-m", "sama_mega", "train", "--json", str(recipe_path(0)), *overrides]
    ranks = start_ranks(2, command, root, [*logs])
    try:
        wait_until(lambda: len(read_rows(told)) >= TOLD_AFTER, ranks, TIMEOUT_SECONDS)
        ranks[1].send_signal(signal.SIGUSR1)
        wait_for_ranks(ranks, 2.0, TIMEOUT_SECONDS)
    except (AssertionError, TimeoutError) as error:
        raise AssertionError("\n".join([str(error), *(log.read_text() for log in logs)])) from error
    finally:
        end_ranks(ranks)
    statuses, said = [rank.returncode for rank in ranks], logs[0].read_text()
    stopped_at, saved = len(read_rows(told)), sorted(path.name for path in (told / "checkpoints").iterdir())
    run_distributed(two_ranks, 2, TIMEOUT_SECONDS, (str(told), str(slow), str(manifest), str(root)))
    return Runs(told, slow, statuses, said, stopped_at, saved)


# --- one is told ----------------------------------------------------------------------------------


def test_both_stop_at_the_same_step_and_save_it(runs: Runs) -> None:
    assert runs.statuses == [0, 0], runs.said
    said = json.loads(runs.said.splitlines()[-1])
    assert (said["ended"], said["steps"]) == ("stopped", runs.stopped_at)
    assert TOLD_AFTER <= runs.stopped_at < EVERY, "it was stopped before anything was due to be saved"
    assert runs.saved == [f"step-{runs.stopped_at:08d}"]


def test_the_first_life_says_so(runs: Runs) -> None:
    from sama_mega.train.lives import read_lives
    from sama_mega.train.run_folder import RunFolder

    first, second = read_lives(RunFolder(runs.told))
    assert (first.reason, first.message, first.num_ranks) == ("stopped", "told to stop by SIGUSR1", 2)
    assert (first.last_step, second.start_step) == (runs.stopped_at, runs.stopped_at)
    assert (second.reason, second.last_step) == ("finished", STEPS)


def test_they_go_on_bit_for_bit(runs: Runs) -> None:
    from sama_mega.parallel.checkpoint_io import read_plain

    ours, truth = ([repeatable(row) for row in read_rows(folder)] for folder in (runs.told, runs.slow))
    assert [row["step"] for row in ours] == list(range(1, STEPS + 1))
    assert ours == truth
    assert_bitwise_equal(*(read_plain(newest_checkpoint(folder)) for folder in (runs.told, runs.slow)))


def test_every_rank_has_a_log_of_each_life(runs: Runs) -> None:
    logs = sorted(str(path.relative_to(runs.told / "logs")) for path in (runs.told / "logs").rglob("*.txt"))
    assert logs == [f"life-{life:04d}/rank-{rank:05d}.txt" for life in (1, 2) for rank in (0, 1)]


# --- one is slow ----------------------------------------------------------------------------------


def pace_rows(runs: Runs) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (runs.slow / "pace.jsonl").read_text().splitlines()]


def test_all_ranks_are_timed_at_the_interval(runs: Runs) -> None:
    rows = pace_rows(runs)
    assert [row["step"] for row in rows] == list(range(PACE_EVERY, STEPS + 1, PACE_EVERY))
    for row in rows:
        assert [rank["node"] for rank in row["ranks"]] == [os.uname().nodename] * 2
        assert all(rank["computing_seconds"] > 0 and rank["reading_seconds"] > 0 for rank in row["ranks"])


def test_the_slow_rank_is_told_from_the_one_that_waits_for_it(runs: Runs) -> None:
    # The first steps of a process take as long as they like.
    rows = {row["step"]: row["ranks"] for row in pace_rows(runs)}
    waiting, slow = (rank["computing_seconds"] for rank in rows[SLOW_STEPS])
    assert slow > SLOW_SECONDS > waiting
    steps = {row["step"]: row["step_seconds"] for row in read_rows(runs.slow)}
    assert steps[SLOW_STEPS] > SLOW_SECONDS, "both ranks' steps take as long as the slow one's"


def test_the_log_names_it(runs: Runs) -> None:
    lines = [line for line in (runs.slow / "log.txt").read_text().splitlines() if "own time of 2 ranks" in line]
    lagging = [how_far_behind([RankPace(**rank) for rank in row["ranks"]]) >= WORTH_A_WORD for row in pace_rows(runs)]
    assert len(lines) == sum(lagging) and lagging[SLOW_STEPS // PACE_EVERY - 1]
    of_the_slow_steps = lines[sum(lagging[: SLOW_STEPS // PACE_EVERY]) - 1]
    named = re.search(r"slowest rank (\d) on (\S+), .* most of it (\w+)$", of_the_slow_steps)
    assert named is not None and named.groups() == ("1", os.uname().nodename, "computing")
