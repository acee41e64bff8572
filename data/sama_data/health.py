"""Keeps count of good and bad samples on one rank, and says when there are too many bad ones."""

from __future__ import annotations

import threading
from collections import Counter

from sama_data.errors import ClipError, DataError, DecoderLostError
from sama_data.quarantine import Quarantine
from sama_data.rows import Row

# A share of fewer samples says little.
MIN_TRIED = 20
# One hung or crashing clip after the other, and none that could be read between them: no data is like that. What
# befalls all threads at one moment counts once, so it takes two such moments.
MIN_LOST_IN_A_ROW = 8
_LOST_PER_THREAD = 2


class Health:
    """Which rows were tried and which are bad; safe between threads.

    Args:
        num_rows: Rows of the whole dataset.
        rows_of_kind: How many of them are images and videos, for the kinds that are drawn.
        max_bad_share: Above this share of bad ones the run stops.
        quarantine: Where bad samples are recorded.
        num_threads: How many samples are read at a time.
    """

    def __init__(
        self,
        num_rows: int,
        rows_of_kind: dict[str, int],
        max_bad_share: float,
        quarantine: Quarantine,
        num_threads: int = 1,
    ) -> None:
        self._rows_of_kind = rows_of_kind
        self._max_bad_share = max_bad_share
        self._quarantine = quarantine
        self._lock = threading.Lock()
        self._tried = bytearray(num_rows)
        self._num_tried = 0
        self._bad: set[int] = set()
        self._bad_of_kind: Counter[str] = Counter()
        self._most_lost_in_a_row = max(MIN_LOST_IN_A_ROW, _LOST_PER_THREAD * num_threads)
        self._lost_in_a_row = 0
        self._stopped: DataError | None = None

    def is_bad(self, index: int) -> bool:
        """Whether a row was tried in this process and failed: it is not tried again."""
        with self._lock:
            return index in self._bad

    @property
    def num_bad(self) -> int:
        """How many different rows are bad so far."""
        with self._lock:
            return len(self._bad)

    def record_good(self, row: Row) -> None:
        """Counts a row that could be read."""
        with self._lock:
            self._count_tried(row.index)
            self._lost_in_a_row = 0

    def record_bad(self, row: Row, error: ClipError, step: int) -> None:
        """Counts and quarantines a row that could not be read.

        Once this has ended the run, rows that other threads were reading then count no more: some were interrupted.

        Raises:
            DataError: Too many rows are bad, every row of its kind is, one after the other hung or crashed its
                decoder, or the quarantine cannot be written.
        """
        with self._lock:
            if self._stopped is not None:
                raise self._stopped
            self._count_tried(row.index)
            self._lost_in_a_row = self._lost_in_a_row + 1 if isinstance(error, DecoderLostError) else 0
            if row.index not in self._bad:
                self._bad.add(row.index)
                self._bad_of_kind[row.kind] += 1
                self._quarantine.add(row.sample_id, error.path, error.reason, step)
            self._stopped = self._reason_to_stop(row, error)
            if self._stopped is not None:
                raise self._stopped

    def all_bad(self, kind: str, last: ClipError | None) -> DataError:
        """Returns the error that ends the run because no sample of a kind can be used.

        Args:
            kind: The kind.
            last: What was wrong with the latest one, where this caller saw it.
        """
        number = self._rows_of_kind[kind]
        return DataError(f"all {number} {kind} samples are bad: {self._listed(last)}")

    def _listed(self, last: ClipError | None) -> str:
        return f"see {self._quarantine.path}" + (f"; the last one: {last}" if last else "")

    def _count_tried(self, index: int) -> None:
        self._num_tried += 1 - self._tried[index]
        self._tried[index] = 1

    def _reason_to_stop(self, row: Row, error: ClipError) -> DataError | None:
        if self._bad_of_kind[row.kind] >= self._rows_of_kind[row.kind]:
            return self.all_bad(row.kind, error)
        if self._lost_in_a_row >= self._most_lost_in_a_row:
            return DataError(
                f"{self._lost_in_a_row} samples in a row hung or crashed their decoder on this rank: look at this "
                f"machine's file system and memory, and start the run again; {self._listed(error)}"
            )
        share = len(self._bad) / self._num_tried
        if self._num_tried >= MIN_TRIED and share > self._max_bad_share:
            return DataError(
                f"{len(self._bad)} of the {self._num_tried} samples tried on this rank are bad, more than "
                f"data.max_bad_share ({self._max_bad_share:g}) allows: {self._listed(error)}"
            )
        return None
