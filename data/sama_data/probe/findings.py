"""What was found so far, and the journal that keeps it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from sama_data.journal import JournalFile
from sama_data.media import Media
from sama_data.probe.row import Finding

# Bump it when the same clip would be judged or measured otherwise.
_IDENTITY = {"form": 1}
_PURPOSE = "findings"
KEY_COLUMNS = (
    "kind",
    "frame_start",
    "frame_end",
    "source",
    "source_offset",
    "source_bytes",
    "target",
    "target_offset",
    "target_bytes",
)
_KEY_BYTES = 8


def row_key(row: Mapping[str, Any], folder: Path) -> int:
    """Returns a hash of all that a row's finding depends on: which frames of which files, and when those were written.

    It is never 0. A file under a URL is taken to stay as it is.

    Args:
        row: A row's canonical columns.
        folder: What its paths are relative to.
    """
    values: list[Any] = [row[name] for name in KEY_COLUMNS]
    written = [row[side] for side in ("source", "target")]
    values += [None if path is None else Media.in_folder(folder, path).stamp() for path in written]
    digest = hashlib.blake2b(json.dumps(values).encode(), digest_size=_KEY_BYTES)
    return int.from_bytes(digest.digest(), "big") or 1


class Findings:
    """What is known of rows, by `row_key`; adding is safe between threads.

    Args:
        path: The journal, made or gone on with; None keeps none.
        timeout_seconds: How long a row may take now: one that took longer with less time is not known.

    Raises:
        DataError: The journal cannot be used.
    """

    def __init__(self, path: Path | None, timeout_seconds: float) -> None:
        self._timeout_seconds = timeout_seconds
        self._of_key: dict[int, Finding] = {}
        self._shared: dict[Finding, Finding] = {}
        self._journal = None
        if path is not None:
            self._journal = JournalFile(path, _IDENTITY, _PURPOSE, self._take, survives_power_loss=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._journal is not None:
            self._journal.close()

    def __contains__(self, key: int) -> bool:
        return key in self._of_key

    def __getitem__(self, key: int) -> Finding:
        return self._of_key[key]

    def add(self, key: int, sample_id: str, finding: Finding, used_up_seconds: float | None = None) -> None:
        """Keeps a finding; when this returns, the death of the process cannot take it away.

        Args:
            key: Of the row.
            sample_id: Its name, for who reads the journal.
            finding: What was found.
            used_up_seconds: The time that it was given, where that was not enough.

        Raises:
            DataError: The journal cannot be written.
        """
        if self._journal is not None:
            known = {name: value for name, value in finding._asdict().items() if value is not None}
            line = {"key": key, "sample_id": sample_id, "found": known}
            self._journal.append(line if used_up_seconds is None else line | {"used_up_seconds": used_up_seconds})
        self._keep(key, finding)

    def _take(self, line: Mapping[str, Any]) -> None:
        finding = Finding(**line["found"])
        if not finding.is_passing and line.get("used_up_seconds", self._timeout_seconds) >= self._timeout_seconds:
            self._keep(int(line["key"]), finding)

    def _keep(self, key: int, finding: Finding) -> None:
        # There are millions of rows and few different findings: equal ones share their memory.
        self._of_key[key] = self._shared.setdefault(finding, finding)
