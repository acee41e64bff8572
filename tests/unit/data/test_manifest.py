"""Manifests: what a row may hold, what errors name, and what is written comes back."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sama_data.errors import DataError
from sama_data.manifest import load_blend, load_manifest, write_jsonl, write_parquet
from sama_data.media import Media
from sama_data.rows import KNOWN_COLUMNS

EDIT = {"source": "clips/a.mp4", "target": "clips/b.mp4", "instruction": "Make it red."}
RAW = {"video": "clips/c.mp4", "caption": "A cat."}


def write_lines(path: Path, *records: object) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def test_the_shortest_rows(tmp_path):
    dataset = load_manifest(write_lines(tmp_path / "m.jsonl", EDIT, RAW, {"image": "d.png", "caption": "A dog."}))
    edit, raw, image = dataset
    assert (edit.index, edit.kind, edit.text, edit.is_edit) == (0, "video", "Make it red.", True)
    assert edit.source == Media(tmp_path / "clips/a.mp4")
    assert edit.target == Media(tmp_path / "clips/b.mp4")
    assert edit.sample_id == "clips/b.mp4"
    assert (raw.index, raw.source, raw.target) == (1, None, Media(tmp_path / "clips/c.mp4"))
    assert (raw.text, raw.is_edit, raw.frame_start, raw.frame_end) == ("A cat.", False, 0, None)
    assert image.kind == "image"
    assert dataset.indices_of("image").tolist() == [2]
    assert dataset.indices_of("video").tolist() == [0, 1]
    assert [row.index for row in dataset[1:]] == [1, 2]


def test_every_optional_column(tmp_path):
    known = {
        "task": "replace",
        "frame_start": 4,
        "frame_end": 85,
        "fps": 16,
        "width": 832,
        "height": 480,
        "num_frames": 90,
        "dataset": "set",
        "licence": "CC-BY-4.0",
        "if_score": 9.5,
        "vq_score": 9,
        "cp_score": 8.0,
        "mc_score": 7.5,
        "sample_id": "name",
        "kind": "image",
        "source_width": 830,
        "source_height": 470,
        "source_num_frames": 89,
        "codec": "h264",
        "variable_fps": False,
        "rejected": "unequal lengths",
        "unscored": "the answer is empty",
    }
    parts = {"source_offset": 0, "source_bytes": 7, "target_offset": 512, "target_bytes": 0}
    row = load_manifest(write_lines(tmp_path / "m.jsonl", EDIT | known | parts))[0]
    assert {name: getattr(row, name) for name in known} == known
    assert row.available_frames == 81
    assert row.source == Media(tmp_path / "clips/a.mp4", 0, 7)
    assert row.target == Media(tmp_path / "clips/b.mp4", 512, 0)
    assert set(known) | set(parts) | set(EDIT) | {"video", "image", "caption"} == set(KNOWN_COLUMNS)


def test_a_given_kind_wins_over_the_extension(tmp_path):
    rows = [RAW | {"kind": "image"}, EDIT | {"source": "a.png", "kind": "video"}]
    assert [row.kind for row in load_manifest(write_lines(tmp_path / "m.jsonl", *rows))] == ["image", "video"]


@pytest.mark.parametrize("suffix", [".png", ".JPG", ".jpeg", ".webp"])
def test_images_are_told_by_their_extension(tmp_path, suffix):
    row = {"source": f"a{suffix}", "target": f"b{suffix}", "instruction": "Do."}
    assert load_manifest(write_lines(tmp_path / "m.jsonl", row))[0].kind == "image"


BAD_ROWS = [
    ({"source": "a.mp4", "target": "b.mp4"}, "no 'instruction' among its keys: source, target"),
    ({"target": "b.mp4", "instruction": "x"}, "no 'source'"),
    ({"video": "b.mp4"}, "no 'caption'"),
    ({"caption": "x"}, "no 'video'"),
    ({}, "no 'video' among its keys: nothing"),
    (EDIT | {"instruction": "  "}, "instruction is empty"),
    (EDIT | {"instruction": None}, "no 'instruction'"),
    (EDIT | {"source": 3}, "source must be text, not 3"),
    (EDIT | {"source": "a.png"}, "must both be images or both be videos"),
    (EDIT | {"frame_start": -1}, "frame_start must be a whole number of at least 0, not -1"),
    (EDIT | {"frame_start": 5, "frame_end": 5}, "frame_end 5 must be greater than frame_start 5"),
    (EDIT | {"width": 83.5}, "width must be a whole number of at least 1, not 83.5"),
    (EDIT | {"height": "480"}, "height must be a whole number"),
    (EDIT | {"width": True}, "width must be a whole number"),
    (EDIT | {"fps": 0}, "fps 0.0 must be greater than 0"),
    (EDIT | {"if_score": "9"}, "if_score must be a number, not '9'"),
    (EDIT | {"width": 2.0**63}, "width must be a whole number"),
    (EDIT | {"variable_fps": 1}, "variable_fps must be true or false, not 1"),
    (EDIT | {"kind": "picture"}, "kind must be 'image' or 'video', not 'picture'"),
    (EDIT | {"rejected": ""}, "rejected is empty"),
    (EDIT | {"target_offset": 3}, "target_offset needs target_bytes beside it"),
    (EDIT | {"source_bytes": 3}, "source_bytes needs source_offset beside it"),
    (EDIT | {"target_offset": -1, "target_bytes": 1}, "target_offset must be a whole number of at least 0, not -1"),
    (RAW | {"source_offset": 3, "source_bytes": 1}, "source_offset without a source: a raw clip's bytes are target_"),
    (RAW | {"target_offset": 3, "target_bytes": 1}, "needs kind, 'image' or 'video': the name of a file does not"),
    (EDIT | {"target": "a\0.mp4"}, "target holds a NUL character"),
    ([1, 2], "must be a JSON object, not list"),
]


@pytest.mark.parametrize(("record", "message"), BAD_ROWS, ids=[message for _, message in BAD_ROWS])
def test_a_wrong_row_is_named(tmp_path, record, message):
    path = write_lines(tmp_path / "m.jsonl", RAW, RAW | {"video": "d.mp4"}, record)
    with pytest.raises(DataError) as caught:
        load_manifest(path)
    assert f"{path} line 3: " in str(caught.value)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_shards_and_urls(tmp_path):
    member = {"target_offset": 512, "target_bytes": 9}
    rows = [
        {"video": "a.tar", "caption": "x", "kind": "image"} | member,
        {"image": "s3://b/a.tar", "caption": "x", "kind": "video", "frame_start": 3} | member,
        {"source": "memory://a.mp4", "target": "b.mp4", "instruction": "x"},
    ]
    dataset = load_manifest(write_lines(tmp_path / "m.jsonl", *rows))
    assert [row.kind for row in dataset] == ["image", "video", "video"]
    assert [row.sample_id for row in dataset] == ["a.tar:512", "s3://b/a.tar:512@3-", "b.mp4"]
    assert [row.target for row in dataset] == [
        Media(tmp_path / "a.tar", 512, 9),
        Media("s3://b/a.tar", 512, 9),
        Media(tmp_path / "b.mp4"),
    ]
    assert dataset[2].source == Media("memory://a.mp4")


def test_rejected_rows_are_not_listed(tmp_path):
    rows = [RAW, EDIT | {"rejected": "is damaged"}, RAW | {"rejected": "is damaged"}, EDIT, RAW | {"video": "a.png"}]
    dataset = load_manifest(write_lines(tmp_path / "m.jsonl", *rows))
    assert dataset.indices_of("video").tolist() == [0, 3]
    assert dataset.indices_of("image").tolist() == [4]
    assert (len(dataset), dataset.num_rejected, dataset.num_raw) == (5, 2, 2)


def test_text_that_is_not_json_is_named(tmp_path):
    path = tmp_path / "m.jsonl"
    path.write_bytes(json.dumps(RAW).encode() + b"\n\nnot json\n")
    with pytest.raises(DataError, match=r"m\.jsonl line 3: is not JSON"):
        load_manifest(path)
    path.write_bytes(b'{"video": "\xff.mp4"}\n')
    with pytest.raises(DataError, match=r"m\.jsonl line 1: is not JSON"):
        load_manifest(path)


@pytest.mark.parametrize("content", ["", "\n \n"])
def test_an_empty_manifest(tmp_path, content):
    (tmp_path / "m.jsonl").write_text(content)
    with pytest.raises(DataError, match=r"m\.jsonl: the manifest is empty"):
        load_manifest(tmp_path / "m.jsonl")


def test_a_missing_manifest_and_a_folder(tmp_path):
    with pytest.raises(DataError, match=r"none\.jsonl: the manifest does not exist: check data\.manifest"):
        load_manifest(tmp_path / "none.jsonl")
    with pytest.raises(DataError, match="the manifest cannot be read: Is a directory"):
        load_manifest(tmp_path)


def test_ids_are_unique_and_stable(tmp_path):
    ranged = RAW | {"frame_start": 4, "frame_end": 21}
    path = write_lines(tmp_path / "m.jsonl", RAW, ranged, RAW, RAW, RAW | {"frame_start": 2}, RAW | {"sample_id": "x"})
    assert [row.sample_id for row in load_manifest(path)] == [
        "clips/c.mp4",
        "clips/c.mp4@4-21",
        "clips/c.mp4#2",
        "clips/c.mp4#3",
        "clips/c.mp4@2-",
        "x",
    ]
    write_lines(path, RAW | {"sample_id": "x"}, RAW, RAW | {"sample_id": "x"})
    with pytest.raises(DataError, match=r"line 3: sample_id 'x' is that of line 1 already"):
        load_manifest(path)


def test_unknown_columns_are_warned_of_once(tmp_path, caplog):
    rows = [EDIT | {"frame_strat": 3, "colour": "red", "target": f"{i}.mp4"} for i in range(5)]
    with caplog.at_level(logging.WARNING, "sama_data"):
        load_manifest(write_lines(tmp_path / "m.jsonl", *rows))
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == 2
    assert any("'frame_strat' is unknown and not used (did you mean 'frame_start'?)" in text for text in messages)
    assert any("'colour' is unknown" in text for text in messages)


def test_parquet_by_content_whatever_its_name(tmp_path, caplog):
    # pandas writes whole numbers with gaps as floats; the pictures' bytes are not read.
    table = pa.table(
        {
            "source": ["a.mp4", "c.mp4"],
            "target": ["b.mp4", "d.mp4"],
            "instruction": ["x", "y"],
            "frame_end": [21.0, float("nan")],
            "bytes": [b"0" * 100, b"1"],
        }
    )
    pq.write_table(table, tmp_path / "m.jsonl")
    with caplog.at_level(logging.WARNING, "sama_data"):
        dataset = load_manifest(tmp_path / "m.jsonl")
    assert [row.frame_end for row in dataset] == [21, None]
    assert dataset[1].target.path == tmp_path / "d.mp4"
    assert [record.getMessage() for record in caplog.records if "'bytes'" in record.getMessage()]
    pq.write_table(table.set_column(2, "instruction", [["x", ""]]), tmp_path / "m.parquet")
    with pytest.raises(DataError, match=r"m\.parquet row 2: instruction is empty"):
        load_manifest(tmp_path / "m.parquet")
    pq.write_table(table.select(["bytes"]), tmp_path / "m.parquet")
    with pytest.raises(DataError, match=r"m\.parquet: no known column among bytes"):
        load_manifest(tmp_path / "m.parquet")
    (tmp_path / "m.parquet").write_bytes((tmp_path / "m.jsonl").read_bytes()[:60])
    with pytest.raises(DataError, match=r"m\.parquet: is not readable Parquet"):
        load_manifest(tmp_path / "m.parquet")


def test_many_rows_cross_the_batches(tmp_path, monkeypatch):
    monkeypatch.setattr("sama_data.manifest._BATCH_ROWS", 3)
    path = write_lines(tmp_path / "m.jsonl", *[RAW | {"video": f"{i}.mp4"} for i in range(8)])
    assert [row.sample_id for row in load_manifest(path)] == [f"{i}.mp4" for i in range(8)]


def upright(media: Media | None) -> Media | None:
    """The same place, however the way to it is written."""
    return media if media is None or media.is_remote else replace(media, path=media.path.resolve())


@pytest.mark.parametrize("write", [write_jsonl, write_parquet])
def test_what_is_written_comes_back(tmp_path, write):
    records = [
        EDIT | {"task": "add", "frame_start": 4, "frame_end": 9},
        RAW | {"fps": 8.0},
        {"image": "e.png", "caption": "é"},
        EDIT | {"kind": "video", "source_offset": 1, "source_bytes": 2, "target_offset": 3, "target_bytes": 4},
        {"video": "memory://a.mp4", "caption": "x", "variable_fps": True, "rejected": "is damaged"},
    ]
    first = load_manifest(write_lines(tmp_path / "m.jsonl", *records))
    write(first, tmp_path / "deep" / "copy")
    second = load_manifest(tmp_path / "deep" / "copy")
    for old, new in zip(first, second, strict=True):
        assert replace(new, source=upright(new.source), target=upright(new.target)) == replace(
            old, source=upright(old.source), target=upright(old.target)
        )
    assert sorted(path.name for path in (tmp_path / "deep").iterdir()) == ["copy"]


@pytest.mark.parametrize(("write", "unit"), [(write_jsonl, "line"), (write_parquet, "row")])
def test_a_wrong_row_leaves_the_old_manifest(tmp_path, write, unit):
    write([RAW], tmp_path / "m.jsonl")
    with pytest.raises(DataError, match=rf"m\.jsonl {unit} 2: "):
        write([RAW, {"video": "x.mp4"}], tmp_path / "m.jsonl")
    assert [path.name for path in tmp_path.iterdir()] == ["m.jsonl"]
    assert len(load_manifest(tmp_path / "m.jsonl")) == 1


def test_a_blend_joins_manifests(tmp_path):
    (tmp_path / "other").mkdir()
    first = write_lines(tmp_path / "m.jsonl", RAW, EDIT)
    second = write_lines(tmp_path / "other" / "m.jsonl", RAW)
    blend = load_blend([(first, 1.0), (second, 2.5)])
    assert [row.sample_id for row in blend] == ["0:clips/c.mp4", "0:clips/b.mp4", "1:clips/c.mp4"]
    assert [row.index for row in blend] == [0, 1, 2]
    assert blend[2].target.path == tmp_path / "other" / "clips/c.mp4"
    assert [part.weight for part in blend.parts] == [1.0, 2.5]
    assert load_blend([(first, 3.0)])[0].sample_id == "clips/c.mp4"
    with pytest.raises(DataError, match=r"weight 0 of .* must be greater than 0"):
        load_blend([(first, 1.0), (second, 0)])
    with pytest.raises(DataError, match=r"data\.blend is empty"):
        load_blend([])


def test_shared_manifests_load_as_they_are(shared_root):
    pairs = load_manifest(shared_root / "videos" / "pairs.jsonl")
    raw = load_manifest(shared_root / "videos" / "raw.jsonl")
    assert (len(pairs), len(raw)) == (13, 4)
    assert all(row.is_edit and row.source.path.is_file() and row.target.path.is_file() and row.task for row in pairs)
    assert all(not row.is_edit and row.kind == "video" for row in raw)
