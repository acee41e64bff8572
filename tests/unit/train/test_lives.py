"""The files of a run's lives: claimed, brought up to date, ended, and read whatever became of them."""

from __future__ import annotations

import errno
import json
import os
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sama_mega.train import lives as module
from sama_mega.train.lives import HEARTBEAT_SECONDS, LifeFile, LifeRecord, SupersededError, end_unended, read_lives
from sama_mega.train.run_folder import RunFolder, RunFolderError

DETAILS = {"hostname": "a", "nodes": ["a", "b"], "num_ranks": 4, "job": "77", "restarts": 2}


class Clock:
    """A monotonic clock that the test moves."""

    def __init__(self) -> None:
        self.seconds = 1000.0

    def monotonic(self) -> float:
        return self.seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=clock.monotonic))
    return clock


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder.create(tmp_path / "run")


def only(folder: RunFolder) -> LifeRecord:
    (record,) = read_lives(folder)
    return record


def on_disk(folder: RunFolder, number: int = 1) -> dict[str, Any]:
    return dict(json.loads(folder.life_path(number).read_text()))


def fill_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)


# --- one life -------------------------------------------------------------------------------------


def test_a_claimed_life_says_what_is_known_at_the_start(folder: RunFolder) -> None:
    assert LifeFile.claim(folder, 8, DETAILS).number == 1
    record = only(folder)
    assert (record.life, record.start_step, record.last_step) == (1, 8, 8)
    assert (record.nodes, record.num_ranks, record.job, record.restarts) == (("a", "b"), 4, "77", 2)
    assert datetime.fromisoformat(record.started_at).utcoffset() is not None
    assert (record.updated_at, record.ended_at, record.reason) == (None, None, None)
    assert LifeFile.claim(folder, 9, {}).number == 2


def test_a_life_cannot_be_claimed_where_nothing_can_be_written(tmp_path: Path) -> None:
    (tmp_path / "lives").write_text("a file in place of the folder")
    with pytest.raises(RunFolderError, match="cannot be written"):
        LifeFile.claim(RunFolder(tmp_path), 0, {})


def test_steps_are_written_at_intervals_only(folder: RunFolder, clock: Clock) -> None:
    life = LifeFile.claim(folder, 0, {})
    clock.seconds += HEARTBEAT_SECONDS - 1
    life.reached(5)
    assert (only(folder).last_step, only(folder).updated_at) == (0, None)
    clock.seconds += 1
    life.reached(6)
    assert only(folder).last_step == 6 and only(folder).updated_at is not None
    clock.seconds += HEARTBEAT_SECONDS - 1
    life.reached(7)
    assert only(folder).last_step == 6, "the interval counts from the newest write"


def test_a_note_is_written_at_once_with_the_steps_so_far(folder: RunFolder, clock: Clock) -> None:
    life = LifeFile.claim(folder, 0, DETAILS)
    started_at = only(folder).started_at
    life.reached(3)
    life.note(startup_seconds={"imports": 2.5})
    record = only(folder)
    assert (record.last_step, record.startup_seconds) == (3, {"imports": 2.5})
    assert (record.started_at, record.nodes) == (started_at, ("a", "b"))
    assert on_disk(folder)["hostname"] == "a", "what the record has no field for stays too"
    clock.seconds += HEARTBEAT_SECONDS - 1
    life.reached(4)
    assert only(folder).last_step == 3, "the interval counts from the note"


def test_the_end_is_written_whatever_the_interval(folder: RunFolder, clock: Clock) -> None:
    life = LifeFile.claim(folder, 0, {})
    life.reached(3)
    life.end("stopped", "told to stop by SIGUSR1")
    record = only(folder)
    assert (record.reason, record.message, record.last_step) == ("stopped", "told to stop by SIGUSR1", 3)
    assert datetime.fromisoformat(record.ended_at or "").utcoffset() is not None


def test_a_full_disk_is_said_and_ends_nothing(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    life = LifeFile.claim(folder, 0, DETAILS)
    before = on_disk(folder)
    with monkeypatch.context() as patched:
        fill_the_disk(patched)
        life.note(last_step=3)
    (said,) = [record for record in caplog.records if record.levelname == "WARNING"]
    assert str(folder.life_path(1)) in said.getMessage() and "No space left" in said.getMessage()
    assert on_disk(folder) == before
    life.end("finished")
    assert (only(folder).last_step, only(folder).reason) == (3, "finished"), "nothing was forgotten meanwhile"


def test_a_newer_life_ends_an_older_one_and_no_other(folder: RunFolder) -> None:
    older = LifeFile.claim(folder, 0, {})
    older.require_newest()
    newer = LifeFile.claim(folder, 0, {})
    with pytest.raises(SupersededError) as caught:
        older.require_newest()
    assert str(folder.root) in str(caught.value) and "\n" not in str(caught.value)
    assert "life 2 of this run has begun, so life 1 ends here" in str(caught.value)
    newer.require_newest()


# --- all of them ----------------------------------------------------------------------------------


def test_a_run_that_never_began_has_no_lives(tmp_path: Path) -> None:
    assert read_lives(RunFolder(tmp_path / "absent")) == []


def test_lives_come_in_the_order_of_their_numbers(folder: RunFolder) -> None:
    for number in (10000, 2, 999):
        folder.life_path(number).write_text(json.dumps({"life": number}))
    (folder.lives / "notes.json").write_text("{}")
    assert [record.life for record in read_lives(folder)] == [2, 999, 10000]


@pytest.mark.parametrize("content", [b"", b'{"life": 1, "job": "7', b"[1, 2]", b"null", b"\xff\xfe", None])
def test_a_file_that_cannot_be_read_has_a_number_and_nothing_else(folder: RunFolder, content: bytes | None) -> None:
    path = folder.life_path(1)
    if content is None:
        path.mkdir()
    else:
        path.write_bytes(content)
    LifeFile.claim(folder, 4, {"job": "8"})
    torn, whole = read_lives(folder)
    assert torn == LifeRecord(life=1)
    assert (whole.life, whole.job, whole.start_step) == (2, "8", 4)


def test_the_file_s_name_is_its_number(folder: RunFolder) -> None:
    folder.life_path(3).write_text(json.dumps({"life": 9, "job": "7", "colour": "blue"}))
    assert only(folder) == LifeRecord(life=3, job="7")


def test_files_of_earlier_versions_are_read(folder: RunFolder) -> None:
    old = {"life": 1, "started_at": "2025-01-01T00:00:00+00:00", "hostname": "a", "process_id": 5, "command": "train"}
    folder.life_path(1).write_text(json.dumps(old))
    assert only(folder) == LifeRecord(life=1, started_at=old["started_at"])


# --- ended from outside ---------------------------------------------------------------------------


def test_a_life_that_could_not_end_itself_is_ended(folder: RunFolder) -> None:
    LifeFile.claim(folder, 2, DETAILS).note(last_step=6)
    end_unended(folder, 1, "killed", "the job step ended with status 137")
    record = only(folder)
    assert (record.reason, record.message) == ("killed", "the job step ended with status 137")
    assert record.ended_at is not None
    assert (record.start_step, record.last_step, record.job) == (2, 6, "77")
    assert on_disk(folder)["hostname"] == "a"


def test_a_life_that_ended_itself_stays_as_it_is(folder: RunFolder) -> None:
    LifeFile.claim(folder, 2, DETAILS).end("finished")
    before = folder.life_path(1).read_bytes()
    end_unended(folder, 1, "killed", "the job step ended with status 1")
    assert folder.life_path(1).read_bytes() == before


def test_a_torn_file_is_ended_too(folder: RunFolder) -> None:
    folder.life_path(1).write_text('{"life": 1, "job": "7')
    end_unended(folder, 1, "killed", "gone")
    assert (only(folder).life, only(folder).reason, only(folder).message) == (1, "killed", "gone")
