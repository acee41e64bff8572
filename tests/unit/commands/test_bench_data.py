"""`sama-mega bench data` on clips of a few frames: parity, every way's row, the dated file, what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import sama_mega.bench.decoding
import sama_mega.commands.bench_data
from sama_mega.__main__ import main

pytest.importorskip("nvidia.dali")

SMALL = ["--size", "64x48", "--frames", "5", "--batch", "2", "--rounds", "2", "--json"]
WAYS = ["pyav, bare", "opencv, bare", "dali, bare", "dali, as loaded", "dali, as loaded, perturbed"]


def bench(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, dict[str, Any], str]:
    with pytest.raises(SystemExit) as ended:
        main(["bench", "data", *arguments])
    shown = capsys.readouterr()
    lines = shown.out.splitlines()
    return int(ended.value.code or 0), json.loads(lines[-1]) if lines else {}, shown.err


def test_every_way_is_measured_after_parity(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sama_mega.bench.decoding, "has_opencv", lambda: False)
    status, report, shown = bench(capsys, *SMALL, "--bucket", "48x32", "--results", str(tmp_path))
    assert status == 0
    assert [one["passed"] for one in report["parity"]] == [True, True]
    assert report["parity"][0]["largest"] == 0
    assert [one["way"] for one in report["timings"]] == WAYS
    for one in report["timings"]:
        assert (one["num_frames"], one["batch"], one["clips"]) == (5, 2, 2)
        assert len(one["seconds"]) == (0 if one["way"].startswith("opencv") else 2)
    bare = report["timings"][0]
    assert bare["relative_to_pyav"] == 1.0
    assert bare["frames_per_second_best"] == pytest.approx(5 * 2 / min(bare["seconds"]))
    assert "not installed" in shown
    (written,) = tmp_path.glob("*-data.json")
    assert report["file"] == str(written)
    assert json.loads(written.read_text()) == {key: value for key, value in report.items() if key != "file"}
    machine = report["machine"]
    assert machine["cores"] >= 1 and machine["versions"]["nvidia-dali-cuda130"] and machine["device"] == "CPU"


def test_no_speed_is_told_of_frames_that_differ(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = sama_mega.bench.decoding.dali_frames
    monkeypatch.setattr(sama_mega.bench.decoding, "dali_frames", lambda *given: real(*given) ^ 1)
    monkeypatch.setattr(sama_mega.commands.bench_data, "time_ways", None)
    status, report, shown = bench(capsys, *SMALL, "--results", str(tmp_path))
    assert status == 1
    assert not report["timings"]
    assert "TOO FAR" in shown and "no speed is measured" in shown


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--size", "64"], ["--size 64", "WIDTHxHEIGHT"]),
        (["--size", "63x48"], ["--size 63x48", "even"]),
        (["--frames", "48"], ["--frames 48", "4k+1"]),
        (["--clips", "missing"], ["--clips missing", "not a folder"]),
        (["--clips", "."], ["no clip of 49 frames"]),
    ],
)
def test_wrong_options_are_one_line(
    arguments: list[str],
    words: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    status, _, shown = bench(capsys, *arguments)
    assert status == 2
    assert shown.startswith("error: ") and shown.count("\n") == 1
    for word in words:
        assert word in shown


def test_without_dali_it_says_what_to_install(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sama_mega.commands.bench_data, "has_dali", lambda: False)
    status, _, shown = bench(capsys, *SMALL)
    assert status == 2
    assert "pip install 'sama-mega[dali]'" in shown


def test_clips_of_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from sama_mega.bench.clips import make_clips

    make_clips(tmp_path, "libvpx-vp9", 1, 7, 64, 48)
    (tmp_path / "notes.txt").write_text("no clip")
    arguments = ["--clips", str(tmp_path), "--frames", "5", "--batch", "1", "--rounds", "1", "--json"]
    status, report, _ = bench(capsys, *arguments, "--results", str(tmp_path / "out"))
    assert status == 0
    assert {one["num_frames"] for one in report["timings"]} == {5}
