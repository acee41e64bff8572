"""`data ingest` from the command line: what it prints, and its exit status."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sama_mega.__main__ import main
from tests.support.ingest_sets import write_clips, write_files


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as caught:
        main([str(argument) for argument in arguments])
    return int(caught.value.code or 0)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    write_clips(tmp_path / "openve", "a.mp4", "b.mp4")
    rows = "video;prompt;original_video\nb.mp4;Make it red.;a.mp4\ngone.mp4;Gone;a.mp4\n"
    return write_files(tmp_path / "openve", {"local_change.csv": rows})


def test_totals_and_reasons(source, tmp_path, capsys):
    assert run("data", "ingest", "openve", source, "--out", tmp_path / "m.parquet", "--json") == 0
    shown = capsys.readouterr()
    assert "1 rows (1 videos) in" in shown.out
    assert "left out 1 of 2:\n  1  media missing (first: local_change.csv line 3: gone.mp4)" in shown.out
    assert "ingest 100%" in shown.err
    values = json.loads(shown.out.splitlines()[-1])
    assert (values["set"], values["rows_read"], values["rows"], values["videos"]) == ("openve", 2, 1, 1)
    assert values["reasons"] == {"media missing": 1}
    assert (tmp_path / "m.parquet").exists()


def test_options(source, tmp_path, capsys):
    out = tmp_path / "m.jsonl"
    assert (
        run("data", "ingest", "OpenVE", source / "local_change.csv", "--out", out, "--keep-missing", "--limit", 5) == 0
    )
    assert len(out.read_text().splitlines()) == 2


def test_wrong_input_is_one_line_and_status_2(source, tmp_path, capsys):
    assert run("data", "ingest", "reco", source, "--out", tmp_path / "m.parquet") == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("error: ")
    assert "\n" not in error
    assert run("data", "ingest", "reco") == 2
    assert "needs SET, SRC and --out" in capsys.readouterr().err
    assert not (tmp_path / "m.parquet").exists()


@pytest.mark.parametrize(
    ("out", "message"), [("m.csv", "must end in .parquet"), ("m", "must end in"), ("folder.parquet", "is a folder")]
)
def test_a_wrong_name_for_the_manifest_is_told_before_anything_is_read(source, tmp_path, capsys, out, message):
    (tmp_path / "folder.parquet").mkdir()
    before = sorted(tmp_path.rglob("*"))
    assert run("data", "ingest", "openve", source, "--out", tmp_path / out) == 2
    (error,) = capsys.readouterr().err.splitlines()
    assert f"{out}) {message}" in error
    assert sorted(tmp_path.rglob("*")) == before


def test_the_list_of_sets(capsys):
    assert run("data", "ingest", "--list", "--json") == 0
    shown = capsys.readouterr().out
    assert "Lewandofski/OpenVE-3M" in shown
    sets = {row["set"]: row for row in json.loads(shown.splitlines()[-1])["sets"]}
    assert sets["openve"]["licence"] == "CC-BY-NC-4.0"
    assert sets["pico_banana"]["licence"] == "CC-BY-NC-ND-4.0"
