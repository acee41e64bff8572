"""metrics.jsonl: exactly one row per optimizer step, over any number of lives."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO

from sama_mega.config.errors import UserError


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
