"""Tells clips that hang or crash their decoder from a machine on which everything does."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

from sama_data.errors import DataError
from sama_data.probe.findings import Findings
from sama_data.probe.row import Finding
from sama_data.rows import Row

_LEAST = 8
_PER_WORKER = 2


@dataclass(frozen=True, slots=True)
class Loss:
    """A row whose decoder was lost.

    Attributes:
        key: Of the row.
        sample_id: Its name.
        finding: What to say of it, if the clip is to blame.
        used_up_seconds: The time that it was given, where that was not enough.
    """

    key: int
    sample_id: str
    finding: Finding
    used_up_seconds: float | None


class Doubts:
    """Keeps losses back until it is known that the machine is well; safe between threads.

    It is well when another row could be looked at meanwhile. After many losses in a row, one that could be is looked at
    once more: neighbours in a manifest may all be bad, but what could be read and no longer can is not to blame.

    Args:
        findings: Where losses go.
        workers: Rows that are looked at at a time: what befalls all of them at one moment is one misfortune.
        can_be_probed: Looks at a row once more; returns whether the decoder survived.
    """

    def __init__(self, findings: Findings, workers: int, can_be_probed: Callable[[Row], bool]) -> None:
        self._findings = findings
        self._most = max(_LEAST, _PER_WORKER * workers)
        self._can_be_probed = can_be_probed
        self._lock = threading.Lock()
        self._held: list[Loss] = []
        self._seen: Row | None = None

    def clear(self, seen: Row | None = None) -> None:
        """Keeps the losses so far: the machine is well, or no row is left to ask.

        Args:
            seen: A row that could be looked at.
        """
        with self._lock:
            self._seen = seen or self._seen
            self._let_go()

    def add(self, loss: Loss) -> None:
        """Takes a loss.

        Raises:
            DataError: It is the machine that is not well. These losses are forgotten.
        """
        with self._lock:
            self._held.append(loss)
            if len(self._held) < self._most:
                return
            if self._seen is None or not self._can_be_probed(self._seen):
                raise DataError(
                    f"{len(self._held)} rows in a row hung or crashed their decoder, the last one, {loss.sample_id}: "
                    f"{loss.finding.rejected}; look at this machine's file system and memory, then start this command "
                    "again: what was found is kept"
                )
            self._let_go()

    def _let_go(self) -> None:
        for loss in self._held:
            self._findings.add(loss.key, loss.sample_id, loss.finding, loss.used_up_seconds)
        self._held.clear()
