"""The most anonymous memory (RssAnon) that this process held while something ran, above what it held before."""

from __future__ import annotations

import ctypes
import threading
from pathlib import Path
from types import TracebackType
from typing import Self

_POLL_SECONDS = 0.001


def anonymous_bytes() -> int:
    """This process's RssAnon now: pages of mapped files do not count."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("/proc/self/status names no RssAnon")


class PeakMemory:
    """Polls while entered; `extra_bytes` afterwards is the peak above the beginning."""

    def __enter__(self) -> Self:
        # What was freed before must not serve unseen.
        ctypes.CDLL(None).malloc_trim(0)
        self._over = threading.Event()
        self._before = self._peak = anonymous_bytes()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()

    @property
    def extra_bytes(self) -> int:
        return self._peak - self._before

    def _watch(self) -> None:
        while not self._over.wait(_POLL_SECONDS):
            self._peak = max(self._peak, anonymous_bytes())
