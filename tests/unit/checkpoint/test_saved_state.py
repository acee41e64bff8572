"""`state.json`: what it holds, and what is said of one that this version cannot take up."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sama_mega.checkpoint.folder import resolve_checkpoint
from sama_mega.checkpoint.saved_state import SavedState, read_saved_state, write_saved_state
from sama_mega.config.errors import CheckpointError

SAVED = SavedState(7, 28, 7, 3, 6, 7, {"tensor": 2, "context": 1, "pipeline": 1, "data": 4}, life=2, rows_digest="ab12")


def written(folder: Path, change: dict[str, Any], without: str | None = None) -> Path:
    """`state.json` of `SAVED` with changes."""
    write_saved_state(folder, SAVED)
    values = json.loads((folder / "state.json").read_text()) | change
    (folder / "state.json").write_text(json.dumps({key: values[key] for key in values if key != without}))
    return folder


def message(folder: Path) -> str:
    """What is said of it, the same whether a run or a user asks for it."""
    said = []
    for read in (read_saved_state, resolve_checkpoint):
        with pytest.raises(CheckpointError) as caught:
            read(folder)
        said.append(str(caught.value))
    assert said[0] == said[1] and str(folder / "state.json") in said[0]
    return said[0]


def test_what_is_written_comes_back(tmp_path: Path) -> None:
    write_saved_state(tmp_path, SAVED)
    assert read_saved_state(tmp_path) == SAVED
    assert json.loads((tmp_path / "state.json").read_text())["format"] == 2
    assert resolve_checkpoint(tmp_path) == tmp_path


def test_format_1_does_not_say_which_rows(tmp_path: Path) -> None:
    found = read_saved_state(written(tmp_path, {"format": 1}, without="rows_digest"))
    assert found == replace(SAVED, rows_digest="")


def test_a_newer_format_is_called_newer(tmp_path: Path) -> None:
    # Whatever else it holds: a newer version may have changed every field.
    said = message(written(tmp_path, {"format": 3, "surprise": 1}, without="step"))
    assert "was written by a newer version (format 3; this one reads 2)" in said


def test_a_file_without_format_is_called_older(tmp_path: Path) -> None:
    said = message(written(tmp_path, {}, without="format"))
    assert "has no format: it was written by an older version (this one reads format 2)" in said


@pytest.mark.parametrize("name", list(SavedState.__dataclass_fields__))
def test_a_missing_field_is_named(tmp_path: Path, name: str) -> None:
    assert f"lacks {name}: it was written by an older version" in message(written(tmp_path, {}, without=name))


def test_an_extra_field_is_named(tmp_path: Path) -> None:
    assert "has surprise, which format 2 does not" in message(written(tmp_path, {"surprise": 1}))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("step", "7"),
        ("step", -1),
        ("life", None),
        ("seed", 1.5),
        ("layout", 4),
        ("layout", {"tensor": "2"}),
        ("rows_digest", 7),
    ],
)
def test_a_wrong_value_is_named(tmp_path: Path, name: str, value: Any) -> None:
    assert f"cannot be read: {name} is {value!r}" in message(written(tmp_path, {name: value}))


@pytest.mark.parametrize("number", ["1", 0, -1, True, 1.0])
def test_a_format_that_is_no_number_is_damage(tmp_path: Path, number: Any) -> None:
    assert "cannot be read: format is" in message(written(tmp_path, {"format": number}))


@pytest.mark.parametrize("content", ["", "{", "[]", "7", "\xff"])
def test_what_is_no_json_object_cannot_be_read(tmp_path: Path, content: str) -> None:
    (tmp_path / "state.json").write_text(content, encoding="latin-1")
    assert "cannot be read" in message(tmp_path)
