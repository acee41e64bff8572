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

LIMIT = 1e-5
"""Largest relative error of a loss and of a parameter tensor (norm of difference over norm) between layouts."""
MOVED = 1e-3
"""Least relative distance of every parameter from its start: parameters at rest would agree in any layout."""

# Sizes (width, height) and lengths that give odd numbers of tokens, and samples of one step that cannot be stacked.
CLIPS = ((32, 32, 13), (48, 32, 17), (36, 52, 9), (32, 32, 5), (54, 40, 14), (32, 32, 13))
MIXED = {
    "model.text_length": 9,
    # Heads that start at zero would pass no gradient in the first step and tiny ones in the next: all rounding.
    "model.head_init": "xavier",
    "data.images_per_step": 3,
    "data.videos_per_step": 5,
    "data.micro_batch_images": 2,
    "data.micro_batch_videos": 2,
    "data.buckets": [[32, 32], [48, 32], [32, 48]],
    "data.max_frames": 13,
    "data.image_weight": 0.7,
    "data.text_dropout": 0.3,
    "anchor.num_frames": 3,
    "diffusion.timestep_weight": "bell",
    "optimizer.warmup_steps": 2,
    "optimizer.decay_share": 0.3,
    "track.log_sample_ids": True,
}

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
EXACT_KEYS = ("step", "sample_digest", "sample_ids", "tokens", "num_images", "num_videos", "samples_seen", "skipped")
CLOSE_KEYS = ("loss", "flow_matching_loss", "semantic_loss", "gradient_norm", "learning_rate")


@dataclass(frozen=True)
class Runs:
    """Run folders by name: of one process, and of two ranks; what the two ranks said of what is refused."""

    alone: dict[str, Path]
    together: dict[str, Path]
    refusals: dict[str, set[str]]
    edits: tuple[Path, Path]


# --- the material ---------------------------------------------------------------------------------


def write_mixed_world(folder: Path) -> Path:
    """Raw clips, edited clips, image pairs and a captioned image in one manifest."""
    from PIL import Image

    from sama_data.manifest import write_jsonl
    from sama_data.synth.write import write_clip

    folder.mkdir()
    rows: list[dict[str, Any]] = []
    for number, (width, height, frames) in enumerate(CLIPS):
        for name in ("raw", "source", "target"):
            write_clip(folder / f"{name}{number}.mp4", moving_picture(number, name, frames, height, width), 8)
        rows.append({"video": f"raw{number}.mp4", "caption": f"Waves number {number}."})
        pair = {"source": f"source{number}.mp4", "target": f"target{number}.mp4"}
        rows.append(pair | {"instruction": f"Turn the waves of clip {number} upside down and make them blue."})
    for number, (width, height, _) in enumerate(CLIPS):
        for name in ("before", "after"):
            Image.fromarray(moving_picture(number, name, 1, height, width)[0]).save(folder / f"{name}{number}.png")
        pair = {"source": f"before{number}.png", "target": f"after{number}.png"}
        rows.append(pair | {"instruction": f"Turn picture {number}."})
    rows.append({"image": "before0.png", "caption": "A still wave."})
    write_jsonl(rows, folder / "mixed.jsonl")
    return folder / "mixed.jsonl"


def moving_picture(number: int, name: str, frames: int, height: int, width: int) -> np.ndarray:
    """[T, H, W, 3] uint8."""
    time, line, column = np.ogrid[:frames, :height, :width]
    phase = number + len(name)
    wave = [np.sin((line + k * column) / 9 + time * (0.2 + 0.1 * k) + phase * k) for k in (1, 2, 3)]
    return np.round(127.5 + 110 * np.stack(wave, -1)).astype(np.uint8)


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


def meeting_points(folder: Path) -> Callable[[str], None]:
    """A world is joined at a file that nobody joined at before."""
    from sama_mega.parallel.rank_environment import RENDEZVOUS_FILE_VARIABLE

    return lambda name: os.environ.update({RENDEZVOUS_FILE_VARIABLE: str(folder / f"{name}.rendezvous")})


def what_is_raised(work: Callable[[], object]) -> str:
    try:
        work()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


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


def assert_same_steps(ours: list[dict[str, Any]], truth: list[dict[str, Any]]) -> None:
    assert [row["step"] for row in ours] == [row["step"] for row in truth]
    for row, true in zip(ours, truth, strict=True):
        for key in EXACT_KEYS:
            assert row[key] == true[key], (row["step"], key)
        for key in CLOSE_KEYS:
            assert row[key] == pytest.approx(true[key], rel=LIMIT), (row["step"], key)
        assert row["losses_by_task"] == pytest.approx(true["losses_by_task"], rel=LIMIT), row["step"]


def assert_same_tensors(ours: Path, truth: Path) -> None:
    """Weights, moving average and moments, each within the limit."""
    mine, true = tensors(ours), tensors(truth)
    assert mine.keys() == true.keys()
    errors = {name: distance(mine[name], true[name]) for name in true}
    worst = max(errors, key=lambda name: errors[name])
    assert errors[worst] < LIMIT, f"{worst}: {errors[worst]:.2e}"


def distance(ours: Tensor, truth: Tensor) -> float:
    """Norm of the difference over the truth's; over one where that is zero."""
    norm = truth.norm().item()
    return (ours - truth).norm().item() / (norm if norm > 0 else 1.0)


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
