"""Rows that stay in their Parquet file: the same as rows in memory, for every thread, whatever becomes of the file."""

from __future__ import annotations

import contextlib
import random
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import sama_data.manifest
import sama_data.stored_rows
from sama_data.dataset import Dataset
from sama_data.errors import DataError
from sama_data.manifest import load_blend, load_manifest, write_jsonl, write_parquet
from sama_data.stored_rows import HeldRows, ParquetRows, as_one_batch

NUM_ROWS = 300


def make_rows(word: str = "red") -> list[dict[str, object]]:
    rows: list[dict[str, object]] = [
        {"source": f"a{number}.png", "target": f"b{number}.png", "instruction": f"Make {number} {word}.", "width": 8}
        for number in range(NUM_ROWS)
    ]
    rows[7] = {"video": "s3://bucket/c.tar", "caption": "x", "target_offset": 5, "target_bytes": 6, "kind": "video"}
    rows[9] = rows[8]
    return rows


@pytest.fixture
def path(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr("sama_data.manifest_writer.ROWS_PER_GROUP", 16)
    monkeypatch.setattr(sama_data.stored_rows, "_SCANNED_ROWS", 50)  # 4 groups at once, and a rest
    write_parquet(make_rows(), tmp_path / "m.parquet")
    return tmp_path / "m.parquet"


@pytest.fixture
def held(path, monkeypatch) -> Dataset:
    with monkeypatch.context() as patch:
        patch.setattr(sama_data.manifest, "_MOST_ROWS_PER_GROUP", 15)
        return load_manifest(path)


def test_rows_in_a_file_are_those_in_memory(path, held):
    dataset = load_manifest(path)
    assert isinstance(dataset.rows[0].stored, ParquetRows)
    assert isinstance(held.rows[0].stored, HeldRows)
    assert pq.ParquetFile(path).metadata.num_row_groups == 19
    assert list(dataset) == list(held)
    assert dataset.columns(["sample_id", "text", "width", "fps"]).equals(
        held.columns(["sample_id", "text", "width", "fps"])
    )
    assert dataset.digest() == held.digest()
    assert dataset.traits.protocols == {"s3"}
    assert dataset[9].sample_id == "b8.png#2"


def test_rows_nearby_share_one_read(path, monkeypatch):
    dataset = load_manifest(path)
    groups = []
    read = ParquetRows._read
    monkeypatch.setattr(ParquetRows, "_read", lambda self, *what: groups.append(what[1]) or read(self, *what))
    for index in (0, 15, 3, 16, 31, 299):
        assert dataset[index].text == ("x" if index == 7 else f"Make {index} red.")
    assert groups == [[0], [1], [18]]


@pytest.mark.parametrize("is_named", [True, False])
def test_names_are_read_without_the_rows(path, held, monkeypatch, is_named):
    if not is_named:
        pq.write_table(pq.read_table(path).drop_columns("sample_id"), path, row_group_size=16)
    rows = np.array([299, 7, 9, 8, 0, 9, 31, 16])
    dataset, read = load_manifest(path), []
    once = ParquetRows._read
    monkeypatch.setattr(ParquetRows, "_read", lambda self, *what: read.append(what) or once(self, *what))
    expected = [held[index].sample_id for index in rows.tolist()]
    assert dataset.sample_ids(rows) == held.sample_ids(rows) == expected
    columns = (["sample_id"],) if is_named else ()
    assert [(list(what[1]), what[2:]) for what in read] == [([group], columns) for group in (0, 1, 18)]
    assert dataset.sample_ids(rows[:0]) == []


def test_names_of_a_blend_tell_its_parts(path):
    write_jsonl([{"video": "z.mp4", "caption": "x"}], path.with_suffix(".jsonl"))
    blend = load_blend([(path, 1.0), (path.with_suffix(".jsonl"), 1.0)])
    rows = np.array([NUM_ROWS, 9, 0])
    assert (
        blend.sample_ids(rows)
        == [blend[index].sample_id for index in rows.tolist()]
        == ["1:z.mp4", "0:b8.png#2", "0:b0.png"]
    )
    assert blend.columns(["fps", "sample_id"])["sample_id"].to_pylist() == [row.sample_id for row in blend]


def test_threads_get_the_rows_they_ask_for(path, held):
    dataset = load_manifest(path)
    wrong: list[int] = []

    def ask(seed: int) -> None:
        choose = random.Random(seed)
        for index in (choose.randrange(NUM_ROWS) for _ in range(100)):
            if dataset[index] != held[index]:
                wrong.append(index)

    run_threads(ask, 4)
    assert wrong == []


@pytest.mark.parametrize("is_named", [True, False])
def test_names_and_whole_columns_are_read_while_rows_are(path, is_named):
    """As a step is planned on one thread and earlier ones' rows are read on others, with no lock between them."""
    if not is_named:
        pq.write_table(pq.read_table(path).drop_columns("sample_id"), path, row_group_size=16)
    dataset = load_manifest(path)
    rows, names = list(dataset), [row.sample_id for row in dataset]
    right: list[bool] = []

    def ask(seed: int) -> None:
        choose = np.random.default_rng(seed)
        for _ in range(40):
            chosen = choose.integers(0, NUM_ROWS, 24)
            if seed < 2:
                right.extend(dataset[index] == rows[index] for index in chosen.tolist())
            elif seed < 4:
                right.append(dataset.sample_ids(chosen) == [names[index] for index in chosen])
            else:
                right.append(dataset.columns(["sample_id"])["sample_id"].to_pylist() == names)

    run_threads(ask, 5)
    assert len(right) == 2 * 40 * 24 + 3 * 40
    assert all(right)


def test_one_thread_reads_at_a_time(path, monkeypatch):
    """A reader is not safe between threads."""
    dataset = load_manifest(path)
    both_read = threading.Barrier(2)
    met = []
    read = ParquetRows._read

    def read_and_wait(self: ParquetRows, *what: object) -> object:
        with contextlib.suppress(threading.BrokenBarrierError):
            both_read.wait(timeout=0.3)
            met.append(what)
        return read(self, *what)

    monkeypatch.setattr(ParquetRows, "_read", read_and_wait)
    run_threads(lambda number: dataset[100 * number], 2)
    assert met == []


def run_threads(work: Callable[[int], None], number: int) -> None:
    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(number)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
        assert not thread.is_alive()


@pytest.mark.parametrize("cores", [1, 3])
def test_the_cores_do_not_change_what_is_found(path, held, monkeypatch, cores):
    monkeypatch.setattr(sama_data.stored_rows.os, "sched_getaffinity", lambda _: set(range(cores)))
    assert list(load_manifest(path)) == list(held)
    table = pq.read_table(path)
    texts = table["instruction"].to_pylist()
    texts[40] = texts[200] = " "
    wrong = table.set_column(table.column_names.index("instruction"), "instruction", [texts])
    pq.write_table(wrong, path, row_group_size=16)
    for _ in range(5):
        with pytest.raises(DataError, match=r"m\.parquet row 41: instruction is empty"):
            load_manifest(path)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("sama-data-scan")]


def test_a_manifest_that_is_replaced_or_removed_stays_what_it_was(path, held):
    dataset = load_manifest(path)
    expected, digest = list(held), dataset.digest()
    write_parquet(make_rows("blue"), path)
    assert list(dataset) == expected
    assert dataset.digest() == digest != load_manifest(path).digest()
    path.unlink()
    assert dataset[NUM_ROWS - 1] == expected[-1]


def test_damage_in_the_middle_is_named(path):
    metadata = pq.ParquetFile(path).metadata
    content = bytearray(path.read_bytes())
    start = metadata.row_group(12).column(0).data_page_offset
    content[start : start + 40] = bytes(40)
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"m\.parquet: is not readable Parquet after row 192: ") as caught:
        load_manifest(path)
    assert "\n" not in str(caught.value)


def test_damage_that_comes_later_ends_the_reading_with_one_line(path):
    dataset = load_manifest(path)
    with open(path, "r+b") as file:
        file.write(bytes(200_000))
    with pytest.raises(DataError, match=r"m\.parquet: is not readable Parquet after row 144: "):
        dataset[150]


def test_a_row_group_without_rows_is_passed_over(tmp_path, monkeypatch):
    """Behind others whose rows fill a span, and between them."""
    monkeypatch.setattr(sama_data.stored_rows, "_SCANNED_ROWS", 2)
    rows = pa.table({"video": ["a.mp4", "b.mp4"], "caption": ["x", "y"]})
    more = pa.table({"video": ["c.mp4", "d.mp4"], "caption": ["x", "y"]})
    with pq.ParquetWriter(tmp_path / "m.parquet", rows.schema) as writer:
        for table in (rows, rows.slice(2), more, more.slice(2)):
            writer.write_table(table)
    assert pq.ParquetFile(tmp_path / "m.parquet").metadata.num_row_groups == 4
    dataset = load_manifest(tmp_path / "m.parquet")
    assert [row.sample_id for row in dataset] == ["a.mp4", "b.mp4", "c.mp4", "d.mp4"]


def test_no_text_is_left_in_arrays_that_hold_2_gib_at_most():
    """Or combining a row group with more would give several batches, of which one was read."""
    text = pa.chunked_array([["red", None], ["green"]])
    batch = as_one_batch(pa.table({"caption": text, "width": pa.chunked_array([[1], [2, 3]])}))
    assert batch.schema.field("caption").type == pa.large_string()
    assert batch.to_pydict() == {"caption": ["red", None, "green"], "width": [1, 2, 3]}
