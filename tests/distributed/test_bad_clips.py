"""Two ranks train over a manifest of which 30 % are the zoo's clips: both take every step, killed and resumed too."""

from __future__ import annotations

import json
import math
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from sama_data.manifest import load_manifest, write_jsonl
from sama_data.probe.row import probe_row
from tests.support.distributed import run_distributed
from tests.support.mixed_world import meeting_points, what_is_raised
from tests.support.tiny_recipe import read_rows, recipe_path, repeatable, tiny_overrides, tiny_recipe, wait_until
from tests.support.zoo import encode, waves, write_zoo

pytestmark = [pytest.mark.distributed, pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")]

ZOO_SHARE = 0.3
GOOD_FILES = 7
STEPS, EVERY, KILL_AFTER = 15, 3, 5
TIMEOUT_SECONDS = 120.0
# An epoch of either kind is over before the last step: every row is drawn.
CHANGES: dict[str, Any] = {
    "data.max_frames": 13,  # beyond all damage
    "data.images_per_step": 2,
    "data.videos_per_step": 8,
    "data.max_bad_share": 0.5,
    "checkpoint.every": EVERY,
    "checkpoint.keep": 3,
    "track.log_sample_ids": True,
}
TOO_STRICT = {"data.max_bad_share": 0.05}


@dataclass(frozen=True)
class Runs:
    """Run folders; what each rank returned; what is wrong with each bad row; the rows there were before resuming."""

    folder: Path
    returned: list[dict[str, Any]]
    bad: dict[str, str]
    killed_at: int


def write_world(folder: Path) -> Path:
    rows = write_zoo(folder)
    for number in range(GOOD_FILES):
        encode(folder / f"good{number}.mp4", waves(5 + number))
        Image.fromarray(waves(1, 40, 32 + number)[0]).save(folder / f"good{number}.png")
    for number in range(round(len(rows) * (1 - ZOO_SHARE) / ZOO_SHARE)):
        kind, suffix = ("image", "png") if number % 5 == 0 else ("video", "mp4")
        file = f"good{number % GOOD_FILES}.{suffix}"
        rows.append({kind: file, "caption": "waves", "sample_id": f"good-{number}"})
    write_jsonl(rows, folder / "clips.jsonl")
    return folder / "clips.jsonl"


def two_ranks(folder: str, manifest: str) -> dict[str, Any]:
    """What this rank returned of each run."""
    from sama_mega.train.run import train

    root, meet = Path(folder), meeting_points(Path(folder))
    returned: dict[str, Any] = {}
    for name in ("killed", "whole"):
        meet(name)
        summary = train(tiny_recipe(0, root / name, Path(manifest), STEPS, CHANGES))
        returned[name] = {"steps": summary.steps, "bad": summary.num_quarantined}
    meet("refused")
    returned["refused"] = what_is_raised(
        lambda: train(tiny_recipe(0, root / "refused", Path(manifest), STEPS, CHANGES | TOO_STRICT))
    )
    return returned


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    folder = tmp_path_factory.mktemp("bad_clips")
    manifest = write_world(folder / "world")
    killed_at = kill_two_ranks(folder / "killed", manifest, folder)
    returned = run_distributed(two_ranks, 2, TIMEOUT_SECONDS, (str(folder), str(manifest)))
    found = {row.sample_id: probe_row(row).rejected for row in load_manifest(manifest)}
    # Of pairs that do not match, training would use what they share.
    bad = {name: reason for name, reason in found.items() if reason is not None and " differ " not in reason}
    return Runs(folder, returned, bad, killed_at)


def kill_two_ranks(run_folder: Path, manifest: Path, folder: Path) -> int:
    """Ends two ranks between two checkpoints; returns the steps they had taken."""
    from sama_mega.parallel.launch import end_ranks, start_ranks

    arguments = tiny_overrides(run_folder, manifest, STEPS, CHANGES)
    command = [sys.executable, "-m", "sama_mega", "train", str(recipe_path(0)), *arguments]
    ranks = start_ranks(2, command, folder, [folder / "0.log", folder / "1.log"])
    try:
        wait_until(lambda: len(read_rows(run_folder)) >= KILL_AFTER, ranks, TIMEOUT_SECONDS)
    except AssertionError as error:
        raise AssertionError(f"{error}\n{(folder / '0.log').read_text()}") from error
    finally:
        end_ranks(ranks)
    assert [rank.returncode for rank in ranks] == [-signal.SIGKILL] * 2
    return len(read_rows(run_folder))


def quarantined(run_folder: Path) -> dict[str, str]:
    lines = [json.loads(line) for line in (run_folder / "quarantine.jsonl").read_text().splitlines()]
    assert len({line["sample_id"] for line in lines}) == len(lines)
    return {line["sample_id"]: line["reason"] for line in lines}


def test_the_manifest_is_as_bad_as_is_said(runs: Runs) -> None:
    rows = load_manifest(runs.folder / "world/clips.jsonl")
    zoo = [row for row in rows if not row.sample_id.startswith("good-")]
    assert len(zoo) / len(rows) == pytest.approx(ZOO_SHARE, abs=0.005)
    assert len(runs.bad) / len(rows) > 0.15


@pytest.mark.parametrize("name", ["whole", "killed"])
def test_both_ranks_take_every_step_with_finite_losses(runs: Runs, name: str) -> None:
    assert [rank[name]["steps"] for rank in runs.returned] == [STEPS] * 2
    rows = read_rows(runs.folder / name)
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    for row in rows:
        assert math.isfinite(row["loss"]) and row["skipped"] is None
        assert (row["num_images"], row["num_videos"], len(row["sample_ids"])) == (2, 8, 10)
    # Each rank met bad ones of its own.
    assert all(rank[name]["bad"] > 0 for rank in runs.returned)


@pytest.mark.parametrize("name", ["whole", "killed"])
def test_the_quarantine_names_the_bad_ones_with_the_reason_that_probing_gives(runs: Runs, name: str) -> None:
    found = quarantined(runs.folder / name)
    assert found.keys() == runs.bad.keys()
    for sample_id, reason in found.items():
        assert reason in runs.bad[sample_id]
    drawn = {sample for row in read_rows(runs.folder / name) for sample in row["sample_ids"]}
    assert drawn.isdisjoint(runs.bad)
    assert {"rotated.mp4", "ten-bit.mp4", "odd-size.webm", "one-frame.mp4", "picture.mp4", "variable-rate.mp4"} < drawn


def test_a_killed_run_goes_on_as_if_nothing_had_been(runs: Runs) -> None:
    assert KILL_AFTER <= runs.killed_at < STEPS
    assert "resumed" in (runs.folder / "killed/log.txt").read_text()
    ours, truth = ([repeatable(row) for row in read_rows(runs.folder / name)] for name in ("killed", "whole"))
    assert ours == truth


def test_too_many_bad_ones_stop_both_ranks_with_one_line(runs: Runs) -> None:
    (said,) = {rank["refused"] for rank in runs.returned}
    assert said.startswith("DataError: ") and "data.max_bad_share (0.05)" in said and "\n" not in said
    assert len(read_rows(runs.folder / "refused")) < STEPS
