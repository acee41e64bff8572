"""What every ingest does alike: missing clips, names, paths, limits, and a manifest that is whole or not there."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sama_data.errors import DataError
from sama_data.ingest import run
from sama_data.ingest.registry import SETS, find_set
from sama_data.ingest.run import ingest
from sama_data.ingest.skips import DIFFERENT_KINDS, MISSING_MEDIA, NOT_TEXT, SAME_CLIP, WRONG_VALUE
from sama_data.manifest import load_manifest
from tests.support.ingest_sets import clip_bytes, ingested, tar_bytes, write_clips, write_files

HEADER = "video,prompt,vace_video\n"


def metadata(*rows: tuple[str, str, str]) -> str:
    return HEADER + "".join(",".join(row) + "\n" for row in rows)


def many(root: Path, count: int, missing: set[int]) -> Path:
    """A set of pairs, some without their edit."""
    for number in range(count):
        write_clips(root, f"{number}s.mp4", *([] if number in missing else [f"{number}t.mp4"]))
    return write_files(
        root, {"metadata.csv": metadata(*((f"{n}t.mp4", f"Edit {n}.", f"{n}s.mp4") for n in range(count)))}
    )


def test_missing_clips_are_counted_and_left_out(tmp_path):
    source = many(tmp_path / "src", 300, {3, 150, 299})
    for workers in (1, 8):
        result = ingested("diffsynth", source, workers=workers)
        assert [row["instruction"] for row in result.rows] == [
            f"Edit {n}." for n in range(300) if n not in (3, 150, 299)
        ]
        assert result.skipped == {MISSING_MEDIA: 3}
        assert result.summary.examples[MISSING_MEDIA][0] == "metadata.csv line 5: 3t.mp4"
    assert [row["sample_id"] for row in result.rows[2:4]] == ["metadata:3", "metadata:5"]


def test_missing_clips_can_be_kept(tmp_path):
    result = ingested("diffsynth", many(tmp_path / "src", 3, {1}), keep_missing=True)
    assert [row["target"] for row in result.rows] == [f"../src/{number}t.mp4" for number in range(3)]
    assert result.skipped == {}


def test_a_limit_counts_rows_that_are_written(tmp_path):
    source = many(tmp_path / "src", 10, {0, 2, 9})
    result = ingested("diffsynth", source, limit=3)
    assert [row["instruction"] for row in result.rows] == ["Edit 1.", "Edit 3.", "Edit 4."]
    assert result.skipped == {MISSING_MEDIA: 2}
    assert result.rows == ingested("diffsynth", source).rows[:3]


def test_no_row_no_manifest(tmp_path):
    source = many(tmp_path / "src", 2, {0, 1})
    with pytest.raises(DataError, match=r"none of 2 rows can be kept: media missing: 2 \(first: metadata.csv line 2"):
        ingest("diffsynth", source, tmp_path / "m.parquet")
    assert not (tmp_path / "m.parquet").exists()


def test_an_empty_list_says_so(tmp_path):
    source = write_files(tmp_path / "src", {"metadata.csv": HEADER})
    with pytest.raises(DataError, match=r"holds no rows of diffsynth: it needs metadata\.csv"):
        ingest("diffsynth", source, tmp_path / "m.parquet")


def test_a_list_that_breaks_off_leaves_the_old_manifest(tmp_path):
    source = write_clips(tmp_path / "src", "a.mp4", "b.mp4")
    item = json.dumps({"video": "b.mp4", "prompt": "Red.", "vace_video": "a.mp4"})
    write_files(source, {"metadata.json": f"[{item}, {item}, "})
    out = write_files(tmp_path, {"m.parquet": "the old one"}) / "m.parquet"
    with pytest.raises(DataError, match="ends inside its list, after item 2"):
        ingest("diffsynth", source, out)
    assert out.read_text() == "the old one"
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["m.parquet"]


def test_archives_that_were_not_unpacked_are_named(tmp_path):
    source = many(tmp_path / "src", 3, {1})
    write_files(source, {"videos/edited.tar.gz.part000": b"", "videos/edited.tar.gz.part001": b""})
    hint = ingested("diffsynth", source).summary.hint
    assert hint is not None
    assert "2 archives under" in hint
    assert f"cat {source}/videos/edited.tar.gz.part* | tar -z -xf - -C {source}/videos" in hint
    assert ingested("diffsynth", many(tmp_path / "other", 3, set())).summary.hint is None
    for number in range(3):
        (source / f"{number}t.mp4").unlink(missing_ok=True)
    with pytest.raises(DataError, match=r"none of 3 rows can be kept.*must be unpacked"):
        ingested("diffsynth", source)


def test_clips_in_a_tar_of_any_set(tmp_path):
    source = write_files(tmp_path / "src", {"clips.tar": tar_bytes([("a.mp4", b"before"), ("b.mp4", b"after")])})
    write_files(source, {"metadata.csv": metadata(("b.mp4", "Red.", "a.mp4"))})
    assert ingested("diffsynth", source).clips() == [(b"before", b"after")]


def test_one_clip_in_a_tar_and_one_in_a_folder(tmp_path):
    source = write_clips(tmp_path / "src", "a.jpg")
    write_files(
        source, {"clips.tar": tar_bytes([("b.jpg", b"after")]), "metadata.csv": metadata(("b.jpg", "Red.", "a.jpg"))}
    )
    result = ingested("diffsynth", source)
    assert result.clips() == [(clip_bytes("a.jpg"), b"after")]
    assert result.rows[0]["kind"] == "image"


def test_media_elsewhere(tmp_path):
    source = write_files(tmp_path / "lists", {"metadata.csv": metadata(("b.mp4", "Red.", "a.mp4"))})
    media = write_clips(tmp_path / "disk" / "clips", "a.mp4", "b.mp4")
    assert ingested("diffsynth", source, media=media).rows[0]["source"] == "../disk/clips/a.mp4"
    with pytest.raises(DataError, match=r"--media .*none is no folder"):
        ingested("diffsynth", source, media=tmp_path / "none")


def test_urls_stay_and_are_not_looked_for(tmp_path):
    rows = metadata(("s3://bucket/b.mp4", "Red.", "s3://bucket/a.mp4"))
    source = write_files(tmp_path / "src", {"metadata.csv": rows})
    (row,) = ingested("diffsynth", source).rows
    assert (row["source"], row["target"]) == ("s3://bucket/a.mp4", "s3://bucket/b.mp4")


def test_paths_hold_behind_links(tmp_path):
    """A folder may be a link to another disk; a clip may be a link whose own name has the extension."""
    disk = write_clips(tmp_path / "disk", "blobs/0123", "blobs/4567")
    source = write_files(tmp_path / "cache" / "snapshot", {"metadata.csv": metadata(("b.mp4", "Red.", "a.mp4"))})
    (source / "a.mp4").symlink_to("../../disk/blobs/0123")
    (source / "b.mp4").symlink_to("../../disk/blobs/4567")
    (tmp_path / "far" / "away").mkdir(parents=True)
    (tmp_path / "manifests").symlink_to("far/away")
    (tmp_path / "set").symlink_to(source)
    out = tmp_path / "manifests" / "m.parquet"
    ingest("diffsynth", tmp_path / "set", out)
    (tmp_path / "far" / "link").symlink_to(source)
    ingest("diffsynth", tmp_path / "far" / "link" / ".." / "snapshot", out)
    (row,) = load_manifest(out)
    assert (row.source.read(), row.target.read()) == (clip_bytes("blobs/0123"), clip_bytes("blobs/4567"))
    assert row.target.path.name == "b.mp4"
    assert disk.is_dir()


def test_rows_that_cannot_be_right(tmp_path):
    source = write_clips(tmp_path / "src", "a.mp4", "b.mp4", "c.png")
    records = [
        {"video": "a.mp4", "prompt": "Red.", "vace_video": "./a.mp4"},
        {"video": "a.mp4", "prompt": "Red.", "vace_video": "c.png"},
        {"video": "a.mp4", "prompt": 7, "vace_video": "b.mp4"},
        {"video": "a.mp4", "prompt": "Red.", "vace_video": "b.mp4", "fps": "many"},
        {"video": "a.mp4", "prompt": "Red.", "vace_video": "b.mp4", "fps": 24},
    ]
    write_files(source, {"metadata.json": json.dumps(records)})
    result = ingested("diffsynth", source)
    assert result.skipped == {SAME_CLIP: 1, DIFFERENT_KINDS: 1, NOT_TEXT: 1, WRONG_VALUE: 1}
    assert result.summary.examples[WRONG_VALUE] == ["metadata.json item 4: fps must be a number, not 'many'"]
    assert [row["fps"] for row in result.rows] == [24]


def test_rows_that_lack_columns_are_counted_by_what_they_lack(tmp_path):
    source = write_clips(tmp_path / "src", "a.mp4", "b.mp4")
    good = {"edited_path": "a.mp4", "instruction": "Red.", "source_path": "b.mp4"}
    write_files(source, {"training_metadata/x.json": json.dumps([good, {"clip": 1}, {"clip": 2}])})
    result = ingested("ditto", source)
    (reason,) = result.skipped
    assert reason.startswith("training_metadata/x.json: no column for the source among clip")
    assert result.skipped[reason] == 2


def test_categories_that_are_no_text(tmp_path):
    source = write_clips(tmp_path / "src", "a.mp4", "b.mp4")
    good = {"video": "a.mp4", "prompt": "Red.", "vace_video": "b.mp4"}
    records = [good | {"task": task} for task in (["add", "style"], 3, " local ", None)]
    write_files(source, {"metadata.json": json.dumps(records)})
    assert [row.get("task") for row in ingested("diffsynth", source).rows] == ["add, style", "3", "local", None]


def test_what_is_left_out_can_be_shown_anywhere(tmp_path):
    source = write_clips(tmp_path / "src", "a.mp4", "b.mp4")
    records = [{"video": f"gone\n{'x' * 999}.mp4", "prompt": "Red.", "vace_video": "b.mp4"}]
    records.append({"video": "a.mp4", "prompt": "Red.", "vace_video": "b.mp4"})
    write_files(source, {"metadata.json": json.dumps(records)})
    (source / "\udcff.tar").write_bytes(tar_bytes([("z", b"1" * 600)])[:700])
    summary = ingested("diffsynth", source).summary
    shown = [place for places in summary.examples.values() for place in places]
    assert len(shown) == 2
    for place in shown:
        assert "\n" not in place
        assert len(place.encode()) < 600


def test_a_file_that_lists_no_rows(tmp_path):
    source = write_files(tmp_path / "src", {"notes.txt": "x"})
    with pytest.raises(DataError, match=r"notes\.txt: is not a file of rows"):
        ingest("openve", source / "notes.txt", tmp_path / "m.parquet")


def test_jsonl_by_name(tmp_path):
    out = tmp_path / "m.jsonl"
    summary = ingest("diffsynth", many(tmp_path / "src", 2, set()), out)
    assert [json.loads(line)["target"] for line in out.read_text().splitlines()] == ["src/0t.mp4", "src/1t.mp4"]
    assert summary.rows == 2


def test_progress_reaches_the_end(tmp_path):
    source = many(tmp_path / "src", 5, set())
    seen: list[tuple[int, int]] = []
    ingest("diffsynth", source, tmp_path / "m.parquet", on_progress=lambda done, total: seen.append((done, total)))
    size = os.path.getsize(source / "metadata.csv")
    assert seen[-1] == (size, size)


def test_rows_are_not_held(tmp_path, monkeypatch):
    """The writer gets rows while the list is still being read: nothing gathers them on the way."""
    source = write_clips(tmp_path / "src", "a.mp4", "b.mp4")
    write_files(source, {"metadata.csv": metadata(*([("b.mp4", "Red.", "a.mp4")] * 15_000))})
    at_first_row: list[int] = []

    def write(rows, path):
        seen: list[tuple[int, int]] = progress
        for number, _ in enumerate(rows):
            if number == 0:
                at_first_row.append(seen[-1][0] if seen else 0)

    progress: list[tuple[int, int]] = []
    monkeypatch.setattr(run, "write_parquet", write)
    ingest("diffsynth", source, tmp_path / "m.parquet", on_progress=lambda *numbers: progress.append(numbers))
    assert at_first_row[0] < 0.2 * progress[-1][1]


def test_sets_by_name():
    assert find_set("NHR-Edit").name == "nhr_edit"
    assert find_set("musubi").name == "diffusion_pipe"
    with pytest.raises(DataError, match="no set is called 'opnve'; did you mean openve"):
        find_set("opnve")
    assert len({known.name for known in SETS}) == len(SETS) == 13
    non_commercial = {
        known.name for known in SETS if known.licence and "nc" in known.licence.lower().replace("non-c", "nc")
    }
    assert non_commercial == {"pico_banana", "ditto", "openve", "reco", "koala", "motionbench"}


def test_a_source_that_is_not_there(tmp_path):
    with pytest.raises(DataError, match="none does not exist: give the folder with the dataset"):
        ingest("openve", tmp_path / "none", tmp_path / "m.parquet")


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("workers", [1, 4])
def test_one_category_s_clips_are_not_taken_for_another_s(tmp_path, packed, workers):
    """Of two categories one was downloaded; without the category the names are the same."""
    lists = {
        f"{category}.csv": "video;prompt;original_video\n"
        + "".join(f"{category}/edited/{n}.mp4;{category} {n};{category}/source/{n}.mp4\n" for n in range(300))
        for category in ("global_style", "local_change")
    }
    source = write_files(tmp_path / "set", lists)
    clips = [f"{role}/{n}.mp4" for role in ("edited", "source") for n in range(300)]
    if packed:
        write_files(source, {"clips.tar": tar_bytes([(name, clip_bytes(name)) for name in clips])})
    else:
        write_clips(source, *clips)
    with pytest.raises(DataError, match=r"would be both .* and .*: name the folder that both are in with --media"):
        ingest("openve", source, tmp_path / "m.parquet", workers=workers)
    assert not (tmp_path / "m.parquet").exists()
    assert ingest("openve", source / "global_style.csv", tmp_path / "m.parquet").rows == 300
    if not packed:
        (tmp_path / "set/global_style").mkdir()
        for role in ("edited", "source"):
            (source / role).rename(source / "global_style" / role)
        with pytest.raises(DataError, match="would be both"):
            ingest("openve", source, tmp_path / "m.parquet", media=source / "global_style", workers=workers)
        assert ingest("openve", source, tmp_path / "m.parquet").skipped == {MISSING_MEDIA: 300}


def test_names_with_more_and_with_fewer_folders_are_those_of_one_clip(tmp_path):
    rows = [("up/to/t.mp4", "One.", "up/to/s.mp4"), ("to/t.mp4", "Two.", "to/s.mp4"), ("up/to/t.mp4", "3.", "to/s.mp4")]
    source = write_files(write_clips(tmp_path / "src", "to/s.mp4", "to/t.mp4"), {"metadata.csv": metadata(*rows)})
    assert [row["instruction"] for row in ingested("diffsynth", source).rows] == ["One.", "Two.", "3."]


def test_a_list_is_not_replaced_by_its_manifest(tmp_path):
    source = write_clips(tmp_path / "src", "a.mp4", "b.mp4")
    listed = json.dumps({"video_path": "b.mp4", "control_path": "a.mp4", "caption": "Red."}) + "\n"
    write_files(source, {"train.jsonl": listed})
    for given in (source, source / "train.jsonl"):
        with pytest.raises(DataError, match="is one of the lists that are read"):
            ingest("diffusion_pipe", given, source / "train.jsonl")
    assert (source / "train.jsonl").read_text() == listed


def test_a_manifest_of_before_is_not_read_as_a_list(tmp_path):
    """It would double every row."""
    rows = [{"source_video": "s.mp4", "video": "t.mp4", "prompt": "Do."}]
    source = write_clips(tmp_path / "src", "s.mp4", "t.mp4")
    pq.write_table(pa.Table.from_pylist(rows), source / "list.parquet")
    assert ingest("sama_edit_filtered", source, source / "m.parquet").rows == 1
    with pytest.raises(DataError, match="is one of the lists that are read"):
        ingest("sama_edit_filtered", source, source / "m.parquet")
