"""The run folder: layout, refusal, lives, whole writes."""

from __future__ import annotations

import errno
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from sama_mega.config.errors import UserError
from sama_mega.train.run_folder import RunFolder, RunFolderError


def test_create_makes_the_layout_and_leaves_no_probe(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "runs" / "demo")
    assert sorted(path.name for path in folder.root.iterdir()) == ["checkpoints", "lives", "samples"]
    assert list(folder.checkpoints.iterdir()) == []
    RunFolder.create(folder.root)


def test_naming_the_paths_touches_nothing(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "absent")
    assert not folder.root.exists()
    assert folder.newest_life() == 0


@pytest.mark.parametrize("kind", ["below a file", "no such device", "a file in place of a folder"])
def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path, kind: str) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "samples").write_text("x")
    roots = {
        "below a file": tmp_path / "file" / "run",
        "no such device": Path("/proc/run"),
        "a file in place of a folder": tmp_path / "run",
    }
    with pytest.raises(RunFolderError) as caught:
        RunFolder.create(roots[kind])
    message = str(caught.value)
    assert isinstance(caught.value, UserError)
    assert "\n" not in message
    assert message.startswith(f"train.run_folder ({roots[kind]}) cannot be written")
    assert "choose another folder" in message


def test_lives_count_up_and_keep_their_details(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path)
    assert [folder.start_life({"hostname": "a"}), folder.start_life({"hostname": "b"})] == [1, 2]
    record = json.loads((folder.lives / "0002.json").read_text())
    assert record["life"] == 2 and record["hostname"] == "b" and "started_at" in record
    (folder.lives / "0041.json").write_text("")
    (folder.lives / "notes.json").write_text("")
    assert folder.start_life({}) == 42
    assert folder.newest_life() == 42


def test_simultaneous_starts_get_different_lives(tmp_path: Path) -> None:
    RunFolder.create(tmp_path)
    with ThreadPoolExecutor(8) as pool:
        lives = list(pool.map(lambda _: RunFolder(tmp_path).start_life({}), range(40)))
    assert sorted(lives) == list(range(1, 41))


def test_a_taken_number_is_never_written_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = RunFolder.create(tmp_path)
    (folder.lives / "0001.json").write_text("theirs")
    monkeypatch.setattr(RunFolder, "newest_life", lambda self: 0)  # they claimed it after we looked
    assert folder.start_life({}) == 2
    assert (folder.lives / "0001.json").read_text() == "theirs"


def test_a_full_disk_leaves_the_old_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = RunFolder.create(tmp_path)
    folder.write_recipe("old")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RunFolderError, match="No space left"):
        folder.write_recipe("new")
    assert folder.recipe_path.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir() if path.name.endswith(".tmp")] == []


def test_environment_is_json(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path)
    folder.write_environment({"git": None, "versions": {"torch": "2"}})
    assert json.loads(folder.environment_path.read_text()) == {"git": None, "versions": {"torch": "2"}}
