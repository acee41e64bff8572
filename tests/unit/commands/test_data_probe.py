"""`data probe` through the command line: tables and JSON, exit statuses, and a process that is really killed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sama_data.manifest import load_manifest, write_jsonl
from sama_mega.__main__ import main
from tests.support.tiny_recipe import REPOSITORY, wait_until
from tests.support.zoo import encode, waves

MANY = 300
TIMEOUT_SECONDS = 60.0


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as stop:
        main(["data", "probe", *map(str, arguments)])
    return int(stop.value.code or 0)


def write_rows(folder: Path, rows: list[dict[str, Any]]) -> Path:
    write_jsonl([{"caption": "x", "sample_id": row["video"]} | row for row in rows], folder / "m.jsonl")
    return folder / "m.jsonl"


def test_what_was_found_is_shown_and_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    encode(tmp_path / "a.mp4", waves(9, 32, 48))
    encode(tmp_path / "b.mp4", waves(5), ticks=[0, 1000, 2000, 3000, 9000])
    rows = [{"video": name} for name in ("a.mp4", "b.mp4", "[red]gone.mp4", "lost.mp4")]
    manifest, out = write_rows(tmp_path, [*rows, {"video": "c.mp4", "rejected": "no faces"}]), tmp_path / "p.parquet"
    assert run(manifest, "--out", out, "--workers", "1", "--timeout", "60", "--json") == 0
    shown = capsys.readouterr()
    *lines, last = shown.out.splitlines()
    text = "\n".join(lines)
    for expected in ("48x32", "clip does not exist", "[red]gone.mp4", "1 clips have frames at uneven times"):
        assert expected in text
    assert f"2 of 5 rows can be trained on in {out}" in text and "1 rows were rejected before" in text
    assert "rows 5/5" in shown.err
    found = json.loads(last)
    assert (found["rows"], found["good"], found["decoded_now"], found["variable_fps"]) == (5, 2, 4, 1)
    assert found["rejected"] == {"clip does not exist": 2} and found["rejected_before"] == 1
    assert found["examples"]["clip does not exist"]["sample_id"] == "[red]gone.mp4"
    assert {(group["width"], group["num_frames"], group["rows"]) for group in found["groups"]} == {
        (48, 9, 1),
        (32, 5, 1),
    }
    assert load_manifest(out).num_rejected == 3
    assert run(manifest) == 0
    assert "2 of 5 rows can be trained on; --out M.parquet keeps what was found" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["none.jsonl"], "none.jsonl: the manifest does not exist"),
        (["m.jsonl"], "m.jsonl: no row can be decoded, 2 of 2 because the clip does not exist"),
        (["m.jsonl", "--out", "m.csv"], "--out (m.csv) must end in .parquet"),
        (["m.jsonl", "--timeout", "0"], "--timeout (0) must be greater than 0"),
        (["m.jsonl", "--timeout", "nan"], "--timeout (nan) must be greater than 0"),
        (["m.jsonl", "--timeout", "inf"], "--timeout (inf) must be greater than 0 and at most 86400, a day"),
        (["m.jsonl", "--timeout", "86401"], "--timeout (86401) must be greater than 0 and at most 86400, a day"),
    ],
)
def test_what_is_wrong_is_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    words: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    write_rows(tmp_path, [{"video": "a.mp4"}, {"video": "b.mp4"}])
    assert run(*arguments) == 2
    shown = capsys.readouterr()
    errors = [line for line in shown.err.splitlines() if not line.startswith("rows ")]
    assert len(errors) == 1 and errors[0].startswith("error: ") and words in errors[0] and shown.out == ""
    assert os.listdir(tmp_path) == ["m.jsonl"]


def test_a_killed_process_loses_no_more_than_it_had_in_hand(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    encode(tmp_path / "clip.mp4", waves(33, 96, 96))
    for number in range(MANY):
        (tmp_path / f"{number}.mp4").symlink_to("clip.mp4")
    manifest, out = write_rows(tmp_path, [{"video": f"{number}.mp4"} for number in range(MANY)]), tmp_path / "p.parquet"
    journal = tmp_path / "p.parquet.journal.jsonl"

    def num_kept() -> int:
        return max(0, journal.read_bytes().count(b"\n") - 1) if journal.exists() else 0

    command = [sys.executable, "-m", "sama_mega", "data", "probe", manifest, "--out", out, "--workers", "2"]
    process = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_until(lambda: num_kept() >= 20, [process], TIMEOUT_SECONDS)
    finally:
        process.kill()
        process.wait(TIMEOUT_SECONDS)
    kept = num_kept()
    assert 20 <= kept < MANY and not out.exists()
    assert run(manifest, "--out", out, "--workers", "2", "--json") == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (report["good"], report["decoded_now"]) == (MANY, MANY - kept)
    assert {row.num_frames for row in load_manifest(out)} == {33}


def test_the_real_clips(shared_root: Path, tmp_path: Path) -> None:
    for name, num_rows in (("pairs", 13), ("raw", 4)):
        out = tmp_path / f"{name}.parquet"
        assert run(shared_root / f"videos/{name}.jsonl", "--out", out) == 0
        rows = load_manifest(out)
        assert len(rows) == num_rows and rows.num_rejected == 0
        assert {row.num_frames for row in rows} <= {21, 37, 41, 49, 81}
