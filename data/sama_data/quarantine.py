"""The list of samples that were skipped, and why: one JSON object a line, once per sample."""

from __future__ import annotations

import fcntl
import json
import os
import threading
from pathlib import Path
from typing import BinaryIO

from sama_data.errors import DataError


class Quarantine:
    """Appends to a run's `quarantine.jsonl`; safe between threads, and between ranks that share the file.

    The file is made when the first line is written. What it already holds (an earlier life of the run,
    another rank) is not written again, but such samples are still tried: they may have been repaired.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self._lock = threading.Lock()
        self._known: set[str] = set()
        self._read_to = 0

    def add(self, sample_id: str, path: Path | str, reason: str, step: int) -> bool:
        """Records a bad sample; returns whether it was new.

        Args:
            sample_id: The manifest's name for it.
            path: The file that cannot be used.
            reason: What is wrong, in words.
            step: The step that wanted it.

        Raises:
            DataError: The file cannot be written.
        """
        entry = {"sample_id": sample_id, "path": str(path), "reason": reason, "step": step}
        with self._lock:
            if sample_id in self._known:
                return False
            try:
                return self._append(entry)
            except OSError as error:
                raise DataError(f"{self.path}: cannot write the quarantine: {error.strerror or error}") from error

    def _append(self, entry: dict[str, object]) -> bool:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path, "a+b") as file:
            _lock_if_possible(file)
            self._read_new_lines(file)
            if entry["sample_id"] in self._known:
                return False
            # One write: readers and other ranks never see half a line. A torn last line, left by a kill, is
            # closed.
            line = json.dumps(entry, ensure_ascii=False).encode() + b"\n"
            file.write(line if self._ends_with_newline(file) else b"\n" + line)
            file.flush()
            self._known.add(str(entry["sample_id"]))
            return True

    def _read_new_lines(self, file: BinaryIO) -> None:
        file.seek(self._read_to)
        for line in file:
            if not line.endswith(b"\n"):
                break
            self._read_to += len(line)
            try:
                self._known.add(str(json.loads(line)["sample_id"]))
            except (ValueError, KeyError, TypeError):
                continue  # torn by a kill: its sample is simply written again

    @staticmethod
    def _ends_with_newline(file: BinaryIO) -> bool:
        if file.seek(0, os.SEEK_END) == 0:
            return True
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"


def _lock_if_possible(file: BinaryIO) -> None:
    """Locks the file until it is closed; where a file system has no locks, a double line does no harm."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX)
    except OSError:
        return
