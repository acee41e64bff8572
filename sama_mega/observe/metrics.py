"""metrics.jsonl: exactly one row per optimizer step, over any number of lives."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO

from sama_mega.config.errors import UserError

_log = logging.getLogger(__name__)


class MetricsError(UserError):
    """metrics.jsonl cannot be written."""


class MetricsFile:
    """Appends rows; cuts what an earlier life wrote beyond the step that this life resumes from."""

    def __init__(self, path: Path) -> None:
        """Names the file; `open` makes it ready."""
        self.path = path
        self._file: TextIO | None = None

    def open(self, start_step: int) -> int:
        """Keeps the rows of steps up to start_step, drops the others, and opens the file for appending.

        A step that an earlier life ran beyond its last checkpoint is run again now, so its old row goes. A
        torn last line (a kill in the middle of a write) goes too.

        Args:
            start_step: Finished optimizer steps in the state that was resumed, 0 for a new run.

        Returns:
            How many rows were dropped.

        Raises:
            MetricsError: The disk refuses.
        """
        try:
            dropped = self._cut(start_step)
            self._file = self.path.open("a", encoding="utf-8")
        except OSError as error:
            raise MetricsError(f"{self.path} cannot be written: {error.strerror or error}") from error
        return dropped

    def append(self, row: Mapping[str, Any]) -> None:
        """Writes one row and hands it to the operating system, so that a killed process loses none.

        Raises:
            MetricsError: The disk refuses, or the file is not open.
        """
        if self._file is None:
            raise MetricsError(f"{self.path} is not open")
        try:
            self._file.write(json.dumps(row, allow_nan=False) + "\n")
            self._file.flush()
        except OSError as error:
            raise MetricsError(
                f"{self.path} cannot be written: {error.strerror or error}: free the disk and start again"
            ) from error

    def close(self) -> None:
        """Closes the file; may be called twice."""
        if self._file is not None:
            # Every row was flushed when it was written: what a full disk refuses here was refused, and told, before.
            with suppress(OSError):
                self._file.close()
            self._file = None

    def _cut(self, start_step: int) -> int:
        if not self.path.exists():
            return 0
        kept: dict[int, dict[str, Any]] = {}
        num_rows = 0
        for row in read_metrics(self.path):
            num_rows += 1
            if row["step"] <= start_step:
                kept[row["step"]] = row
        temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}.tmp")
        with open(temporary, "w", encoding="utf-8") as file:
            file.writelines(json.dumps(kept[step]) + "\n" for step in sorted(kept))
        os.replace(temporary, self.path)
        return num_rows - len(kept)


class MetricsReader:
    """Reads rows as they are appended, each once.

    Args:
        path: metrics.jsonl, which need not exist yet.
        after_step: Rows up to this step are passed over.
    """

    def __init__(self, path: Path, after_step: int) -> None:
        self._path = path
        self._after_step = after_step
        self._read_to = 0

    def next_rows(self, max_numbers: int) -> list[dict[str, Any]]:
        """The next whole rows, none when all are read.

        Args:
            max_numbers: No further row is added once there are so many numbers in them.
        """
        rows: list[dict[str, Any]] = []
        count = 0
        if not self._path.exists():
            return rows
        with open(self._path, "rb") as file:
            file.seek(self._read_to)
            for line in file:
                if not line.endswith(b"\n"):
                    break
                row = json.loads(line)
                count += len(numbers_of_row(row)) if row["step"] > self._after_step else 0
                if rows and count > max_numbers:
                    break
                self._read_to += len(line)
                if row["step"] > self._after_step:
                    rows.append(row)
        return rows


def numbers_of_row(row: Mapping[str, Any]) -> dict[str, float]:
    """A row's numbers by their names at the tracker: `group/name` inside a group; without those that are not finite.

    `skipped` is 1 for a step that left the weights alone, and 0 for others.
    """
    numbers = {"skipped": float(row.get("skipped") is not None)}
    for name, value in row.items():
        if isinstance(value, Mapping):
            numbers |= {f"{name}/{part}": float(number) for part, number in value.items() if number is not None}
        elif isinstance(value, int | float) and name not in _NO_METRICS:
            numbers[name] = float(value)
    return numbers


_NO_METRICS = ("step", "ended_at_seconds")  # every point has them


def read_metrics(path: Path) -> Iterator[dict[str, Any]]:
    """Yields the rows of a metrics file; a torn last line is left out.

    Raises:
        MetricsError: A line before the last is no row: the file was edited or the disk is damaged.
    """
    torn: int | None = None
    with open(path, encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file, start=1):
            if torn is not None:
                raise MetricsError(f"{path} line {torn} is no row of metrics: repair or remove the line")
            try:
                row = json.loads(line)
                int(row["step"])
            except (ValueError, TypeError, KeyError):
                torn = number
                continue
            yield row


class SideFile:
    """Rows that a run can do without: a disk that refuses one is said once, and no more are written."""

    def __init__(self, path: Path) -> None:
        """Names the file; nothing is written before `open`."""
        self._rows = MetricsFile(path)
        self._is_open = False

    def open(self, start_step: int) -> None:
        """Cuts the file to the step that was resumed, as `MetricsFile.open`."""
        try:
            self._rows.open(start_step)
            self._is_open = True
        except MetricsError as error:
            _log.warning("%s", error)

    def append(self, row: Mapping[str, Any]) -> None:
        """Writes one row, as `MetricsFile.append`."""
        if not self._is_open:
            return
        try:
            self._rows.append(row)
        except MetricsError as error:
            _log.warning("%s", error)
            self.close()

    def close(self) -> None:
        """Closes the file; may be called twice."""
        self._is_open = False
        self._rows.close()
