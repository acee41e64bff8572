"""metrics.jsonl over kills and resumes."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import pytest

from sama_mega.observe.metrics import MetricsError, MetricsFile, MetricsReader, read_metrics


def _write(path: Path, steps: range, start_step: int = 0) -> int:
    file = MetricsFile(path)
    dropped = file.open(start_step)
    for step in steps:
        file.append({"step": step, "loss": 0.1 * step})
    file.close()
    return dropped


def _steps(path: Path) -> list[int]:
    return [row["step"] for row in read_metrics(path)]


def test_rows_after_the_resumed_step_are_cut(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    assert _write(path, range(1, 8)) == 0
    assert _write(path, range(6, 10), start_step=5) == 2
    assert _steps(path) == list(range(1, 10))
    assert list(tmp_path.iterdir()) == [path]


def test_numbers_survive_the_cut_bit_by_bit(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    _write(path, range(1, 5))
    before = path.read_text().splitlines()
    _write(path, range(0), start_step=3)
    assert path.read_text().splitlines() == before[:3]


@pytest.mark.parametrize("torn", ['{"step": 4, "lo', "\n", "\x00\x00", '{"loss": 1}'])
def test_a_torn_last_line_is_left_out_and_cut(tmp_path: Path, torn: str) -> None:
    path = tmp_path / "metrics.jsonl"
    _write(path, range(1, 4))
    with open(path, "a", encoding="utf-8") as file:
        file.write(torn)
    assert _steps(path) == [1, 2, 3]
    _write(path, range(4, 6), start_step=3)
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2, 3, 4, 5]


def test_a_damaged_line_in_the_middle_is_an_error_and_nothing_is_lost(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    _write(path, range(1, 4))
    lines = path.read_text().splitlines(keepends=True)
    damaged = "".join([lines[0], "oops\n", lines[2]])
    path.write_text(damaged)
    with pytest.raises(MetricsError, match="line 2"):
        MetricsFile(path).open(2)
    assert path.read_text() == damaged


def test_a_row_is_on_disk_before_the_next_step(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    file = MetricsFile(path)
    file.open(0)
    file.append({"step": 1})
    assert _steps(path) == [1]
    file.close()


def test_a_full_disk_is_one_line(tmp_path: Path) -> None:
    file = MetricsFile(tmp_path / "metrics.jsonl")
    file.open(0)

    class _Full:
        def write(self, text: str) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        def close(self) -> None:
            pass

    file._file = _Full()  # type: ignore[assignment]
    with pytest.raises(MetricsError, match=r"No space left on device: free the disk"):
        file.append({"step": 1})
    file.close()
    with pytest.raises(MetricsError, match="not open"):
        file.append({"step": 1})


def test_an_unwritable_place_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(MetricsError, match="cannot be written"):
        MetricsFile(tmp_path / "absent" / "metrics.jsonl").open(0)


def test_a_reader_gives_every_row_once_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    reader = MetricsReader(path, after_step=1)
    assert reader.next_rows(100) == []
    _write(path, range(1, 4))
    with path.open("a") as file:
        file.write('{"step": 4, "lo')
    assert [row["step"] for row in reader.next_rows(100)] == [2, 3]
    assert reader.next_rows(100) == []
    with path.open("a") as file:
        file.write('ss": 1.0}\n')
    assert reader.next_rows(100) == [{"step": 4, "loss": 1.0}]


def test_a_reader_gives_as_many_rows_as_fit(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    _write(path, range(1, 8))  # two numbers a row: the loss, and whether it was skipped
    reader = MetricsReader(path, after_step=0)
    parts = [[row["step"] for row in reader.next_rows(limit)] for limit in (4, 1, 100)]
    assert parts == [[1, 2], [3], [4, 5, 6, 7]]
