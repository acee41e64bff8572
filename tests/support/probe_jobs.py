"""Stands in for `probe_row` where a test wants clips that no decoder would survive."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

from sama_data.probe.row import Finding, probe_row
from sama_data.rows import Row


def probe_or_misbehave(row: Row) -> Finding:
    """Hangs or crashes as its name says, and notes every row in the file that the environment names."""
    notes = os.environ.get("PROBE_NOTES")
    if notes is not None:
        with Path(notes).open("a") as file:
            file.write(f"{row.sample_id}\n")
    if "hangs" in row.sample_id:
        ctypes.PyDLL(None).pause()  # with the interpreter's lock held, as a decoder in a loop has it
    if "crashes" in row.sample_id:
        ctypes.string_at(0)
    return probe_row(row)
