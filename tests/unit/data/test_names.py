"""Names of rows: stable, unique, found by hashes as they would be one after the other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

import sama_data.names
from sama_data.columns import check_batch, whole_batch
from sama_data.errors import DataError
from sama_data.names import default_name, hash_names, names_of, number_copies, with_copies
from sama_data.places import Places

PLACES = Places(Path("m.jsonl"), "line")


def batch_of(rows: list[dict[str, Any]]) -> pa.RecordBatch:
    return check_batch([{"video": "a", "caption": "x", "kind": "video"} | row for row in rows], PLACES, 0)


def name_one_by_one(rows: list[dict[str, Any]]) -> list[str] | str:
    """Every row in turn takes its name, or the first number that is free behind it."""
    taken: dict[str, int] = {}
    for number, row in enumerate(whole_batch(batch_of(rows)).to_pylist()):
        name = row["sample_id"] or default_name(row)
        if name in taken and row["sample_id"]:
            return f"m.jsonl line {number + 1}: sample_id {name!r} is that of line {taken[name] + 1} already"
        free, copy = name, 2
        while free in taken:
            free, copy = f"{name}#{copy}", copy + 1
        taken[free] = number
    return list(taken)


def name_by_hashes(rows: list[dict[str, Any]], size: int = 2) -> list[str] | str:
    batch = batch_of(rows)
    batches = [batch.slice(start, size) for start in range(0, len(batch), size)]
    hashes = np.concatenate([hash_names(names_of(one)) for one in batches])
    try:
        copies = number_copies(hashes, lambda: batches, PLACES)
    except DataError as error:
        return str(error)
    names = names_of(batch)
    return (names if copies is None else with_copies(names, copies)).to_pylist()


few_names = st.sampled_from(["a", "a#2", "a#2#2", "a#3", "b", "a:1", "a:1@2-", "a@0-3"])
row_lists = st.lists(
    st.fixed_dictionaries(
        {"video": few_names},
        optional={
            "sample_id": few_names,
            "frame_start": st.integers(0, 2),
            "frame_end": st.integers(3, 4),
        },
    )
    | st.fixed_dictionaries({"video": few_names, "target_offset": st.integers(1, 2), "target_bytes": st.just(3)}),
    min_size=1,
    max_size=12,
)


@given(row_lists)
def test_names_are_those_given_one_after_the_other(rows):
    assert name_by_hashes(rows) == name_one_by_one(rows)


@given(row_lists)
def test_equal_hashes_of_different_names_do_no_harm(rows):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sama_data.names, "_ALL_BITS", np.uint64(0))  # only the lengths count
        assert name_by_hashes(rows) == name_one_by_one(rows)


def test_many_copies_of_one_clip_take_no_longer_than_they_are_many():
    names = name_by_hashes([{}] * 5000, size=512)
    assert names[:3] == ["a", "a#2", "a#3"]
    assert names[-1] == "a#5000"


def test_unique_names_are_not_looked_at():
    hashes = hash_names(pa.array([f"clip {number}" for number in range(1000)], pa.large_string()))
    assert len(set(hashes.tolist())) == 1000
    assert number_copies(hashes, lambda: pytest.fail("nothing to look at"), PLACES) is None


texts = st.lists(st.text(st.sampled_from("ab\0é"), max_size=20), min_size=1, max_size=9)


@given(texts, texts)
def test_hashes_are_equal_where_names_are(first, second):
    """Whatever stands beside them, and wherever they begin."""
    together = hash_names(pa.array(first + second, pa.large_string()))
    alone = np.concatenate([hash_names(pa.array([name], pa.large_string())) for name in first + second])
    assert together.tolist() == alone.tolist()
    sliced = hash_names(pa.array(["front", *first, *second], pa.large_string()).slice(1))
    assert sliced.tolist() == alone.tolist()
    assert len(set(together.tolist())) == len(set(first + second))
