"""The run folder: really written, really the same one, and nothing left behind."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

import pytest

from sama_mega.cluster.health import folder_probe
from sama_mega.cluster.health.folder_probe import explain, probe_first, probe_other


def test_a_folder_that_all_nodes_share(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "x"
    look = probe_first(folder)
    assert look.facts.error is None and look.facts.path == str(folder) and look.facts.free_gib
    assert look.marker in os.listdir(folder)
    facts = probe_other(folder, look.marker, marker_seconds=0)
    assert (facts.error, facts.shows_marker) == (None, True)
    look.tidy(keep_folder=True)
    assert os.listdir(folder) == []


def test_a_folder_of_another_name_is_found_out(tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    there.mkdir()
    look = probe_first(here)
    facts = probe_other(there, look.marker, marker_seconds=0.2)
    assert (facts.error, facts.shows_marker) == (None, False)


def test_a_marker_that_shows_late_is_waited_for(tmp_path: Path) -> None:
    late = threading.Timer(0.2, (tmp_path / "marker").touch)
    late.start()
    assert probe_other(tmp_path, "marker", marker_seconds=10).shows_marker is True
    late.join()


def test_a_folder_that_is_missing_elsewhere_is_not_made_there(tmp_path: Path) -> None:
    facts = probe_other(tmp_path / "x", "marker", marker_seconds=0)
    assert facts.error is not None and facts.error.startswith("does not exist: No such file")
    assert facts.shows_marker is None and facts.free_gib is None
    assert not (tmp_path / "x").exists()


def test_without_a_marker_nothing_is_said_of_sharing(tmp_path: Path) -> None:
    assert probe_other(tmp_path, None).shows_marker is None


def test_only_what_was_made_here_is_removed(tmp_path: Path) -> None:
    look = probe_first(tmp_path / "runs" / "x")
    look.tidy(keep_folder=False)
    assert os.listdir(tmp_path) == []
    (tmp_path / "runs").mkdir()
    probe_first(tmp_path / "runs" / "x").tidy(keep_folder=False)
    assert os.listdir(tmp_path) == ["runs"]
    look = probe_first(tmp_path / "runs" / "x")
    (tmp_path / "runs" / "x" / "precious").touch()
    look.tidy(keep_folder=False)
    assert os.listdir(tmp_path / "runs" / "x") == ["precious"]


def test_a_file_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    look = probe_first(tmp_path / "file")
    assert look.facts.error is not None and look.facts.error.startswith("is not a folder") and look.marker is None
    look = probe_first(tmp_path / "file" / "x")
    assert look.facts.error is not None and look.facts.error.startswith("is not a folder")


@pytest.mark.parametrize("call", ["write", "fsync"])
def test_a_full_disk(call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(folder_probe.os, call, refuse)
    look = probe_first(tmp_path)
    assert look.facts.error is not None and look.facts.error.startswith("is full: No space left on device: delete")
    assert look.marker is None
    monkeypatch.undo()
    assert os.listdir(tmp_path) == []


def test_four_mebibytes_are_written_and_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    real = os.fsync
    monkeypatch.setattr(folder_probe.os, "fsync", lambda file: (sizes.append(os.fstat(file).st_size), real(file)))
    probe_first(tmp_path)
    assert sizes == [4 << 20]


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (errno.ENOSPC, "is full"),
        (errno.EDQUOT, "is over the quota of "),
        (errno.EROFS, "is on a file system that is mounted read-only"),
        (errno.EACCES, "cannot be written by "),
        (errno.EPERM, "cannot be written by "),
        (errno.ENOENT, "does not exist"),
        (errno.ENOTDIR, "is not a folder"),
        (errno.ESTALE, "cannot be used: Stale file handle"),
        (errno.EIO, "cannot be used: Input/output error"),
    ],
)
def test_every_reason_has_its_own_sentence_and_a_fix(code: int, said: str) -> None:
    sentence = explain(OSError(code, os.strerror(code)), Path("/runs/x"))
    assert sentence.startswith(said) and sentence.endswith("choose another train.run_folder")


def test_a_user_without_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody() -> str:
        raise KeyError("uid not found")

    monkeypatch.setattr(folder_probe.getpass, "getuser", nobody)
    assert f"by user {os.getuid()}: " in explain(PermissionError(errno.EACCES, "Permission denied"), Path("/x"))


def test_a_file_system_that_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    release = threading.Event()
    monkeypatch.setattr(folder_probe, "_write", lambda folder: release.wait(20))
    look = probe_first(tmp_path, seconds=0.1)
    release.set()
    assert look.facts.error is not None and look.facts.error.startswith("does not answer within 0.1 s: its file system")
    assert look.marker is None
