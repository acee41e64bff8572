"""What is found survives, and is believed only while it is about the same frames of the same files."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from sama_data.errors import DataError
from sama_data.probe.findings import KEY_COLUMNS, Findings, row_key
from sama_data.probe.row import Finding

GOOD = Finding("h264", "yuv420p", 8, 0, 48, 32, 9, 16.0, False, 0.5625)
ROW: dict[str, Any] = dict.fromkeys(KEY_COLUMNS) | {"kind": "video", "target": "a.mp4", "frame_start": 0}


def test_what_was_found_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "deep/j.jsonl"
    bad = Finding(rejected="clip is empty (0 bytes)")
    with Findings(path, 60) as findings:
        findings.add(1, "ä", GOOD)
        findings.add(2, "b", bad)
    with Findings(path, 60) as findings:
        assert (findings[1], findings[2]) == (GOOD, bad) and 3 not in findings
        with pytest.raises(DataError, match="another process writes this journal"):
            Findings(path, 60)
    assert json.loads(path.read_text().splitlines()[2])["sample_id"] == "b"


def test_a_line_cut_off_by_a_kill_costs_that_row_alone(tmp_path: Path) -> None:
    path = tmp_path / "j.jsonl"
    with Findings(path, 60) as findings:
        for key in (1, 2):
            findings.add(key, "x", GOOD)
    os.truncate(path, path.stat().st_size - 9)
    with Findings(path, 60) as findings:
        assert 1 in findings and 2 not in findings
        findings.add(3, "x", GOOD)
    with Findings(path, 60) as findings:
        assert 1 in findings and 2 not in findings and findings[3] == GOOD


def test_what_may_be_otherwise_next_time_is_tried_again(tmp_path: Path) -> None:
    path = tmp_path / "j.jsonl"
    with Findings(path, 60) as findings:
        findings.add(1, "x", Finding(rejected="clip cannot be read: Input/output error", is_passing=True))
        findings.add(2, "x", Finding(rejected="decoding took longer than 60 s"), used_up_seconds=60)
        assert 1 in findings and 2 in findings
    for seconds, is_known in ((60, True), (30, True), (61, False)):
        with Findings(path, seconds) as findings:
            assert 1 not in findings and (2 in findings) == is_known


def test_without_a_path_nothing_is_written(tmp_path: Path) -> None:
    with Findings(None, 60) as findings:
        findings.add(1, "x", GOOD)
        assert findings[1] is GOOD
    assert list(tmp_path.iterdir()) == []


def test_another_tools_journal_is_refused(tmp_path: Path) -> None:
    (tmp_path / "j.jsonl").write_text('{"video": "a.mp4"}\n')
    with pytest.raises(DataError, match="is no journal of findings"):
        Findings(tmp_path / "j.jsonl", 60)


def test_a_key_stands_for_frames_of_a_file_as_it_was_written(tmp_path: Path) -> None:
    clip = tmp_path / "a.mp4"
    keys = [row_key(ROW, tmp_path)]
    clip.write_bytes(b"one")
    keys.append(row_key(ROW, tmp_path))
    assert keys[1] == row_key(ROW | {"caption": "another"}, tmp_path)
    status = clip.stat()
    os.utime(clip, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    keys.append(row_key(ROW, tmp_path))
    clip.write_bytes(b"four")
    os.utime(clip, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    keys.append(row_key(ROW, tmp_path))
    others = {"kind": "image", "frame_start": 1, "frame_end": 5, "source": "a.mp4", "target_offset": 0}
    keys += [row_key(ROW | {name: value}, tmp_path) for name, value in others.items()]
    keys.append(row_key(ROW | {"target": "s3://bucket/a.mp4"}, tmp_path))
    assert len(set(keys)) == len(keys) and all(0 < key < 2**64 for key in keys)
