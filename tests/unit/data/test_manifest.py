"""Manifests: what a row may hold, what errors name, and what is written comes back."""

from __future__ import annotations

import json
import logging
import tracemalloc
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import sama_data.columns
import sama_data.manifest
import sama_data.stored_rows
from sama_data.errors import DataError
from sama_data.manifest import Dataset, load_blend, load_manifest, write_jsonl, write_parquet
from sama_data.media import Media
from sama_data.rows import COUNT_COLUMNS, FLAG_COLUMNS, KNOWN_COLUMNS, NUMBER_COLUMNS, TEXT_COLUMNS

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
        "pixel_format": "yuv420p10le",
        "bit_depth": 10,
        "rotation": 0,
        "duration_seconds": 5.625,
        "variable_fps": False,
        "rejected": "unequal lengths",
        "unscored": "the answer is empty",
    }
    parts = {"source_offset": 0, "source_bytes": 7, "target_offset": 512, "target_bytes": 0}
    row = load_manifest(write_lines(tmp_path / "m.jsonl", EDIT | known | parts))[0]
    assert {name: getattr(row, name) for name in known} == known
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


@pytest.mark.parametrize(("record", "message"), BAD_ROWS[:-1], ids=[message for _, message in BAD_ROWS[:-1]])
def test_parquet_has_the_same_errors(tmp_path, record, message):
    rows = [RAW, RAW | {"video": "d.mp4"}, record]
    try:
        table = pa.table({name: [row.get(name) for row in rows] for name in {**RAW, **record}})
    except pa.ArrowException:
        pytest.skip("no column of Parquet holds such a value among others")
    path = tmp_path / "m.parquet"
    pq.write_table(table, path)
    with pytest.raises(DataError) as caught:
        load_manifest(path)
    assert str(caught.value).startswith(f"{path} row 3: ")
    assert message.split(" among")[0] in str(caught.value)  # all rows of a table have the same keys
    with pytest.raises(DataError) as line_error:
        load_manifest(write_lines(tmp_path / "m.jsonl", *rows))
    words = [str(error.value).split(": ", 1)[1].split(" among")[0] for error in (caught, line_error)]
    assert words[0] == words[1]


def test_a_wrong_row_comes_before_a_later_line_that_is_no_json(tmp_path):
    path = write_lines(tmp_path / "m.jsonl", RAW, {"video": "d.mp4"})
    with open(path, "a") as file:
        file.write("not json\n")
    with pytest.raises(DataError, match=r"line 2: .* no 'caption'"):
        load_manifest(path)
    write_lines(path, RAW)
    with open(path, "a") as file:
        file.write("\n\nnot json\n")
    with pytest.raises(DataError, match=r"line 4: is not JSON"):
        load_manifest(path)


def test_blank_lines_count(tmp_path):
    path = tmp_path / "m.jsonl"
    path.write_text(f"\n{json.dumps(RAW)}\n\n{json.dumps(RAW | {'caption': ' '})}\n")
    with pytest.raises(DataError, match="line 4: caption is empty"):
        load_manifest(path)
    path.write_text(f"\n{json.dumps(RAW | {'sample_id': 'x'})}\n\n{json.dumps(RAW | {'sample_id': 'x'})}\n")
    with pytest.raises(DataError, match="line 4: sample_id 'x' is that of line 2 already"):
        load_manifest(path)


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
    path.write_text("video,prompt\na.mp4,A cat.\n")  # a list of another tool's
    with pytest.raises(DataError, match=r"line 1: is not JSON.*data ingest"):
        load_manifest(path)
    path.write_bytes(b'{"video": "\xff.mp4"}\n')
    with pytest.raises(DataError, match=r"m\.jsonl line 1: is not JSON"):
        load_manifest(path)


def test_a_list_of_another_tool_is_told_where_to_go(tmp_path):
    with pytest.raises(DataError, match="among its keys: video_path, caption; data ingest makes a manifest of"):
        load_manifest(write_lines(tmp_path / "m.jsonl", {"video_path": "b.mp4", "caption": "x"}))


@pytest.mark.parametrize("content", ["", "\n \n"])
def test_an_empty_manifest(tmp_path, content):
    (tmp_path / "m.jsonl").write_text(content)
    with pytest.raises(DataError, match=r"m\.jsonl: the manifest is empty"):
        load_manifest(tmp_path / "m.jsonl")


def test_a_missing_manifest_and_a_folder(tmp_path):
    with pytest.raises(
        DataError, match=r"none\.jsonl: the manifest does not exist: check its path \(in a recipe, data\.manifest"
    ):
        load_manifest(tmp_path / "none.jsonl")
    with pytest.raises(DataError, match="is a folder: name the manifest in it"):
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


paths = st.sampled_from(["a.mp4", "b/c.png", "../d.JPG", "s3://bucket/e.mp4", "é.tar"])
some_text = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1).filter(str.strip)
ranges = st.fixed_dictionaries({"offset": st.integers(0, 2**40), "bytes": st.integers(0, 2**40)})
optional = {
    **dict.fromkeys((*TEXT_COLUMNS, "sample_id"), some_text),
    **{
        name: st.integers(least, 2**50) for name, least in COUNT_COLUMNS.items() if name[:6] not in ("source", "target")
    },
    **dict.fromkeys(NUMBER_COLUMNS, st.floats(0.5, 99)),
    **dict.fromkeys(FLAG_COLUMNS, st.booleans()),
}


@st.composite
def manifest_rows(draw: st.DrawFn) -> list[dict[str, object]]:
    rows = []
    for number in range(draw(st.integers(1, 5))):
        is_edit = draw(st.booleans())
        row = draw(st.fixed_dictionaries({}, optional=optional))
        if is_edit:
            row |= {"source": draw(paths), "target": draw(paths), "instruction": draw(some_text)}
        else:
            row |= {draw(st.sampled_from(["image", "video"])): draw(paths), "caption": draw(some_text)}
        for side in ("source", "target") if is_edit else ("target",):
            if draw(st.booleans()):
                row |= {f"{side}_{name}": value for name, value in draw(ranges).items()}
        row["kind"] = draw(st.sampled_from(["image", "video"]))
        row["frame_end"] = row.get("frame_start", 0) + draw(st.integers(1, 99))
        if "sample_id" in row:
            row["sample_id"] = f"{number}: {row['sample_id']}"  # unique
        rows.append(row)
    return rows


def same_rows(first: Dataset, second: Dataset) -> bool:
    return len(first) == len(second) and all(
        replace(one, source=upright(one.source), target=upright(one.target))
        == replace(other, source=upright(other.source), target=upright(other.target))
        for one, other in zip(first, second, strict=True)
    )


@settings(max_examples=25)
@given(manifest_rows())
def test_rows_survive_every_form(tmp_path_factory, rows):
    folder = tmp_path_factory.getbasetemp()
    write_jsonl(rows, folder / "m.jsonl")
    write_parquet(rows, folder / "m.parquet")
    first, second = (load_manifest(folder / name) for name in ("m.jsonl", "m.parquet"))
    assert same_rows(first, second)
    for given_row, row in zip(rows, second, strict=True):
        for name in ("kind", *optional):
            assert getattr(row, name) == given_row.get(name, row.sample_id if name == "sample_id" else None) or (
                name == "frame_start" and name not in given_row and row.frame_start == 0
            )
    write_parquet(first, folder / "deep" / "m.parquet")
    write_jsonl(second, folder / "deep" / "m.jsonl")
    assert same_rows(first, load_manifest(folder / "deep" / "m.parquet"))
    assert same_rows(first, load_manifest(folder / "deep" / "m.jsonl"))


@pytest.mark.parametrize("write", [write_jsonl, write_parquet])
def test_paths_hold_behind_links(tmp_path, write):
    (tmp_path / "real" / "deep").mkdir(parents=True)
    (tmp_path / "clips").mkdir()
    (tmp_path / "clips" / "c.mp4").write_text("a clip")
    (tmp_path / "link").symlink_to("real/deep")
    write_lines(tmp_path / "m.jsonl", RAW)
    write(load_manifest(tmp_path / "m.jsonl"), tmp_path / "link" / "m")
    write(load_manifest(tmp_path / "link" / "m"), tmp_path / "again")  # its paths lead through the link and back
    for place in ("link/m", "real/deep/m", "again"):
        (row,) = load_manifest(tmp_path / place)
        assert row.target.read() == b"a clip", place


def test_parquet_keeps_names_and_kinds_and_only_columns_that_are_used(tmp_path):
    rows = [RAW, RAW, EDIT | {"width": 5.0}, RAW | {"rejected": "is damaged"}]
    write_parquet(rows, tmp_path / "m.parquet")
    table = pq.read_table(tmp_path / "m.parquet")
    assert set(table.column_names) == {*RAW, *EDIT, "kind", "sample_id", "width", "rejected"}
    kept = load_manifest(tmp_path / "m.parquet")[1:]
    write_parquet(kept, tmp_path / "less.parquet")
    names = ["clips/c.mp4#2", "clips/b.mp4", "clips/c.mp4#3"]
    assert [row.sample_id for row in load_manifest(tmp_path / "less.parquet")] == names
    assert sorted(path.name for path in tmp_path.iterdir()) == ["less.parquet", "m.parquet"]


def test_parquet_is_not_written_with_a_name_twice(tmp_path):
    with pytest.raises(DataError, match=r"m\.parquet row 3: sample_id 'x' is that of row 1 already"):
        write_parquet([RAW | {"sample_id": "x"}, RAW, RAW | {"sample_id": "x"}], tmp_path / "m.parquet")
    assert list(tmp_path.iterdir()) == []
    write_parquet([], tmp_path / "m.parquet")
    with pytest.raises(DataError, match=r"m\.parquet: the manifest is empty"):
        load_manifest(tmp_path / "m.parquet")


def test_manifests_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    for write in (write_jsonl, write_parquet):
        with pytest.raises(DataError, match="cannot write the manifest"):
            write([RAW], tmp_path / "file" / "m")


NUM_MANY = 200_000


@pytest.fixture(scope="module")
def many(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("many") / "m.parquet"
    rows = (
        {
            "source": f"set/{number // 1000}/before/{number:09d}.{'png' if number % 5 else 'mp4'}",
            "target": f"set/{number // 1000}/after/{number:09d}.{'png' if number % 5 else 'mp4'}",
            "instruction": f"Make number {number} red.",
            "width": 832,
            "num_frames": None if number % 5 else 81,
            "rejected": None if number % 1000 else "is damaged",
        }
        for number in range(NUM_MANY)
    )
    write_parquet(rows, path)
    return path


def test_many_rows_are_opened_without_a_look_at_each(many, monkeypatch):
    for module in (sama_data.columns, sama_data.stored_rows):
        monkeypatch.setattr(module, "parse_row", lambda *_: pytest.fail("a row was looked at alone"))
    tracemalloc.start()
    dataset = load_manifest(many)
    _, most_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # Traits and hashes: 23 bytes a row. One Python object a row would take 50 more.
    assert most_bytes < 60 * NUM_MANY + (8 << 20)
    assert len(dataset) == NUM_MANY
    assert len(dataset.indices_of("video")) == NUM_MANY // 5 - NUM_MANY // 1000
    assert len(dataset.indices_of("image")) == NUM_MANY // 5 * 4
    monkeypatch.undo()
    for index in (0, 4095, 4096, 123_456, NUM_MANY - 1):
        row = dataset[index]
        assert (row.index, row.text) == (index, f"Make number {index} red.")
        assert row.sample_id == f"set/{index // 1000}/after/{index:09d}.{'png' if index % 5 else 'mp4'}"
        assert (row.rejected is None, row.num_frames) == (index % 1000 != 0, None if index % 5 else 81)


def test_a_wrong_row_far_down_is_named(many, tmp_path):
    table = pq.read_table(many)
    texts = table["instruction"].to_pylist()
    texts[150_000], texts[190_000] = " ", ""
    broken = table.set_column(table.column_names.index("instruction"), "instruction", [texts])
    pq.write_table(broken, tmp_path / "m.parquet", row_group_size=1000)
    with pytest.raises(DataError, match=r"m\.parquet row 150001: instruction is empty"):
        load_manifest(tmp_path / "m.parquet")


def test_copies_far_apart_are_told_apart(tmp_path):
    rows = [RAW | {"video": f"{number % 60_000}.mp4"} for number in range(70_000)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "m.parquet", row_group_size=4096)
    dataset = load_manifest(tmp_path / "m.parquet")
    assert [dataset[index].sample_id for index in (7, 59_999, 60_000, 60_007)] == [
        "7.mp4",
        "59999.mp4",
        "0.mp4#2",
        "7.mp4#2",
    ]
    names = dataset.columns(["sample_id", "kind"])
    assert names.column_names == ["sample_id", "kind"]
    assert names["sample_id"].to_pylist()[60_007] == "7.mp4#2"
    assert len(set(names["sample_id"].to_pylist())) == 70_000


def test_what_must_be_held_in_memory_is_warned_of(many, monkeypatch, caplog):
    monkeypatch.setattr(sama_data.manifest, "_LARGE_BYTES", 1000)
    load_manifest(many)
    assert not caplog.records  # it stays in its file
    pq.write_table(pq.read_table(many), many.with_name("one_group.parquet"))
    dataset = load_manifest(many.with_name("one_group.parquet"))
    assert "one_group.parquet: its rows take 0.1 GiB of memory in every process: write them with" in caplog.text
    assert dataset[77_777] == load_manifest(many)[77_777]


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
    table = blend.columns(["text", "sample_id"])
    assert table.to_pylist() == [{"text": row.text, "sample_id": row.sample_id} for row in blend]
    assert blend.digest() == load_blend([(first, 1.0), (second, 2.5)]).digest()
    assert blend.digest() != load_blend([(second, 1.0), (first, 2.5)]).digest()
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


@pytest.mark.parametrize("columns", [{}, {"kind": [None, None, "video"]}])
@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_the_column_image_holds_images_whatever_they_are_called(tmp_path, suffix, columns):
    rows = {"image": ["a.bmp", None, "c.tiff"], "video": [None, "b.mp4", None], "caption": ["x", "y", "z"], **columns}
    path = tmp_path / f"m.{suffix}"
    if suffix == "jsonl":
        write_lines(path, *pa.table(rows).to_pylist())
    else:
        pq.write_table(pa.table(rows), path)
    kinds = ["image", "video", "video" if columns else "image"]
    assert [row.kind for row in load_manifest(path)] == kinds
    write_parquet(load_manifest(path), tmp_path / "again.parquet")
    assert [row.kind for row in load_manifest(tmp_path / "again.parquet")] == kinds


def test_a_signed_address_tells_an_image_by_its_path(tmp_path):
    signed = {"source": "https://host/a.jpg?key=x/y", "target": "https://host/b.PNG?", "instruction": "Do."}
    clip = {"video": "https://host/c.mp4?poster=a.jpg&key=x", "caption": "A cat."}
    assert [row.kind for row in load_manifest(write_lines(tmp_path / "m.jsonl", signed, clip))] == ["image", "video"]


@pytest.mark.parametrize("more", ['"fps": 1' + "0" * 400, '"more": ' + "[" * 100_000 + "]" * 100_000])
def test_json_that_python_cannot_hold_is_one_line(tmp_path, more):
    (tmp_path / "m.jsonl").write_text('{"video": "c.mp4", "caption": "A cat.", ' + more + "}\n")
    with pytest.raises(DataError, match=r"m\.jsonl line 1: "):
        load_manifest(tmp_path / "m.jsonl")


def test_the_digest_of_the_order_knows_what_is_drawn_and_nothing_else(tmp_path):
    def digest(*records: dict) -> str:
        return load_manifest(write_lines(tmp_path / "m.jsonl", *records)).order_digest()

    same = [EDIT, RAW, {"image": "d.png", "caption": "A dog."}]
    assert digest(*same) == digest(*(row | {"if_score": 9, "width": 8} for row in same))
    write_parquet(load_manifest(tmp_path / "m.jsonl"), tmp_path / "m.parquet")
    assert load_manifest(tmp_path / "m.parquet").order_digest() == digest(*same)
    others = [
        [RAW, EDIT, same[2]],
        [*same, EDIT],
        same[:2],
        [EDIT, RAW | {"rejected": "is empty"}, same[2]],
        [EDIT, RAW | {"kind": "image"}, same[2]],
        [EDIT, RAW | {"frame_start": 1}, same[2]],
    ]
    assert len({digest(*rows) for rows in others} | {digest(*same)}) == 1 + len(others)
