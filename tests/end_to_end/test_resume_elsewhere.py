"""Two ranks that SIGKILL ends in the middle of a blend, and one that goes on: the samples are those of one long run."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from sama_mega.checkpoint.folder import checkpoint_step
from sama_mega.parallel.launch import end_ranks, start_ranks
from tests.support.mixed_world import MIXED, write_mixed_world
from tests.support.processes import children_of, is_alive
from tests.support.tiny_recipe import (
    call_main,
    newest_checkpoint,
    read_rows,
    recipe_path,
    tiny_overrides,
    tiny_world,
    wait_until,
)

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(240)]

STEPS, EVERY, KILLED_AFTER = 14, 4, 9
TIMEOUT_SECONDS = 120.0


@dataclass(frozen=True)
class Runs:
    """What was found.

    Attributes:
        killed: The run folder of the run that was killed on two ranks and went on on one.
        uninterrupted: That of a run on one rank.
        rows_found: The rows of the killed run before it went on.
        resumed_at: The step of its checkpoint then.
        workers: The decoders of the two ranks.
    """

    killed: Path
    uninterrupted: Path
    rows_found: list[dict[str, Any]]
    resumed_at: int
    workers: list[int]


def run_until_killed(command: list[str], run_folder: Path, root: Path) -> list[int]:
    """Kills two ranks once they have saved and gone on; returns their decoders' processes."""
    logs = [root / "0.txt", root / "1.txt"]
    ranks: list[subprocess.Popen[bytes]] = start_ranks(2, command, root, [*logs])
    try:
        wait_until(lambda: len(read_rows(run_folder)) >= KILLED_AFTER, ranks, TIMEOUT_SECONDS)
        workers = [child for rank in ranks for child in children_of(rank.pid)]
        for rank in ranks:
            rank.kill()
    except AssertionError as error:
        raise AssertionError("\n".join([str(error), *(log.read_text() for log in logs)])) from error
    finally:
        end_ranks(ranks)
    return workers


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    root = tmp_path_factory.mktemp("elsewhere")
    manifests = [write_mixed_world(root / "mixed"), tiny_world(tmp_path_factory) / "raw.jsonl"]
    weights = (1.0, 0.75)
    blend = [{"manifest": str(path), "weight": weight} for path, weight in zip(manifests, weights, strict=True)]
    changes = MIXED | {"data.manifest": None, "data.blend": blend, "checkpoint.every": EVERY}

    def arguments(folder: Path) -> list[str]:
        return ["train", str(recipe_path(0)), *tiny_overrides(folder, manifests[0], STEPS, changes)]

    killed, uninterrupted = root / "killed", root / "uninterrupted"
    workers = run_until_killed([sys.executable, "-m", "sama_mega", *arguments(killed)], killed, root)
    rows_found, resumed_at = read_rows(killed), checkpoint_step(newest_checkpoint(killed)) or 0
    for folder in (killed, uninterrupted):
        assert call_main(*arguments(folder)) == 0
    return Runs(killed, uninterrupted, rows_found, resumed_at, workers)


def test_the_samples_of_both_lives_are_those_of_one_run(runs: Runs) -> None:
    assert 0 < runs.resumed_at < STEPS
    before = [row["sample_ids"] for row in runs.rows_found[: runs.resumed_at]]
    ours, truth = ([row["sample_ids"] for row in read_rows(folder)] for folder in (runs.killed, runs.uninterrupted))
    assert len(truth) == STEPS
    assert before + ours[runs.resumed_at :] == truth
    assert ours == truth
    lives = sorted(path.name for path in (runs.killed / "lives").glob("*.json"))
    assert len(lives) == 2


def test_the_blend_is_mixed(runs: Runs) -> None:
    """Else the test above would show little."""
    rows = read_rows(runs.uninterrupted)
    drawn = [name for row in rows for name in row["sample_ids"]]
    assert {name.partition(":")[0] for name in drawn} == {"0", "1"}
    assert all(row["num_images"] == 3 and row["num_videos"] == 5 for row in rows)
    assert len(set(drawn)) > 25
    assert len(drawn) > len(set(drawn))  # rows return in later epochs


def test_killed_ranks_leave_no_decoder_behind(runs: Runs) -> None:
    assert len(runs.workers) >= 2
    wait_until(lambda: not any(map(is_alive, runs.workers)), [], TIMEOUT_SECONDS)
