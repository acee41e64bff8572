"""A manifest is probed once, whatever happens meanwhile, and what is written is what was found."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sama_data.errors import DataError
from sama_data.filter.criteria import Criteria
from sama_data.filter.manifest import filter_manifest
from sama_data.loader import LoaderSettings
from sama_data.manifest import load_manifest, write_jsonl, write_parquet
from sama_data.predicted import num_unknown, predict_shapes
from sama_data.probe import run as run_module
from sama_data.probe.manifest import ProbeReport, probe_manifest
from sama_data.rewrite import read_history
from tests.support.probe_jobs import probe_or_misbehave
from tests.support.zoo import encode, waves

HANGING_SECONDS = 3.0
"""More than any good clip takes on a busy machine."""


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clips")
    for name, shape in {"a": (9, 32, 48), "b": (5, 48, 32), "c": (13, 32, 32)}.items():
        encode(folder / f"{name}.mp4", waves(*shape))
    return folder


@pytest.fixture
def world(clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of three clips; what its rows' workers do is noted in `notes`."""
    shutil.copytree(clips, tmp_path, dirs_exist_ok=True)
    monkeypatch.setenv("PROBE_NOTES", str(tmp_path / "notes"))
    monkeypatch.setattr(run_module, "probe_row", probe_or_misbehave)
    return tmp_path


def raw(name: str, **columns: Any) -> dict[str, Any]:
    return {"video": f"{name}.mp4", "caption": "waves", "sample_id": name} | columns


def probe(folder: Path, rows: list[dict[str, Any]], out: str = "out.parquet", **options: Any) -> ProbeReport:
    write_jsonl(rows, folder / "in.jsonl")
    return probe_manifest(folder / "in.jsonl", folder / out, **({"workers": 1, "timeout_seconds": 60.0} | options))


def noted(folder: Path) -> list[str]:
    """The rows that workers looked at, since this was asked last."""
    lines = (folder / "notes").read_text().splitlines() if (folder / "notes").exists() else []
    (folder / "notes").unlink(missing_ok=True)
    return sorted(lines)


def test_what_is_found_is_written_beside_what_was_there(world: Path) -> None:
    wrong = {"width": 1, "height": 1, "num_frames": 999, "fps": 99.0, "licence": "MIT"}
    rows = [raw("a", **wrong), raw("b"), raw("gone", width=7), raw("c", rejected="a face that must not be shown")]
    rows += [{"source": "c.mp4", "target": "c.mp4", "instruction": "x", "if_score": 9.0}]
    done: list[int] = []
    report = probe(world, rows, report=lambda total: done.append(-total) or done.append)  # type: ignore[func-returns-value]
    assert (report.num_rows, report.num_good, report.num_left, report.num_decoded) == (5, 3, 1, 4)
    assert dict(report.rejected) == {"clip does not exist": 1}
    assert done[0] == -5 and done[1:] == sorted(done[1:]) and done[-1] == 5
    a, b, gone, banned, pair = load_manifest(world / "out.parquet")
    assert (a.width, a.height, a.num_frames, a.fps, a.licence, a.codec) == (48, 32, 9, 16.0, "MIT", "h264")
    assert (b.width, b.height, b.num_frames, b.rejected) == (32, 48, 5, None)
    assert (gone.rejected, gone.width, gone.codec) == ("clip does not exist", 7, None)
    assert (banned.rejected, banned.width) == ("a face that must not be shown", None)
    assert (pair.source_width, pair.source_num_frames, pair.if_score, pair.rejected) == (32, 13, 9.0, None)
    assert noted(world) == ["a", "b", "c.mp4", "gone"]
    (entry,) = read_history(world / "out.parquet")
    assert entry["tool"] == "probe" and (entry["good"], entry["rejected"]) == (3, {"clip does not exist": 1})


def test_steps_are_planned_by_what_was_found(world: Path) -> None:
    probe(world, [raw("a"), raw("b"), raw("gone")])
    before, after = load_manifest(world / "in.jsonl"), load_manifest(world / "out.parquet")
    videos = after.indices_of("video")
    assert videos.tolist() == [0, 1]
    settings = LoaderSettings(images_per_step=0, videos_per_step=2, buckets=((32, 32), (48, 32), (32, 48)))
    assert num_unknown(before, videos) == (2, 2) and num_unknown(after, videos) == (0, 0)
    shapes = predict_shapes(after, videos, None, settings).of_slots()
    assert [shape[1:4] for shape in shapes] == [(48, 32, 9), (32, 48, 5)]


def test_the_filter_drops_what_was_rejected_and_says_so(world: Path) -> None:
    probe(world, [raw("a"), raw("gone"), raw("gone2")])
    report = filter_manifest(world / "out.parquet", world / "kept.parquet", Criteria())
    assert report.dropped() == {"rejected: clip does not exist": 2} and report.num_kept == 1


def test_a_clip_that_hangs_and_one_that_crashes_cost_their_rows(world: Path) -> None:
    for name in ("hangs", "crashes"):
        shutil.copy(world / "a.mp4", world / f"{name}.mp4")
    rows = [raw("hangs"), raw("crashes"), raw("a")]
    report = probe(world, rows, workers=2, timeout_seconds=HANGING_SECONDS)
    hangs, crashes, good = load_manifest(world / "out.parquet")
    assert hangs.rejected == f"decoding took longer than {HANGING_SECONDS:g} s"
    assert crashes.rejected is not None and crashes.rejected.startswith("decoding died of signal 11")
    assert good.rejected is None and report.num_good == 1
    noted(world)
    # A crash may have been the machine's; a clip that hangs is not waited for again.
    probe(world, rows, timeout_seconds=HANGING_SECONDS)
    assert set(noted(world)) == {"crashes"}


def test_a_second_run_decodes_what_is_new_alone(world: Path) -> None:
    rows = [raw("a"), raw("b"), raw("late"), raw("b", sample_id="again")]
    assert probe(world, rows).num_decoded == 3  # equal rows share one look
    assert noted(world) in (["a", "b", "late"], ["a", "again", "late"])
    assert probe(world, rows).num_decoded == 0 and noted(world) == []
    shutil.copy(world / "c.mp4", world / "late.mp4")
    encode(world / "a.mp4", waves(5))
    report = probe(world, [*rows, raw("c"), raw("b", sample_id="part", frame_end=4)])
    assert noted(world) == ["a", "c", "late", "part"] and report.num_good == 6
    assert [row.num_frames for row in load_manifest(world / "out.parquet")] == [5, 5, 13, 5, 13, None]


class Killed(BaseException):
    pass


def test_a_run_that_ends_early_goes_on_where_it_was(world: Path) -> None:
    names = [f"n{number}" for number in range(16)]
    for name in names:
        shutil.copy(world / "b.mp4", world / f"{name}.mp4")

    def kill(done: int) -> None:
        if done >= 4:  # several may be told of at once
            raise Killed

    with pytest.raises(Killed):
        probe(world, list(map(raw, names)), workers=2, report=lambda total: kill)
    assert not (world / "out.parquet").exists()
    first = noted(world)
    kept = {
        json.loads(line)["sample_id"] for line in (world / "out.parquet.journal.jsonl").read_text().splitlines()[1:]
    }
    assert len(kept) >= 4 and kept <= set(first)
    report = probe(world, list(map(raw, names)), workers=2)
    assert set(noted(world)) == set(names) - kept
    assert report.num_good == 16 and report.num_decoded == 16 - len(kept)


def test_a_manifest_of_pandas_with_gaps_and_columns_of_its_own(world: Path) -> None:
    table = pa.Table.from_pylist([raw("a"), raw("gone")]).append_column("mine", pa.array(["x", "y"]))
    pq.write_table(table.append_column("width", pa.array([float("nan"), 64.0])), world / "in.parquet")
    probe_manifest(world / "in.parquet", world / "deep/out.parquet", workers=1, timeout_seconds=60)
    found = pq.read_table(world / "deep/out.parquet").to_pydict()
    assert (found["mine"], found["width"], found["video"]) == (["x", "y"], [48, 64], ["../a.mp4", "../gone.mp4"])
    assert load_manifest(world / "deep/out.parquet")[0].target.read()


def test_a_manifest_that_changes_meanwhile_is_not_written(world: Path) -> None:
    def change(done: int) -> None:
        write_jsonl([raw("b"), raw("c")], world / "in.jsonl")

    with pytest.raises(DataError, match="its rows changed while they were probed: start this command again"):
        probe(world, [raw("a"), raw("c")], report=lambda total: change)
    assert not (world / "out.parquet").exists()


def test_only_bad_rows_are_an_error_and_write_nothing(world: Path) -> None:
    with pytest.raises(DataError, match=r"in.jsonl: no row can be decoded, 2 of 3 because the clip does not exist"):
        probe(world, [raw("x"), raw("y"), raw("z", video="notes")])
    assert not (world / "out.parquet").exists()
    # Rows that decode are no such error, even where none is good.
    assert probe(world, [{"source": "a.mp4", "target": "b.mp4", "instruction": "x"}]).num_good == 0
    assert load_manifest(world / "out.parquet")[0].rejected == "source and target differ in length: 9 and 5 frames"


def test_without_an_output_nothing_is_written(world: Path) -> None:
    write_parquet([raw("a")], world / "in.parquet")
    before = set(os.listdir(world))
    assert probe_manifest(world / "in.parquet", None, workers=1, timeout_seconds=60).num_good == 1
    assert set(os.listdir(world)) == before | {"notes"}


@pytest.mark.parametrize("out", ["out.jsonl", "in.parquet"])
def test_a_wrong_output_is_refused_before_the_work(world: Path, out: str) -> None:
    write_parquet([raw("a")], world / "in.parquet")
    with pytest.raises(DataError, match="--out"):
        probe_manifest(world / "in.parquet", world / out, workers=1, timeout_seconds=60)
    assert noted(world) == []
