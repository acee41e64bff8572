"""Checkpoint folders under kills: whatever moment one comes at, every visible folder is whole and none is lost."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from sama_mega.checkpoint import replace, write
from sama_mega.checkpoint.folder import complete_checkpoints
from sama_mega.checkpoint.replace import (
    discard,
    prune_checkpoints,
    put_back_interrupted,
    put_in_place,
    settle,
    tidy_checkpoints,
)
from sama_mega.checkpoint.saved_state import STATE_FILE, SavedState, read_saved_state
from sama_mega.checkpoint.write import write_complete
from sama_mega.config.errors import CheckpointError
from sama_mega.config.schema import Recipe
from sama_mega.parallel.checkpoint_io import read_plain, save_sharded
from sama_mega.parallel.runtime import ParallelContext
from sama_mega.parallel.sharded_state import shard_parameters
from tests.support.tiny_recipe import alone, tiny_recipe

PARTS = (STATE_FILE, "recipe.yaml", "weights", "more weights")


class Killed(BaseException):
    """Ends the work where a kill would: nothing may clean up behind it."""


def make(folder: Path, content: str = "new") -> Path:
    """A finished folder of several files that all say the same."""
    folder.mkdir()
    for part in PARTS:
        (folder / part).write_text(content)
    return folder


def content_of(folder: Path) -> str:
    """What a whole folder says; fails for one that lacks a file or mixes two."""
    assert {path.name for path in folder.iterdir()} == set(PARTS), folder
    (content,) = {path.read_text() for path in folder.iterdir()}
    return content


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def count_moments(monkeypatch: pytest.MonkeyPatch, kill_at: int | None) -> list[str]:
    """Counts renames and deleted files; kills before one of them, and while a folder is being deleted half-way."""
    moments: list[str] = []
    rename, unlink = os.replace, os.unlink

    def counted(name: str, function: Callable[..., None]) -> Callable[..., None]:
        def act(*arguments: Any, **options: Any) -> None:
            if kill_at == len(moments):
                raise Killed
            moments.append(name)
            function(*arguments, **options)

        return act

    monkeypatch.setattr(os, "replace", counted("rename", rename))
    monkeypatch.setattr(os, "unlink", counted("unlink", unlink))
    return moments


def at_every_moment(tmp_path: Path, work: Callable[[Path], None]) -> Iterator[Path]:
    """Runs work in fresh folders, killed once before each of its renames and deletions."""
    with pytest.MonkeyPatch.context() as patched:
        moments = count_moments(patched, None)
        (tmp_path / "undisturbed").mkdir()
        work(tmp_path / "undisturbed")
    assert moments.count("rename") >= 1 and moments.count("unlink") >= len(PARTS), moments
    for moment in range(len(moments)):
        folder = tmp_path / f"killed-{moment}"
        folder.mkdir()
        with pytest.MonkeyPatch.context() as patched:
            count_moments(patched, moment)
            with pytest.raises(Killed):
                work(folder)
        yield folder


# --- replacing ------------------------------------------------------------------------------------


@pytest.mark.parametrize("recover", [put_back_interrupted, partial(tidy_checkpoints, life=2)])
def test_a_kill_while_a_checkpoint_is_replaced_loses_neither(tmp_path: Path, recover: Callable[[Path], None]) -> None:
    def replace_five(folder: Path) -> None:
        make(folder / "step-00000005", "old")
        put_in_place(make(folder / ".saving-step-00000005-life2"), folder / "step-00000005")

    found = []
    for folder in at_every_moment(tmp_path, replace_five):
        assert all(content_of(path) for path in complete_checkpoints(folder))
        recover(folder)
        found.append(content_of(folder / "step-00000005"))
        tidy_checkpoints(folder, life=2)
        assert names(folder) == ["step-00000005"]
        assert content_of(folder / "step-00000005") == found[-1]
    # Before either rename the old one is there, once both are done the new one is.
    assert found[:2] == ["old", "old"] and set(found[2:]) == {"new"} and len(found) > 3
    assert names(tmp_path / "undisturbed") == ["step-00000005"]
    assert content_of(tmp_path / "undisturbed/step-00000005") == "new"


def test_a_rename_that_fails_puts_the_old_one_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    final, unfinished = make(tmp_path / "step-00000005", "old"), make(tmp_path / ".saving-step-00000005-life2")
    rename = os.replace

    def refuse(source: Path, target: Path) -> None:
        if source == unfinished:
            raise OSError("no")
        rename(source, target)

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(OSError, match="no"):
        put_in_place(unfinished, final)
    assert content_of(final) == "old" and names(tmp_path) == [unfinished.name, final.name]


def test_an_interrupted_replacement_is_ended_before_the_next(tmp_path: Path) -> None:
    final = tmp_path / "any name"
    make(tmp_path / ".old-any name", "old")
    settle(final)
    assert content_of(final) == "old" and names(tmp_path) == ["any name"]
    make(tmp_path / ".old-any name", "older")
    put_in_place(make(tmp_path / "unfinished"), final)
    assert content_of(final) == "new" and names(tmp_path) == ["any name"]


# --- deleting -------------------------------------------------------------------------------------


def test_a_kill_while_old_ones_are_deleted_leaves_whole_ones(tmp_path: Path) -> None:
    def prune(folder: Path) -> None:
        for step in range(1, 5):
            make(folder / f"step-{step:08d}")
        prune_checkpoints(folder / "step-00000004", keep=2)

    for folder in at_every_moment(tmp_path, prune):
        assert all(content_of(path) == "new" for path in folder.glob("step-*"))
        assert names(folder)[-2:] == ["step-00000003", "step-00000004"]
        tidy_checkpoints(folder, life=1)
        assert all(name.startswith("step-") for name in names(folder))
        assert all(content_of(path) == "new" for path in folder.iterdir())
    assert names(tmp_path / "undisturbed") == ["step-00000003", "step-00000004"]


@pytest.mark.parametrize("keep", [1, 2, 3, 9])
def test_the_one_just_written_and_later_ones_are_kept(tmp_path: Path, keep: int) -> None:
    """`checkpoint.resume=false` in a used folder: the new run's step 100 is not the highest."""
    steps = [20, 50, 100, 900, 1000]
    for step in steps:
        make(tmp_path / f"step-{step:08d}")
    prune_checkpoints(tmp_path / "step-00000100", keep)
    kept = steps[max(0, 3 - keep) :]
    assert names(tmp_path) == [f"step-{step:08d}" for step in kept]


def test_only_a_runs_own_hidden_folders_are_tidied(tmp_path: Path) -> None:
    mine = [".saving-step-00000005-life1", ".deleting-step-00000004", ".old-step-00000003"]
    others = [".saving-step-00000006-life2"]  # A newer life's, which is writing it.
    others += [".saving-thesis", ".old-photos", ".deleting-later", ".git", "step-00000003", "saving-step-00000005"]
    for name in mine + others:
        make(tmp_path / name)
    tidy_checkpoints(tmp_path, life=1)
    assert names(tmp_path) == sorted(others)
    tidy_checkpoints(tmp_path / "nowhere", life=1)


def test_what_cannot_be_deleted_is_said_and_does_no_harm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError("busy")

    for step in (1, 2):
        make(tmp_path / f"step-{step:08d}")
    with monkeypatch.context() as patched:
        patched.setattr(shutil, "rmtree", refuse)
        discard(tmp_path / "step-00000001")
        tidy_checkpoints(tmp_path, life=1)
    assert names(tmp_path) == [".deleting-step-00000001", "step-00000002"]
    assert [record.levelname for record in caplog.records] == ["WARNING"] * 2 and "busy" in caplog.text
    tidy_checkpoints(tmp_path, life=1)
    assert names(tmp_path) == ["step-00000002"]


# --- a whole folder, without a run ----------------------------------------------------------------


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    return tiny_recipe(0, tmp_path_factory.mktemp("unused"), Path("none.jsonl"))


@pytest.fixture(scope="module")
def context(recipe: Recipe) -> Iterator[ParallelContext]:
    with alone(recipe) as context:
        yield context


SAVED = SavedState(0, 0, 0, 1, 0, 0, {"tensor": 1}, life=0)


def pieces(context: ParallelContext) -> Any:
    return shard_parameters(torch.nn.Linear(300, 20), context, "model.")


def test_any_tensors_become_a_checkpoint(tmp_path: Path, recipe: Recipe, context: ParallelContext) -> None:
    target = tmp_path / "imported"
    for _ in range(2):
        state = pieces(context)
        write_complete(target, state, SAVED, recipe, context)
        assert names(tmp_path) == ["imported"]
        assert read_saved_state(target) == SAVED
        assert torch.equal(read_plain(target)["model.weight"], state["model.weight"].data)


@pytest.mark.parametrize("refused_at", [1, 2])
def test_the_fence_is_asked_before_writing_and_before_renaming(
    tmp_path: Path, recipe: Recipe, context: ParallelContext, refused_at: int
) -> None:
    asked: list[list[str]] = []

    def may_commit() -> None:
        asked.append(names(tmp_path))
        if len(asked) == refused_at:
            raise CheckpointError("not you")

    with pytest.raises(CheckpointError, match="not you"):
        write_complete(tmp_path / "imported", pieces(context), SAVED, recipe, context, may_commit)
    assert asked == [[], [".saving-imported-life0"]][:refused_at]
    assert names(tmp_path) == []


def test_a_half_written_folder_of_the_same_name_is_cleared(
    tmp_path: Path, recipe: Recipe, context: ParallelContext
) -> None:
    make(tmp_path / ".saving-imported-life0")
    write_complete(tmp_path / "imported", pieces(context), SAVED, recipe, context)
    assert names(tmp_path) == ["imported"] and not (tmp_path / "imported/weights").exists()


def record_flushes(monkeypatch: pytest.MonkeyPatch) -> dict[int, int]:
    """Sizes that files had when they were last flushed, by inode."""
    flushed: dict[int, int] = {}
    fsync = os.fsync

    def record(descriptor: int) -> None:
        status = os.fstat(descriptor)
        flushed[status.st_ino] = status.st_size
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", record)
    return flushed


def test_a_rank_flushes_all_that_it_wrote(
    tmp_path: Path, context: ParallelContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To its last byte: rank 0 cannot do it for other hosts."""
    flushed = record_flushes(monkeypatch)
    save_sharded(pieces(context), tmp_path / "saved")
    shards = [path.stat() for path in (tmp_path / "saved").glob("*.distcp")]
    assert shards and all(flushed.get(shard.st_ino) == shard.st_size for shard in shards)


def test_everything_is_flushed_before_the_folder_gets_its_name(
    tmp_path: Path, recipe: Recipe, context: ParallelContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed = record_flushes(monkeypatch)
    at_rename: list[bool] = []

    def check_and_put(unfinished: Path, final: Path) -> None:
        files = [path.stat() for path in (unfinished, *unfinished.iterdir()) if path.is_file()]
        at_rename.extend(flushed.get(file.st_ino) == file.st_size for file in files)
        at_rename.append(unfinished.stat().st_ino in flushed)
        flushed.clear()
        replace.put_in_place(unfinished, final)

    monkeypatch.setattr(write, "put_in_place", check_and_put)
    write_complete(tmp_path / "imported", pieces(context), SAVED, recipe, context)
    assert len(at_rename) >= 7 and all(at_rename)
    assert tmp_path.stat().st_ino in flushed
