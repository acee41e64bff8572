"""X2Edit's tars: samples are paired by standing together, whatever their names."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sama_data.errors import DataError
from sama_data.ingest.skips import EMPTY_TEXT
from sama_data.ingest.x2edit import DAMAGED, INCOMPLETE, NOT_JSON, UNALIGNED
from tests.support.ingest_sets import Ingested, ingested, tar_bytes, write_files

Members = list[tuple[str, bytes]]


def sample(key: str, mark: str, mask: bool = False, **values: object) -> Members:
    """One sample's members; their bytes say whose they are."""
    content = {"instruction": f"Edit {mark}.", "task": "style", **values}
    members = [
        (f"{key}.1.0.jpg", f"source of {mark}".encode()),
        (f"{key}.2.jpg", f"edit of {mark}".encode()),
        (f"{key}.json", json.dumps(content, ensure_ascii=False).encode()),
        (f"{key}.txt", b"not the instruction"),
    ]
    return [*members, (f"{key}.1.1.jpg", b"mask")] if mask else members


def check_pairs(result: Ingested, marks: list[str]) -> None:
    """Every row has the source, the edit and the instruction of one sample, in the stream's order."""
    assert [row.text for row in result.dataset] == [f"Edit {mark}." for mark in marks]
    assert result.clips() == [(f"source of {mark}".encode(), f"edit of {mark}".encode()) for mark in marks]


def test_a_row_of_it(tmp_path):
    write_files(tmp_path / "src", {"X2Edit_data/kontext/0.tar": tar_bytes(sample("000000001", "a"))})
    result = ingested("x2edit", tmp_path / "src")
    (row,) = result.rows
    assert {key: value for key, value in row.items() if not key.endswith(("offset", "bytes"))} == {
        "source": "../src/X2Edit_data/kontext/0.tar",
        "target": "../src/X2Edit_data/kontext/0.tar",
        "kind": "image",
        "instruction": "Edit a.",
        "sample_id": "X2Edit_data/kontext/0/000000001",
        "task": "style",
        "dataset": "x2edit",
        "licence": "Apache-2.0",
    }
    check_pairs(result, ["a"])


def test_concatenated_tars_with_repeated_names(tmp_path):
    """The trap: a reader that stops at the zero blocks, or keys by name, loses samples or mixes them up."""
    first = sample("000000000", "a") + sample("000000001", "b")
    second = sample("000000000", "c") + sample("000000001", "d")
    write_files(tmp_path / "src", {"x/0.tar": tar_bytes(first) + tar_bytes(second)})
    result = ingested("x2edit", tmp_path / "src")
    check_pairs(result, ["a", "b", "c", "d"])
    assert [row.sample_id for row in result.dataset] == [
        "x/0/000000000",
        "x/0/000000001",
        "x/0/000000000#2",
        "x/0/000000001#2",
    ]


def test_equal_names_beside_each_other(tmp_path):
    """The last sample of one archive and the first of the next may be called alike, even where nothing parts them."""
    one, other = sample("000000007", "a"), sample("000000007", "b")
    write_files(tmp_path / "src", {"0.tar": tar_bytes(one) + tar_bytes(other), "1.tar": tar_bytes(one + other)})
    check_pairs(ingested("x2edit", tmp_path / "src"), ["a", "b", "a", "b"])


def test_half_a_sample_is_not_completed_from_the_next_archive(tmp_path):
    half, whole = sample("000000007", "a")[:1], sample("000000007", "b")[1:]
    write_files(tmp_path / "src", {"0.tar": tar_bytes(half) + tar_bytes(whole) + tar_bytes(sample("000000008", "c"))})
    result = ingested("x2edit", tmp_path / "src")
    check_pairs(result, ["c"])
    assert result.skipped == {INCOMPLETE: 2}


@given(
    st.lists(st.lists(st.tuples(st.integers(0, 2), st.permutations(range(4)), st.booleans()), max_size=4), max_size=4),
    st.integers(1, 3),
)
@settings(max_examples=40)
def test_any_stream_of_samples(tmp_path_factory, archives, workers):
    """Few names, many samples, members in any order within a sample, several archives in a file, several files."""
    folder = tmp_path_factory.mktemp("x2edit") / "src"
    marks, files = [], {"z.tar": tar_bytes(sample("last", "last"))}
    for number, archive in enumerate(archives):
        members: Members = []
        for place, (key, order, mask) in enumerate(archive):
            marks.append(f"{number}-{place}")
            parts = sample(f"{key:09}", marks[-1], mask)
            members += [parts[part] for part in order] + parts[4:]
        name = f"{number // 2}.tar"
        files[name] = files.get(name, b"") + tar_bytes(members)
    write_files(folder, files)
    result = ingested("x2edit", folder, workers=workers)
    check_pairs(result, [*marks, "last"])
    assert result.skipped == {}
    assert len({row.sample_id for row in result.dataset}) == len(marks) + 1


def test_what_is_left_out_is_counted(tmp_path):
    members = [
        *sample("1", "a"),
        *sample("2", "b", instruction=""),
        *sample("3", "c", task="portrait_editing"),
        *sample("4", "d", task="Personalized Generation"),
        *sample("5", "e")[:3:2],  # without its edit
        ("6.1.0.jpg", b"1"),
        ("6.2.jpg", b"2"),
        ("6.json", b'{"instruction": "\xff"}'),
        *sample("7", "g"),
    ]
    write_files(tmp_path / "src", {"0.tar": tar_bytes(members)})
    write_files(tmp_path / "src", {"qwen-image-edit-Asian-portrait/0.tar": tar_bytes(sample("1", "h", task="subject"))})
    result = ingested("x2edit", tmp_path / "src")
    check_pairs(result, ["a", "g"])
    assert result.skipped == {UNALIGNED: 3, EMPTY_TEXT: 1, INCOMPLETE: 1, NOT_JSON: 1}
    assert result.summary.examples[INCOMPLETE] == ["0.tar sample 5: has source, json"]


def test_builders_differ_in_which_instruction_they_fill(tmp_path):
    members = [
        *sample("1", "a", instruction="把天空变蓝", instruction_en="Edit a."),
        *sample("2", "b", instruction="Edit b.", instruction_en="", instruction_zh="变"),
        *sample("3", "c", instruction=None, instruction_zh="Edit c."),
    ]
    write_files(tmp_path / "src", {"0.tar": tar_bytes(members)})
    check_pairs(ingested("x2edit", tmp_path / "src"), ["a", "b", "c"])


def test_a_tar_that_ends_early_keeps_what_came_before(tmp_path):
    whole = tar_bytes(sample("1", "a") + sample("2", "b"))
    end = whole.index(b"edit of b")
    write_files(tmp_path / "src", {"0.tar": whole[: end + 4]})
    result = ingested("x2edit", tmp_path / "src")
    check_pairs(result, ["a"])
    assert result.skipped == {DAMAGED: 1, INCOMPLETE: 1}
    assert "ends inside member 2.2.jpg" in result.summary.examples[DAMAGED][0]


def test_the_same_manifest_with_any_number_of_workers(tmp_path):
    order = random.Random(0)
    for number in range(7):
        members = [member for key in range(order.randrange(5)) for member in sample(str(key), f"{number}-{key}")]
        write_files(tmp_path / "src", {f"{number}.tar": tar_bytes(members)})
    rows = [ingested("x2edit", tmp_path / "src", workers=workers).rows for workers in (1, 2, 16)]
    assert rows[0] == rows[1] == rows[2]
    assert ingested("x2edit", tmp_path / "src", limit=3).rows == rows[0][:3]


def test_a_folder_without_tars(tmp_path):
    (tmp_path / "src").mkdir()
    with pytest.raises(DataError, match=r"src: found no \*\.tar there; it needs"):
        ingested("x2edit", Path(tmp_path / "src"))
