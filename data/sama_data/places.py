"""How a manifest's rows are called in errors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Places:
    """Names the rows of one manifest, counted from 0, as its reader would count them.

    Attributes:
        manifest: The file.
        unit: What a row is in it: "line" or "row".
        numbers: The row's number in the file, where some lines are blank; None where that is its place plus 1.
    """

    manifest: Path
    unit: str
    numbers: Sequence[int] | None = None

    def short(self, row: int) -> str:
        """Returns "line 3"."""
        return f"{self.unit} {row + 1 if self.numbers is None else self.numbers[row]}"

    def full(self, row: int) -> str:
        """Returns "clips.jsonl line 3"."""
        return f"{self.manifest} {self.short(row)}"
