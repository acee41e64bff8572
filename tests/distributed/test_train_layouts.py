"""The same run in one process, on two tensor ranks and on two data ranks; kills, resumes and disagreeing ranks.

Two ranks are started twice: once as the command line starts them, to be killed, and once for everything else, run
after run in the same two processes. What they wrote is compared in this process with runs of its own.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import Tensor

from tests.support.distributed import run_distributed
from tests.support.mixed_world import (
    CLIPS,
    LIMIT,
    MIXED,
    assert_same_steps,
    distance,
    meeting_points,
    what_is_raised,
    write_mixed_world,
)
from tests.support.tiny_recipe import (
    alone,
    assert_bitwise_equal,
    newest_checkpoint,
    read_rows,
    recipe_path,
    repeatable,
    tiny_overrides,
    tiny_recipe,
    wait_until,
)

pytestmark = pytest.mark.distributed

STEPS = 10
FEW_STEPS = 4
KILL_STEPS, KILL_EVERY, KILL_AFTER = 50, 4, 14
TIMEOUT_SECONDS = 120.0
MOVED = 1e-3
"""Least relative distance of every parameter from its start: parameters at rest would agree in any layout."""

LAYOUTS: dict[str, dict[str, Any]] = {
    "tensor": {"parallel.tensor": 2},
    "tensor_without_sequence": {"parallel.tensor": 2, "parallel.sequence": False},
    "data": {"parallel.data": 2},
    "data_overlapped": {
        "parallel.data": 2,
        "parallel.overlap_grad_reduce": True,
        "parallel.overlap_param_gather": True,
    },
}
UNEVEN: dict[str, dict[str, Any]] = {
    # Three slots for two ranks, and the only image on one of them.
    "one_image": {"data.images_per_step": 1, "data.videos_per_step": 2},
    # One slot for two ranks: one has nothing to do.
    "one_video": {"data.images_per_step": 0, "data.videos_per_step": 1},
}
# What no run starts or goes on with: both ranks must say the same and end, and neither wait for the other.
REFUSED: dict[str, dict[str, Any]] = {
    "disagreement": LAYOUTS["tensor"],
    "one_bad_rank": {"data.images_per_step": 2, "data.videos_per_step": 1},
    "idle_overlap": {"data.images_per_step": 0, "data.videos_per_step": 1, "parallel.overlap_grad_reduce": True},
    "another_recipe": LAYOUTS["data"],
}


@dataclass(frozen=True)
class Runs:
    """Run folders by name: of one process, and of two ranks; what the two ranks said of what is refused."""

    alone: dict[str, Path]
    together: dict[str, Path]
    refusals: dict[str, set[str]]
    edits: tuple[Path, Path]


# --- the material ---------------------------------------------------------------------------------


def spoil(world: Path, copy: Path, pattern: str) -> Path:
    """A copy of the world in which some files are cut short: one rank's bad disk."""
    shutil.copytree(world.parent, copy)
    for clip in copy.glob(pattern):
        clip.write_bytes(clip.read_bytes()[:200])
    return copy / world.name


# --- run by the two ranks -------------------------------------------------------------------------


def two_ranks(folder: str, mixed: str, killed: str) -> dict[str, str]:
    """Trains run after run; returns what this rank said of what is refused."""
    from sama_mega.train.run import train

    root = Path(folder)
    meet = meeting_points(root)
    for name, layout in LAYOUTS.items():
        meet(name)
        train(tiny_recipe(0, root / name, Path(mixed), STEPS, MIXED | layout))
    for name, counts in UNEVEN.items():
        meet(name)
        train(tiny_recipe(0, root / name, Path(mixed), FEW_STEPS, MIXED | counts))
    meet("edit")
    edit_a_clip(root / "tensor", Path(mixed), root / "edit.mp4")
    # The first half at tensor 2: the test's own process goes on alone.
    meet("half_tensor")
    train(tiny_recipe(0, root / "half", Path(mixed), STEPS, MIXED | LAYOUTS["tensor"] | half()))
    meet("uninterrupted")
    train(tiny_recipe(0, root / "uninterrupted", Path(mixed), KILL_STEPS, kill_changes()))
    meet("killed")
    train(tiny_recipe(0, Path(killed), Path(mixed), KILL_STEPS, kill_changes()))
    return {name: try_to_train(root, Path(mixed), name, meet) for name in REFUSED}


def try_to_train(root: Path, mixed: Path, name: str, meet: Callable[[str], None]) -> str:
    """What ends a run that must not go on; the same relative manifest is another file on each rank."""
    from sama_mega.train.run import train

    rank = int(os.environ["RANK"])
    worlds = {"disagreement": [mixed.parent, root / "one_spoilt"][rank], "one_bad_rank": root / "all_spoilt"}
    os.chdir(worlds.get(name, mixed.parent))
    seed = {"train.seed": rank} if name == "another_recipe" else {}
    meet(name)
    return what_is_raised(
        lambda: train(tiny_recipe(0, root / name, Path(mixed.name), STEPS, MIXED | REFUSED[name] | seed))
    )


def edit_a_clip(run_folder: Path, mixed: Path, out: Path) -> None:
    from sama_mega.commands import edit

    clip = mixed.parent / "source1.mp4"
    assert edit.run(run_folder, clip, "Make it red.", out, steps=2, guidance=3.0, weights="model") == 0


def kill_changes() -> dict[str, Any]:
    return MIXED | LAYOUTS["data"] | {"checkpoint.every": KILL_EVERY, "checkpoint.keep": 3}


def half() -> dict[str, Any]:
    return {"checkpoint.every": STEPS // 2, "checkpoint.keep": 9}


# --- started once ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_mixed_world(tmp_path_factory.mktemp("layouts") / "mixed")


@pytest.fixture(scope="module")
def killed(mixed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a run on two ranks, both of which were ended by SIGKILL between two checkpoints."""
    from sama_mega.parallel.launch import end_ranks, start_ranks

    folder, logs = tmp_path_factory.mktemp("killed"), tmp_path_factory.mktemp("ranks")
    arguments = tiny_overrides(folder, mixed, KILL_STEPS, kill_changes())
    command = [sys.executable, "-m", "sama_mega", "train", str(recipe_path(0)), *arguments]
    ranks = start_ranks(2, command, logs, [logs / "0.log", logs / "1.log"])
    try:
        wait_until(lambda: len(read_rows(folder)) >= KILL_AFTER, ranks, TIMEOUT_SECONDS)
    except AssertionError as error:
        raise AssertionError(f"{error}\n{(logs / '0.log').read_text()}") from error
    finally:
        end_ranks(ranks)
    assert [rank.returncode for rank in ranks] == [-signal.SIGKILL] * 2
    return folder


@pytest.fixture(scope="module")
def rows_before_resuming(killed: Path) -> list[dict[str, Any]]:
    return read_rows(killed)


@pytest.fixture(scope="module")
def runs(
    mixed: Path, killed: Path, rows_before_resuming: list[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory
) -> Runs:
    from sama_mega.train.run import train

    folder = tmp_path_factory.mktemp("runs")
    spoil(mixed, folder / "one_spoilt", "raw0.mp4")
    spoil(mixed, folder / "all_spoilt", "*.mp4")
    said = run_distributed(two_ranks, 2, TIMEOUT_SECONDS, (str(folder), str(mixed), str(killed)))
    alone = folder / "alone"
    train(tiny_recipe(0, alone / "mixed", mixed, STEPS, MIXED))
    for name, counts in UNEVEN.items():
        train(tiny_recipe(0, alone / name, mixed, FEW_STEPS, MIXED | counts))
    shutil.copytree(folder / "half", alone / "half")
    shutil.rmtree(alone / "half" / "checkpoints" / f"step-{STEPS:08d}")
    train(tiny_recipe(0, alone / "half", mixed, STEPS, MIXED | half()))
    edit_a_clip(folder / "tensor", mixed, folder / "edit_alone.mp4")
    together = {path.name: path for path in folder.iterdir() if (path / "metrics.jsonl").exists()}
    return Runs(
        {path.name: path for path in alone.iterdir()},
        together | {"killed": killed},
        {name: {rank[name] for rank in said} for name in REFUSED},
        (folder / "edit.mp4", folder / "edit_alone.mp4"),
    )


# --- comparisons ----------------------------------------------------------------------------------


def tensors(run_folder: Path, section: str = "") -> dict[str, Tensor]:
    from sama_mega.parallel.checkpoint_io import read_plain

    return read_plain(newest_checkpoint(run_folder), section)


def assert_same_tensors(ours: Path, truth: Path) -> None:
    """Weights, moving average and moments, each within the limit."""
    mine, true = tensors(ours), tensors(truth)
    assert mine.keys() == true.keys()
    errors = {name: distance(mine[name], true[name]) for name in true}
    worst = max(errors, key=lambda name: errors[name])
    assert errors[worst] < LIMIT, f"{worst}: {errors[worst]:.2e}"


def test_the_run_has_every_kind_of_sample(runs: Runs) -> None:
    """Without them the comparisons below would say less than they promise."""
    rows = read_rows(runs.alone["mixed"])
    assert len(rows) == STEPS
    assert {task for row in rows for task in row["losses_by_task"]} == {"none", "cube", "speed", "tube", "edit"}
    assert len({row["sample_digest"] for row in rows}) == STEPS
    assert all(row["skipped"] is None for row in rows)
    # One sample a step: an odd sequence, which two tensor ranks must pad.
    assert any(row["tokens"] % 2 for row in read_rows(runs.alone["one_video"]))


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_reports_the_same_losses(runs: Runs, name: str) -> None:
    assert_same_steps(read_rows(runs.together[name]), read_rows(runs.alone["mixed"]))


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_ends_at_the_same_weights(runs: Runs, name: str) -> None:
    assert_same_tensors(runs.together[name], runs.alone["mixed"])


def test_every_parameter_moved(runs: Runs, mixed: Path, tmp_path: Path) -> None:
    from sama_mega.model import build_model

    recipe = tiny_recipe(0, tmp_path, mixed, STEPS, MIXED)
    with alone(recipe) as context:
        start = {name: value.detach().clone() for name, value in build_model(recipe, context)[0].named_parameters()}
    for section in ("model.", "ema."):
        end = tensors(runs.alone["mixed"], section)
        assert end.keys() == start.keys()
        least = min(end, key=lambda name: distance(end[name], start[name]))
        assert distance(end[least], start[least]) > MOVED, (section, least)


@pytest.mark.parametrize("name", UNEVEN)
def test_data_ranks_may_hold_unequal_samples_or_none(runs: Runs, name: str) -> None:
    ours, truth = runs.together[name], runs.alone[name]
    assert len(read_rows(ours)) == FEW_STEPS
    assert_same_steps(read_rows(ours), read_rows(truth))
    assert_same_tensors(ours, truth)


def test_a_tensor_parallel_run_goes_on_alone(runs: Runs) -> None:
    rows = read_rows(runs.alone["half"])
    assert "resumed" in (runs.alone["half"] / "log.txt").read_text()
    assert_same_steps(rows, read_rows(runs.together["half"]))
    assert_same_tensors(runs.alone["half"], runs.together["half"])
    assert_same_tensors(runs.alone["half"], runs.alone["mixed"])


def test_killed_ranks_go_on_bit_for_bit(runs: Runs, rows_before_resuming: list[dict[str, Any]]) -> None:
    resumed, truth = runs.together["killed"], runs.together["uninterrupted"]
    assert KILL_AFTER <= len(rows_before_resuming) < KILL_STEPS
    log = (resumed / "log.txt").read_text()
    (step,) = (int(number) for number in re.findall(r"resumed \S*/step-(\d{8})", log))
    assert 0 < step <= len(rows_before_resuming) and step % KILL_EVERY == 0
    rows = [repeatable(row) for row in read_rows(resumed)]
    assert [row["step"] for row in rows] == list(range(1, KILL_STEPS + 1))
    assert rows == [repeatable(row) for row in read_rows(truth)]
    assert_bitwise_equal(tensors(resumed), tensors(truth))


def test_two_tensor_ranks_edit_as_one(runs: Runs) -> None:
    from sama_data.decode import decode_frames

    ours, truth = (decode_frames(path).frames.astype(int) for path in runs.edits)
    assert ours.shape == truth.shape and len(truth) == CLIPS[1][2]
    # A pixel may round the other way before it is compressed.
    assert np.abs(ours - truth).mean() < 0.05
    assert runs.edits[0].with_suffix(".png").exists()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("disagreement", "DataError: ranks of one model-parallel group read different samples"),
        ("one_bad_rank", "DataError: all 12 video samples are bad"),
        ("idle_overlap", "ConfigError: a step has 1 samples for 2 data ranks"),
        ("another_recipe", "ConfigError: rank 1 has another recipe than rank 0"),
    ],
)
def test_what_one_rank_cannot_do_stops_both_with_one_reason(runs: Runs, name: str, words: str) -> None:
    (said,) = runs.refusals[name]
    assert said.startswith(words)
    assert name not in runs.together or len(read_rows(runs.together[name])) < STEPS
