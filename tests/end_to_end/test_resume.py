"""Kills, full disks and second lives, through the command line: what was saved stays usable and is gone on from."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from sama_mega.checkpoint import write
from sama_mega.config.errors import UserError
from sama_mega.parallel import checkpoint_io
from sama_mega.parallel.checkpoint_io import read_plain
from sama_mega.train import run as run_module
from sama_mega.train.hooks.checkpoint import CheckpointHook
from sama_mega.train.lives import read_lives
from sama_mega.train.run_folder import RunFolder
from sama_mega.train.step import TrainStep
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

STEPS, EVERY = 18, 4
KILLED_AT, RESUMED_AT = 12, 8
TIMEOUT_SECONDS = 90.0

# Stops for good where a checkpoint is whole but not yet renamed; the run goes on to the next save, which waits for it,
# and the test then kills the process.
STALLING_PROGRAM = f"""
import sys, time
from sama_mega.checkpoint import write
put_in_place = write.put_in_place
def stall(unfinished, final):
    if final.name == "step-{KILLED_AT:08d}":
        (final.parents[1] / "stalled").touch()
        time.sleep(600)
    put_in_place(unfinished, final)
write.put_in_place = stall
from sama_mega.__main__ import main
main(sys.argv[1:])
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_world(tmp_path_factory)


def train_arguments(run_folder: Path, world: Path, steps: int = STEPS, **changes: Any) -> list[str]:
    values = {"checkpoint.every": EVERY, "optimizer.warmup_steps": 3, "optimizer.decay_share": 0.3}
    values |= {"track.log_sample_ids": True}
    values |= {key.replace("__", "."): value for key, value in changes.items()}
    return ["train", str(recipe_path(0)), *tiny_overrides(run_folder, world / "raw.jsonl", steps, values)]


def checkpoint_names(run_folder: Path) -> list[str]:
    """Hidden ones too."""
    return sorted(path.name for path in (run_folder / "checkpoints").iterdir())


def one_error_line(captured: str) -> str:
    """The only line that says error, which must be the last; a log may stand before it, a traceback may not."""
    lines = captured.splitlines()
    errors = [line for line in lines if line.startswith("error: ")]
    assert len(errors) == 1 and lines[-1] == errors[0], captured
    assert "Traceback" not in captured and "Exception in" not in captured, captured
    return errors[0]


# --- killed during a save -------------------------------------------------------------------------


@dataclass(frozen=True)
class Killed:
    """A run that SIGKILL ended in the middle of a save, as it was found and after it was run again."""

    folder: Path
    found: Path
    uninterrupted: Path
    limit: float


@pytest.fixture(scope="module")
def killed(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Killed:
    root = tmp_path_factory.mktemp("killed")
    folder, found, uninterrupted = (root / name for name in ("run", "found", "uninterrupted"))
    # A limit that about half of the steps keep: skipped steps must be repeated too.
    assert call_main(*train_arguments(root / "plain", world)) == 0
    limit = sorted(row["loss"] for row in read_rows(root / "plain"))[2 * STEPS // 3]
    arguments = train_arguments(folder, world, train__skip_loss_above=limit)
    log = root / "log.txt"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-c", STALLING_PROGRAM, *arguments],
            cwd=REPOSITORY,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        wait_until((folder / "stalled").exists, [process], TIMEOUT_SECONDS)
        wait_until(lambda: len(read_rows(folder)) == KILLED_AT + EVERY, [process], TIMEOUT_SECONDS)
    except AssertionError as error:
        raise AssertionError(f"{error}\n{log.read_text()}") from error
    finally:
        process.kill()
        process.wait()
    assert process.returncode == -signal.SIGKILL
    (folder / "stalled").unlink()
    shutil.copytree(folder, found)
    assert call_main(*arguments) == 0
    assert call_main(*train_arguments(uninterrupted, world, train__skip_loss_above=limit)) == 0
    return Killed(folder, found, uninterrupted, limit)


def test_a_kill_leaves_the_checkpoints_before_it(killed: Killed) -> None:
    assert checkpoint_names(killed.found) == [
        f".saving-step-{KILLED_AT:08d}-life1",
        "step-00000004",
        f"step-{RESUMED_AT:08d}",
    ]
    assert [row["step"] for row in read_rows(killed.found)] == list(range(1, KILLED_AT + EVERY + 1))
    assert read_plain(newest_checkpoint(killed.found))


def test_the_next_life_cleans_up_and_keeps_the_newest(killed: Killed) -> None:
    assert checkpoint_names(killed.folder) == ["step-00000016", f"step-{STEPS:08d}"]
    lives = [json.loads((killed.folder / f"lives/000{life}.json").read_text())["life"] for life in (1, 2)]
    assert lives == [1, 2]
    state = json.loads((newest_checkpoint(killed.folder) / "state.json").read_text())
    assert (state["life"], state["step"]) == (2, STEPS)
    assert f"resumed {killed.folder}/checkpoints/step-{RESUMED_AT:08d}" in (killed.folder / "log.txt").read_text()


def test_the_resumed_run_repeats_the_uninterrupted_one_bit_for_bit(killed: Killed) -> None:
    resumed, truth = (
        [repeatable(row) for row in read_rows(folder)] for folder in (killed.folder, killed.uninterrupted)
    )
    assert [row["step"] for row in resumed] == list(range(1, STEPS + 1))
    assert resumed == truth
    skipped = [row["step"] for row in truth if row["skipped"]]
    assert any(step <= RESUMED_AT for step in skipped) and any(step > RESUMED_AT for step in skipped)
    assert len(skipped) < STEPS - 2
    ours, theirs = newest_checkpoint(killed.folder), newest_checkpoint(killed.uninterrupted)
    assert_bitwise_equal(read_plain(ours), read_plain(theirs))
    states = [json.loads((path / "state.json").read_text()) for path in (ours, theirs)]
    assert all(state.pop("life") == life for state, life in zip(states, (2, 1), strict=True))
    assert states[0] == states[1] and states[0]["optimizer_updates"] == STEPS - len(skipped)


def test_a_finished_run_has_nothing_left_to_do(killed: Killed, world: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(killed.uninterrupted, folder)
    assert call_main(*train_arguments(folder, world)) == 0
    assert (folder / "metrics.jsonl").read_bytes() == (killed.uninterrupted / "metrics.jsonl").read_bytes()
    assert checkpoint_names(folder) == checkpoint_names(killed.uninterrupted)


def test_a_finished_run_can_be_made_longer(killed: Killed, world: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(killed.uninterrupted, folder)
    assert call_main(*train_arguments(folder, world, STEPS + 3)) == 0
    assert [row["step"] for row in read_rows(folder)] == list(range(1, STEPS + 4))
    assert newest_checkpoint(folder).name == f"step-{STEPS + 3:08d}"


# --- a full disk ----------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """Mounts a file system of so many KiB; skips where that is not allowed."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(size_kib: int) -> Path:
        command = ["mount", "-t", "tmpfs", "-o", f"size={size_kib}k", "tmpfs", str(folder)]
        try:
            done = subprocess.run(command, capture_output=True, timeout=20)
        except FileNotFoundError:
            pytest.skip("there is no mount")
        if done.returncode:
            pytest.skip("may not mount a file system")
        return folder

    yield mount
    subprocess.run(["umount", str(folder)], capture_output=True, timeout=20)


def test_a_full_disk_ends_the_run_and_keeps_the_checkpoint(
    world: Path, tmp_path: Path, small_disk: Callable[[int], Path], capfd: pytest.CaptureFixture[str]
) -> None:
    assert call_main(*train_arguments(tmp_path / "roomy", world, 8, checkpoint__keep=1)) == 0
    # Room for one checkpoint and a half; the next one must be whole before the old one may go.
    size = sum(file.stat().st_size for file in newest_checkpoint(tmp_path / "roomy").iterdir())
    folder = small_disk(int(1.5 * size / 1024)) / "run"
    capfd.readouterr()
    assert call_main(*train_arguments(folder, world, 8, checkpoint__keep=1)) == 2
    line = one_error_line(capfd.readouterr().err)
    assert "cannot write the checkpoint" in line and str(folder / "checkpoints") in line
    assert checkpoint_names(folder) == ["step-00000004"]
    assert_bitwise_equal(read_plain(newest_checkpoint(folder)), saved_at_four(world, tmp_path / "four"))
    # With room again the run goes on as if nothing had been.
    shutil.move(folder, tmp_path / "moved")
    assert call_main(*train_arguments(tmp_path / "moved", world, 8, checkpoint__keep=1)) == 0
    ends = [newest_checkpoint(tmp_path / name) for name in ("moved", "roomy")]
    assert_bitwise_equal(*(read_plain(path) for path in ends))


def saved_at_four(world: Path, folder: Path) -> dict[str, Any]:
    """What a run of eight steps holds after four."""
    assert call_main(*train_arguments(folder, world, 8, checkpoint__keep=9)) == 0
    return read_plain(folder / "checkpoints/step-00000004")


def test_a_failed_save_ends_the_run_and_says_why_once(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint_io, "_write_pieces", full)
    assert call_main(*train_arguments(tmp_path / "run", world)) == 2
    said = capfd.readouterr().err
    assert "No space left on device" in one_error_line(said)
    assert "step-00000004 was not saved" in said and "step-00000008" not in said
    assert EVERY <= len(read_rows(tmp_path / "run")) <= 2 * EVERY
    assert checkpoint_names(tmp_path / "run") == []


@pytest.mark.parametrize("disk_is_full", [False, True])
def test_a_run_that_fails_beside_a_save_ends_with_its_own_error(
    world: Path, tmp_path: Path, disk_is_full: bool, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """And waits for the save, which is complete or absent as ever."""
    ended = threading.Event()
    put_in_place, on_run_end, step = write.put_in_place, CheckpointHook.on_run_end, TrainStep.run

    def put_after_the_end(unfinished: Path, final: Path) -> None:
        assert ended.wait(TIMEOUT_SECONDS)
        if disk_is_full:
            raise OSError(28, "No space left on device")
        put_in_place(unfinished, final)

    def end(self: CheckpointHook, *arguments: Any) -> None:
        ended.set()
        on_run_end(self, *arguments)

    def fail_at_six(self: TrainStep, drawn: Any, rate: float) -> Any:
        if drawn.step == 6:
            raise UserError("this run has an error of its own")
        return step(self, drawn, rate)

    monkeypatch.setattr(write, "put_in_place", put_after_the_end)
    monkeypatch.setattr(CheckpointHook, "on_run_end", end)
    monkeypatch.setattr(TrainStep, "run", fail_at_six)
    assert call_main(*train_arguments(tmp_path / "run", world)) == 2
    said = capfd.readouterr().err
    assert one_error_line(said) == "error: this run has an error of its own"
    assert ("step-00000004 was not saved" in said) == disk_is_full
    assert checkpoint_names(tmp_path / "run") == ([] if disk_is_full else ["step-00000004"])


def test_a_failed_save_ends_the_run_before_the_next_is_due(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    step = TrainStep.run

    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    def step_after_the_save(self: TrainStep, drawn: Any, rate: float) -> Any:
        if drawn.step == 5:
            for thread in threading.enumerate():
                if thread.name.startswith("save step-"):
                    thread.join(TIMEOUT_SECONDS)
        return step(self, drawn, rate)

    monkeypatch.setattr(checkpoint_io, "_write_pieces", refuse)
    monkeypatch.setattr(TrainStep, "run", step_after_the_save)
    assert call_main(*train_arguments(tmp_path / "run", world)) == 2
    assert "No space left on device" in one_error_line(capfd.readouterr().err)
    # Saved after step 4, known before step 7; the next would have been due after step 8.
    assert 4 < len(read_rows(tmp_path / "run")) <= 6


def test_a_disk_without_room_for_a_line_is_still_one_error_line(
    world: Path, small_disk: Callable[[int], Path], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    disk = small_disk(256)

    def fill_the_disk(*arguments: Any) -> CheckpointHook:
        with pytest.raises(OSError), (disk / "ballast").open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))
        return CheckpointHook(*arguments)

    monkeypatch.setattr(run_module, "CheckpointHook", fill_the_disk)
    assert call_main(*train_arguments(disk / "run", world)) == 2
    assert "No space left on device" in one_error_line(capfd.readouterr().err)


def test_a_disk_that_fills_up_with_samples_is_one_error_line(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from sama_mega.train.hooks import sample

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(sample, "before_after_picture", full)
    assert call_main(*train_arguments(tmp_path / "run", world, 2, train__num_samples=1)) in (0, 2)
    assert "Traceback" not in capfd.readouterr().err
    assert checkpoint_names(tmp_path / "run") == ["step-00000002"]


# --- lives ----------------------------------------------------------------------------------------


def test_an_older_life_may_not_save(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A hung node comes back after the scheduler has started the run anew elsewhere."""
    folder = tmp_path / "run"
    step = TrainStep.run

    def step_beside_another_life(self: TrainStep, drawn: Any, rate: float) -> Any:
        if drawn.step == 6:
            wait_until((folder / "checkpoints/step-00000004").exists, [], TIMEOUT_SECONDS)
            RunFolder(folder).start_life({})
        return step(self, drawn, rate)

    monkeypatch.setattr(TrainStep, "run", step_beside_another_life)
    assert call_main(*train_arguments(folder, world)) == 2
    line = one_error_line(capfd.readouterr().err)
    assert "life 2 of this run has begun, so life 1 ends here and may write nothing more" in line
    assert str(folder) in line
    assert checkpoint_names(folder) == ["step-00000004"]


def test_what_an_older_life_saves_while_a_newer_one_gets_ready_is_not_lost(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may save until the newer one has its number, which it gets after it chose where to begin."""
    folder, other = tmp_path / "run", tmp_path / "other"
    for path, steps in ((folder, 4), (other, 8)):
        assert call_main(*train_arguments(path, world, steps, checkpoint__keep=1)) == 0
    begin_life = run_module.begin_life

    def begin_after_another_save(*arguments: Any) -> Any:
        shutil.copytree(newest_checkpoint(other), folder / "checkpoints" / newest_checkpoint(other).name)
        return begin_life(*arguments)

    monkeypatch.setattr(run_module, "begin_life", begin_after_another_save)
    assert call_main(*train_arguments(folder, world, 9, checkpoint__keep=1)) == 0
    record = read_lives(RunFolder(folder))[-1]
    assert (record.life, record.start_step, record.last_step, record.reason) == (2, 8, 9, "finished")
    assert "step-00000008" in [line for line in (folder / "log.txt").read_text().splitlines() if "resumed" in line][-1]


@pytest.mark.parametrize("keep", [1, 3])
def test_so_many_checkpoints_are_kept(world: Path, tmp_path: Path, keep: int) -> None:
    assert call_main(*train_arguments(tmp_path, world, 5, checkpoint__every=1, checkpoint__keep=keep)) == 0
    assert checkpoint_names(tmp_path) == [f"step-{step:08d}" for step in range(6 - keep, 6)]


def test_a_used_folder_is_not_begun_anew(world: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert call_main(*train_arguments(tmp_path, world, 4, checkpoint__keep=1)) == 0
    before = read_plain(newest_checkpoint(tmp_path))
    capfd.readouterr()
    again = train_arguments(tmp_path, world, 2, checkpoint__keep=1, checkpoint__resume=False, train__seed=9)
    assert call_main(*again) == 2
    line = one_error_line(capfd.readouterr().err)
    for words in ("checkpoint.resume is false", f"{tmp_path} holds step-00000004", "choose another train.run_folder"):
        assert words in line
    assert_bitwise_equal(read_plain(newest_checkpoint(tmp_path)), before)
    assert len(read_rows(tmp_path)) == 4 and len(list((tmp_path / "lives").iterdir())) == 1


# --- other layouts and models ---------------------------------------------------------------------


def test_weights_of_another_model_are_refused_by_the_name_of_the_tensor(
    killed: Killed, world: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    start = newest_checkpoint(killed.uninterrupted)
    changes = {"model__ffn_dim": 64, "checkpoint__init_from": str(killed.uninterrupted)}
    assert call_main(*train_arguments(tmp_path / "run", world, **changes)) == 2
    line = one_error_line(capfd.readouterr().err)
    for words in ("blocks.0.ffn.linear_in.bias", "[48]", "[64]", str(start), "use the recipe that made the checkpoint"):
        assert words in line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model__ffn_dim": 64}, "model.ffn_dim is 48 there and 64 here"),
        ({"train__seed": 7}, "train.seed is 0 there and 7 here"),
        ({"data__images_per_step": 3}, "data.images_per_step is 2 there and 3 here"),
        ({"data__manifest": "pairs.jsonl"}, "pairs.jsonl here"),
    ],
)
def test_a_run_goes_on_as_itself_only(
    killed: Killed, world: Path, tmp_path: Path, changes: dict[str, Any], words: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """Its position counts steps: with other data it would mean other samples."""
    folder = tmp_path / "run"
    shutil.copytree(killed.uninterrupted, folder)
    if "data__manifest" in changes:
        changes = {"data__manifest": str(world / changes["data__manifest"])}
    assert call_main(*train_arguments(folder, world, STEPS + 4, **changes)) == 2
    line = one_error_line(capfd.readouterr().err)
    assert str(newest_checkpoint(folder)) in line and words in line and "start a new train.run_folder" in line
    assert len(list((folder / "lives").iterdir())) == 1
    assert checkpoint_names(folder) == checkpoint_names(killed.uninterrupted)


@contextmanager
def spoilt(path: Path, damage: Callable[[Path], object]) -> Iterator[None]:
    """The file is damaged for the length of a block."""
    content = path.read_bytes()
    damage(path)
    try:
        yield
    finally:
        path.write_bytes(content)


def test_a_manifest_that_was_written_anew_with_other_rows_is_refused(
    killed: Killed, world: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Under the same name: the position in it would repeat some samples and skip others."""
    folder = tmp_path / "run"
    shutil.copytree(killed.uninterrupted, folder)

    def leave_out_the_first(path: Path) -> None:
        path.write_text("".join(path.read_text().splitlines(keepends=True)[1:]))

    with spoilt(world / "raw.jsonl", leave_out_the_first):
        assert call_main(*train_arguments(folder, world, STEPS + 4)) == 2
    line = one_error_line(capfd.readouterr().err)
    assert str(newest_checkpoint(folder)) in line and "has other rows now" in line
    assert len(list((folder / "lives").iterdir())) == 1


def test_a_damaged_checkpoint_is_named(
    killed: Killed, world: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(killed.uninterrupted, folder)
    newest = newest_checkpoint(folder)
    shard = max(newest.glob("*.distcp"), key=lambda file: file.stat().st_size)
    files = {"shard": shard, "state": newest / "state.json", "metadata": newest / ".metadata"}
    for name, path in files.items():
        for damage in (lambda path: os.truncate(path, path.stat().st_size // 2), lambda path: path.write_bytes(b"")):
            with spoilt(path, damage):
                capfd.readouterr()
                assert call_main(*train_arguments(folder, world, STEPS + 1)) == 2, name
                assert str(newest) in one_error_line(capfd.readouterr().err), name
    assert checkpoint_names(folder) == checkpoint_names(killed.uninterrupted)
    assert (folder / "metrics.jsonl").read_bytes() == (killed.uninterrupted / "metrics.jsonl").read_bytes()
    # The one before is whole: without the damaged one the run goes on from there.
    shutil.rmtree(newest)
    assert call_main(*train_arguments(folder, world, train__skip_loss_above=killed.limit)) == 0
    assert_bitwise_equal(read_plain(newest), read_plain(newest_checkpoint(killed.uninterrupted)))
