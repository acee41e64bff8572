"""Files of rows: any size, any delimiter, quotes, byte order marks; one bad row costs one row."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sama_data.errors import DataError
from sama_data.ingest.csv_records import BROKEN, WRONG_LENGTH, csv_rows
from sama_data.ingest.interface import Job, Skip
from sama_data.ingest.json_stream import json_values
from sama_data.ingest.metadata import Record, read_records

scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
objects = st.dictionaries(st.text(max_size=5), scalars | st.lists(scalars, max_size=3), max_size=4)


def read(path: Path) -> list[Record | Skip]:
    return list(read_records(path, Job(path, path.parent)))


def values(path: Path) -> list[object]:
    return [item.values if isinstance(item, Record) else item.reason for item in read(path)]


@given(st.lists(objects | scalars, max_size=8), st.sampled_from((None, 1)), st.integers(1, 40), st.booleans())
def test_a_list_is_read_item_by_item(items, indent, chunk, ascii_only):
    text = json.dumps(items, indent=indent, ensure_ascii=ascii_only)
    assert list(json_values(io.StringIO(text), Path("x.json"), chunk)) == items


@given(st.lists(objects, min_size=1, max_size=5), st.integers(1, 40))
def test_values_behind_each_other_are_read_too(items, chunk):
    text = "\n".join(json.dumps(item, indent=2) for item in items)
    assert list(json_values(io.StringIO(text), Path("x.json"), chunk)) == items


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[{"a": 1}, {"a": 2}', "ends inside its list, after item 2"),
        ('[{"a": 1}, {"a": ', "item 2 is not JSON"),
        ("[" * 100_000, "nested too deep"),
        ("nonsense", "item 1 is not JSON"),
    ],
)
def test_json_that_breaks_off_is_one_line(text, message):
    with pytest.raises(DataError, match=message):
        list(json_values(io.StringIO(text), Path("x.json"), 8))


cells = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=12)


@given(st.lists(st.tuples(cells, cells, cells), max_size=6), st.sampled_from((";", ",", "\t")))
def test_csv_with_quotes_delimiters_and_line_ends(rows, delimiter):
    text = io.StringIO(newline="")
    writer = csv.writer(text, delimiter=delimiter, quoting=csv.QUOTE_ALL)
    writer.writerows([("video", "prompt", "original_video"), *rows])
    text.seek(0)
    found = [tuple(row.values.values()) for row in csv_rows(text, "x.csv") if not isinstance(row, Skip)]
    assert found == rows


def test_a_quote_that_is_not_closed_costs_one_row():
    text = 'video;prompt\na.mp4;"half a quote\nb.mp4;fine\nc.mp4;"quoted; and\nover two lines"\nd.mp4;"open again'
    rows = list(csv_rows(io.StringIO(text, newline=""), "x.csv"))
    assert [row.values["video"] for row in rows if not isinstance(row, Skip)] == ["b.mp4", "c.mp4"]
    assert rows[2].values["prompt"] == "quoted; and\nover two lines"
    assert [(row.reason, row.place) for row in rows if isinstance(row, Skip)] == [
        (BROKEN, "x.csv line 2"),
        (BROKEN, "x.csv line 6"),
    ]


def test_a_field_without_end_does_not_fill_the_memory():
    text = 'video;prompt\na.mp4;"' + "x" * 200_000 + "\nb.mp4;fine\n"
    rows = list(csv_rows(io.StringIO(text, newline=""), "x.csv"))
    assert [row.reason if isinstance(row, Skip) else row.values["video"] for row in rows] == [BROKEN, "b.mp4"]


def test_csv_records_of_another_length_are_left_out():
    text = "video;prompt\n\na.mp4;unquoted; semicolon\nb.mp4\nc.mp4;fine\n"
    rows = list(csv_rows(io.StringIO(text, newline=""), "x.csv"))
    assert [row.reason if isinstance(row, Skip) else row.values["video"] for row in rows] == [
        WRONG_LENGTH,
        WRONG_LENGTH,
        "c.mp4",
    ]
    assert rows[0].place == "x.csv line 3"


@pytest.mark.parametrize(("text", "message"), [("", "is empty"), ("video;video\n", "'video' more than once")])
def test_a_csv_needs_a_header(text, message):
    with pytest.raises(DataError, match=message):
        list(csv_rows(io.StringIO(text), "x.csv"))


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_a_byte_order_mark_is_no_part_of_the_first_column(tmp_path, encoding):
    (tmp_path / "x.csv").write_bytes("video;prompt\nä.mp4;Größer\n".encode(encoding))
    assert values(tmp_path / "x.csv") == [{"video": "ä.mp4", "prompt": "Größer"}]
    (tmp_path / "x.jsonl").write_bytes('{"video": "ä.mp4"}\n'.encode(encoding))
    assert values(tmp_path / "x.jsonl") == [{"video": "ä.mp4"}]


def test_windows_line_ends(tmp_path):
    (tmp_path / "x.csv").write_bytes(b"video,prompt\r\na.mp4,red\r\n")
    assert values(tmp_path / "x.csv") == [{"video": "a.mp4", "prompt": "red"}]


def test_bad_lines_of_jsonl_cost_one_row_each(tmp_path):
    (tmp_path / "x.jsonl").write_bytes(b'{"a": 1}\n\n{"a": \n[1]\n{"a": "\xff"}\n{"a": 2}\n')
    assert values(tmp_path / "x.jsonl") == [
        {"a": 1},
        "line is not JSON",
        "not a JSON object",
        {"a": "\udcff"},  # not UTF-8: kept apart until the row is left out for it
        {"a": 2},
    ]
    assert [item.number for item in read(tmp_path / "x.jsonl") if isinstance(item, Record)] == [1, 5, 6]


def test_a_json_list_that_is_called_jsonl(tmp_path):
    (tmp_path / "x.jsonl").write_bytes(b'\xef\xbb\xbf [\n{"a": 1},\n{"a": 2}]\n')
    assert values(tmp_path / "x.jsonl") == [{"a": 1}, {"a": 2}]


def test_parquet_columns_that_hold_pictures_are_not_read(tmp_path):
    table = pa.table({"video": ["a.mp4"], "picture": [b"\xff\xd8"], "both": [{"bytes": b"\xff", "path": "a.jpg"}]})
    pq.write_table(table, tmp_path / "x.parquet")
    assert values(tmp_path / "x.parquet") == [{"video": "a.mp4"}]


def test_how_far_the_reading_is(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text('{"a": "' + "x" * 100 + '"}\n' * 1 + '{"b": 1}\n' * 5000)
    job = Job(path, tmp_path)
    at = [job.advance.done for _ in read_records(path, job)]
    assert at == sorted(at)
    assert 0 < at[-1] <= path.stat().st_size
    assert job.advance.done == job.advance.total == path.stat().st_size
