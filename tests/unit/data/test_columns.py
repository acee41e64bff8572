"""Rows checked as columns: what `parse_row` says of each, and no row is parsed where all are right."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import sama_data.columns
from sama_data.columns import FILE_SCHEMA, SCHEMA, check_batch, file_batch, whole_batch
from sama_data.errors import DataError
from sama_data.places import Places
from sama_data.rows import COUNT_COLUMNS, FLAG_COLUMNS, KNOWN_COLUMNS, NUMBER_COLUMNS, TEXT_COLUMNS, parse_row

EDIT = {"source": "clips/a.mp4", "target": "clips/b.mp4", "instruction": "Make it red."}
RAW = {"video": "clips/c.mp4", "caption": "A cat."}
MEMBER = {"target_offset": 512, "target_bytes": 9, "kind": "image"}
PLACES = Places(Path("m.jsonl"), "line")

texts = st.sampled_from(
    ["a.mp4", "b/c.PNG", ".png", "x/.jpg", "a.png/", "é", "\u3000", "", " \t", "a\0b", "\ud800", "a\n"]
)
counts = st.one_of(st.integers(-1, 2**64), st.sampled_from([0, 1, 7, 7.0, 7.5, math.inf, 2.0**63, True, "7"]))
numbers = st.one_of(st.floats(), st.integers(-3, 2**70), st.sampled_from([True, "9", [1.0], None]))
flags = st.sampled_from([True, False, 1, "true", None])
kinds = st.sampled_from(["image", "video", "picture", "", 3, None])
good = {
    **{name: st.sampled_from(["a.mp4", "b.png", "s3://b/c.JPEG", "d.tar"]) for name in KNOWN_COLUMNS[:4]},
    **{name: st.text(min_size=1).filter(str.strip) for name in ("instruction", "caption", "sample_id", *TEXT_COLUMNS)},
    **{name: st.one_of(st.integers(least, 2**40), st.just(float("nan"))) for name, least in COUNT_COLUMNS.items()},
    **{name: st.floats(0.5, 90) for name in NUMBER_COLUMNS},
    **{name: st.booleans() for name in FLAG_COLUMNS},
    "kind": st.sampled_from(["image", "video"]),
}
bad = {
    **dict.fromkeys((*KNOWN_COLUMNS[:7], *TEXT_COLUMNS), texts),
    **dict.fromkeys(COUNT_COLUMNS, counts),
    **dict.fromkeys(NUMBER_COLUMNS, numbers),
    **dict.fromkeys(FLAG_COLUMNS, flags),
    "kind": kinds,
    "colour": st.just("red"),
}
bases = st.sampled_from([EDIT, RAW, {"image": "d.png", "caption": "A dog."}, RAW | MEMBER, {}])
rows = st.builds(
    lambda base, mostly_good, odd: base | mostly_good | odd,
    bases,
    st.fixed_dictionaries({}, optional=good),
    st.one_of(st.just({}), st.just({}), st.fixed_dictionaries({}, optional=bad)),
)


def outcome(check: Any, *arguments: Any) -> Any:
    """The rows as they come out, or the words of the error."""
    try:
        return check(*arguments)
    except DataError as error:
        return str(error)


def canonical(given: Any) -> list[dict[str, Any]]:
    return whole_batch(check_batch(given, PLACES, 0)).to_pylist()


def one_by_one(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    parsed = [parse_row(record, PLACES.full(number)) for number, record in enumerate(records)]
    return [{name: row[name] for name in SCHEMA.names} for row in parsed]


def as_batch(records: list[dict[str, Any]]) -> pa.RecordBatch | None:
    """As another writer would put them into Parquet, where that can hold them."""
    names = dict.fromkeys(name for record in records for name in record)
    try:
        columns = {name: pa.array([record.get(name) for record in records]) for name in names}
    except (pa.ArrowException, UnicodeEncodeError, OverflowError):
        return None
    return pa.RecordBatch.from_pydict(columns) if columns else None


@given(st.lists(rows, min_size=1, max_size=4))
@example([RAW | {"fps": 1.5}, RAW | {"fps": True}])
@example([RAW | {"width": 7.0}, RAW | {"width": 2.0**63}])
@example([EDIT, {"source": "a.mp4", "instruction": "x"}, {"target": "a.mp4", "instruction": "x"}])
@example([EDIT, RAW, RAW | {"target": "b.mp4"}])
@example([EDIT, RAW, RAW | {"source": "a.mp4", "instruction": "x"}])
@example([EDIT | {"source": "a.png"}, RAW])
@example([EDIT | {"source": "a.png", "kind": "video"}, RAW])
@example([RAW | {"source_offset": 1, "source_bytes": 1, "kind": "video"}, EDIT])
@example([RAW | MEMBER, RAW | {"target_offset": 1, "target_bytes": 1}])
@example([RAW | {"frame_start": 5}, RAW | {"frame_start": 5, "frame_end": 5}])
def test_columns_say_what_rows_say(records):
    expected = outcome(one_by_one, records)
    assert outcome(canonical, records) == expected
    batch = as_batch(records)
    if batch is not None:
        # Parquet may hold other types than JSON gave, and every row has all keys; the row check sees those.
        assert outcome(canonical, batch) == outcome(one_by_one, batch.to_pylist())


odd_values = {
    **dict.fromkeys(
        (*KNOWN_COLUMNS[:7], *TEXT_COLUMNS), ("", " ", "\u3000\n", "a\0b", "\ud800", ".png", 3, math.nan, [])
    ),
    **dict.fromkeys(COUNT_COLUMNS, (-1, 0, 1, 2.0, 2.5, 2**63, 2.0**63, math.inf, math.nan, True, "7", None)),
    **dict.fromkeys(NUMBER_COLUMNS, (-1, 0, 2**70, math.inf, -math.inf, math.nan, True, "9", None)),
    **dict.fromkeys(FLAG_COLUMNS, (True, 1, 1.0, "true", None)),
    "kind": ("image", "video", "picture", "", 3, None),
}


@pytest.mark.parametrize("base", [EDIT, RAW, EDIT | MEMBER], ids=["edit", "raw", "member"])
@pytest.mark.parametrize("name", odd_values)
def test_one_odd_value_among_good_rows(base, name):
    whole = base | {"width": 3, "fps": 1.5, "task": "x", "variable_fps": False, "kind": "video", "sample_id": "a"}
    for value in odd_values[name]:
        for records in ([base, base | {name: value}], [whole, whole | {name: value}, whole]):
            assert outcome(canonical, records) == outcome(one_by_one, records)
            batch = as_batch(records)
            if batch is not None:
                assert outcome(canonical, batch) == outcome(one_by_one, batch.to_pylist())


GOOD = {
    "edits": [EDIT, EDIT | {"task": "add", "width": 5}],
    "raw": [RAW, {"image": "d.png", "caption": "\u3000x "}, RAW | {"image": "e.jpg"}],
    "both": [EDIT, RAW, EDIT | {"caption": "unused", "video": "unused"}],
    "gaps": [RAW | {"fps": math.nan, "width": 7.0, "source": math.nan}, RAW | {"fps": 3, "width": math.nan}],
    "members": [RAW | MEMBER, RAW, EDIT | {"source_offset": 0, "source_bytes": 1, "kind": "video"}],
    "everything": [
        EDIT
        | dict.fromkeys(TEXT_COLUMNS, "x")
        | dict.fromkeys(COUNT_COLUMNS, 3)
        | {"frame_end": 4, "kind": "video", "sample_id": "a"}
        | dict.fromkeys(NUMBER_COLUMNS, 0.5)
        | dict.fromkeys(FLAG_COLUMNS, True)
    ],
}


@pytest.fixture
def no_row_is_parsed(monkeypatch):
    monkeypatch.setattr(sama_data.columns, "parse_row", lambda *_: pytest.fail("a good row was looked at alone"))


@pytest.mark.parametrize("name", GOOD)
def test_good_rows_are_not_looked_at_alone(name, no_row_is_parsed):
    assert canonical(GOOD[name]) == one_by_one(GOOD[name])
    batch = as_batch(GOOD[name])
    assert batch is not None
    assert canonical(batch) == one_by_one(GOOD[name])
    for encoded in (pa.dictionary(pa.int32(), pa.string()), pa.large_string()):
        fields = [pa.field(f.name, encoded if pa.types.is_string(f.type) else f.type) for f in batch.schema]
        assert canonical(batch.cast(pa.schema(fields))) == one_by_one(GOOD[name])


def test_the_first_wrong_row_is_named_with_its_number():
    places = Places(Path("m.jsonl"), "line", [1, 2, 3, 50, 70])
    with pytest.raises(DataError, match=r"^m\.jsonl line 50: caption is empty$"):
        check_batch([RAW, RAW | {"caption": " "}, {}], places, 2)


@pytest.mark.parametrize("wrong", [{"caption": " "}, {"width": 2.5}])
@pytest.mark.parametrize("number", [0, 700, 1999])
def test_a_wrong_row_among_many_is_found_by_few_looks(monkeypatch, wrong, number):
    looked = []
    monkeypatch.setattr(sama_data.columns, "parse_row", lambda *row: looked.append(row) or parse_row(*row))
    records = [RAW | {"width": 3} for _ in range(2000)]
    records[number] |= wrong
    for given_rows in (records, as_batch(records)):
        with pytest.raises(DataError, match=rf"m\.jsonl line {number + 11}: "):
            check_batch(given_rows, PLACES, 10)
    assert len(looked) < 600
    looked.clear()
    records[number] = {"video": 3, **EDIT}  # good, but no batch of columns can hold a 3 in one of text
    assert canonical(records) == one_by_one(records)
    assert 0 < len(looked) < 300


def test_text_that_is_not_utf8_is_named():
    texts = pa.Array.from_buffers(
        pa.string(), 2, [None, pa.py_buffer(np.array([0, 1, 2], np.int32)), pa.py_buffer(b"a\xff")]
    )
    batch = pa.RecordBatch.from_pydict({"video": pa.array(["a.mp4", "b.mp4"]), "caption": texts})
    with pytest.raises(DataError, match=r"m\.jsonl line 2: holds text that is not UTF-8"):
        check_batch(batch, PLACES, 0)


@pytest.mark.parametrize("name", GOOD)
def test_a_parquet_files_columns_mean_the_same(name, no_row_is_parsed):
    checked = check_batch(GOOD[name], PLACES, 0)
    written = file_batch(checked)
    assert written.schema == FILE_SCHEMA
    assert whole_batch(check_batch(written, PLACES, 0)).equals(whole_batch(checked))


def test_the_schema_is_what_a_row_becomes():
    assert set(SCHEMA.names) == set(parse_row(EDIT, "here"))
    assert set(FILE_SCHEMA.names) == set(KNOWN_COLUMNS)
