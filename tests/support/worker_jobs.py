"""What tests let workers do; imports nothing that a worker would not have."""

from __future__ import annotations

import ctypes
import os
import re
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from sama_data import clips
from sama_data.clips import Clip
from sama_data.errors import ClipError
from sama_data.rows import Row


def process_id(*_: object) -> int:
    return os.getpid()


def has_imported(name: str) -> bool:
    return name in sys.modules


def frames(num_bytes: int, fill: int = 7) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """The same array twice, and others beside it."""
    whole = np.full(num_bytes, fill, np.uint8)
    return whole, whole, {"cut": whole[: num_bytes // 2], "turned": np.arange(12).reshape(3, 4).T}


def total(array: np.ndarray) -> int:
    return int(array.sum())


def hang() -> None:
    """Does not even let other threads run."""
    re.match(r"(a+)+$", "a" * 60 + "b")


def say_and_hang(path: Path) -> None:
    path.write_text(str(os.getpid()))
    hang()


def crash(marker: Path, times: int = 100) -> int:
    """Reads from address 0 the first so many times; then returns how often it was called."""
    calls = len(marker.read_text()) if marker.exists() else 0
    marker.write_text("x" * (calls + 1))
    if calls < times:
        ctypes.string_at(0)
    return calls + 1


def refuse(path: str) -> None:
    raise ClipError(path, "is not what it says")


def warn() -> int:
    warnings.warn("this picture is large", RuntimeWarning, stacklevel=1)
    return 5


def return_what_does_not_pickle() -> object:
    return lambda: None


def load_clip(row: Row, *others: Any) -> Clip:
    """The real one, but the names of some files are programs for its decoder."""
    path = Path(row.target.path)
    name = path.name
    if name.startswith("hang"):
        say_and_hang(path)
    if name.startswith("odd"):
        raise MemoryError("no room for 10**12 frames\nand more")
    if name.startswith("crash"):
        ctypes.string_at(0)
    return clips.load_clip(row, *others)
