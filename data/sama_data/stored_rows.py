"""Where a manifest's checked rows are kept: in memory, or in their Parquet file until they are wanted."""

from __future__ import annotations

import bisect
import hashlib
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import accumulate
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from sama_data.columns import check_batch
from sama_data.errors import DataError
from sama_data.names import NAME_COLUMNS, names_of
from sama_data.places import Places
from sama_data.rows import KNOWN_COLUMNS, parse_row

Result = TypeVar("Result")

# What a thread reads at once: enough to be worth its start, and a few tens of MiB.
_SCANNED_ROWS = 32_768
_MOST_THREADS = 4
_DIGEST_BYTES = 16
_READ_BYTES = 1 << 22


def as_one_batch(table: pa.Table) -> pa.RecordBatch:
    """Returns a table's rows as one batch, at least one row.

    Columns of text become large_string: of the others no array holds more than 2 GiB, and such a table would stay in
    several batches.
    """
    for place, field in enumerate(table.schema):
        if pa.types.is_string(field.type):
            table = table.set_column(place, field.name, table.column(place).cast(pa.large_string()))
    (batch,) = table.combine_chunks().to_batches()
    return batch


class StoredRows(Protocol):
    """The rows of one manifest, all of them right."""

    @property
    def places(self) -> Places:
        """How they are called in errors."""

    def __len__(self) -> int:
        """How many there are."""

    def record(self, row: int) -> dict[str, Any]:
        """Returns one row's canonical columns."""

    def names(self, rows: NDArray[np.int64]) -> pa.Array:
        """Returns `names_of` of some rows, in the order asked for."""

    def scan(self, work: Callable[[pa.RecordBatch], Result]) -> Iterator[Result]:
        """Yields what work makes of all rows, in canonical batches, in order; it may run on other threads."""

    def digest(self) -> str:
        """Returns a digest of the manifest's content."""


class HeldRows:
    """Rows in memory.

    Args:
        table: The canonical columns, all of SCHEMA.
        places: How the rows are called in errors.
        digest: Returns the manifest's digest.
    """

    def __init__(self, table: pa.Table, places: Places, digest: Callable[[], str]) -> None:
        self._table = table
        self.places = places
        self.digest = digest

    def __len__(self) -> int:
        return int(self._table.num_rows)

    def record(self, row: int) -> dict[str, Any]:
        """Returns one row's canonical columns."""
        names, columns = self._table.schema.names, self._table.columns
        return {name: column[row].as_py() for name, column in zip(names, columns, strict=True)}

    def names(self, rows: NDArray[np.int64]) -> pa.Array:
        """Returns the names of some rows."""
        table = self._table.select(NAME_COLUMNS).take(pa.array(rows))
        return names_of(pa.RecordBatch.from_pydict({name: table[name].combine_chunks() for name in NAME_COLUMNS}))

    def scan(self, work: Callable[[pa.RecordBatch], Result]) -> Iterator[Result]:
        """Yields what work makes of the rows, in batches."""
        return map(work, self._table.to_batches(_SCANNED_ROWS))


class ParquetRows:
    """Rows in a Parquet file: nothing is held but where its row groups begin, and the group read latest.

    The file stays open, so that it is the same one even where another takes its place. Safe between threads.

    Args:
        path: The file.
        places: How its rows are called in errors; None for after the file.

    Raises:
        DataError: It is not readable Parquet, or holds no known column.
    """

    def __init__(self, path: Path, places: Places | None = None) -> None:
        self.path = path
        self.places = places or Places(path, "row")
        try:
            self._file = pa.OSFile(str(path))
            # One read for all columns of a group: a network's file system likes that.
            self._reader = pq.ParquetFile(self._file, pre_buffer=True)
        except (pa.ArrowException, OSError) as error:
            raise self._unreadable(error, 0) from error
        self._metadata = self._reader.metadata
        self.column_names: list[str] = self._reader.schema_arrow.names
        # Other columns may hold whole pictures: they are not read.
        self._known = [name for name in self.column_names if name in KNOWN_COLUMNS]
        if not self._known:
            names = ", ".join(self.column_names)
            raise DataError(f"{path}: no known column among {names}: it needs video, caption at least")
        sizes = [self._metadata.row_group(group).num_rows for group in range(self._metadata.num_row_groups)]
        self._starts = [0, *accumulate(sizes)]
        self.most_rows_per_group = max(sizes, default=0)
        self._lock = threading.Lock()
        self._latest: tuple[int, pa.Table | None] = (-1, None)

    def __len__(self) -> int:
        return int(self._metadata.num_rows)

    def record(self, row: int) -> dict[str, Any]:
        """Returns one row's canonical columns; rows beside the latest one cost much less than others."""
        group = bisect.bisect_right(self._starts, row) - 1
        with self._lock:
            latest, table = self._latest
            if table is None or latest != group:
                table = self._read(self._reader, [group])
                self._latest = (group, table)
        found = table.slice(row - self._starts[group], 1).to_pylist()[0]
        return parse_row(found, self.places.full(row))

    def names(self, rows: NDArray[np.int64]) -> pa.Array:
        """Returns the names of some rows; where the file has them, it reads nothing else of their row groups."""
        reader = pq.ParquetFile(self._file, metadata=self._metadata)
        groups = np.searchsorted(self._starts, rows, side="right") - 1
        by_group = np.argsort(groups, kind="stable")
        found = []
        for group in np.unique(groups).tolist():
            places = pa.array(rows[groups == group] - self._starts[group])
            found.append(self._names_of_group(reader, group).take(places))
        return pa.concat_arrays(found).take(pa.array(np.argsort(by_group)))

    def scan(self, work: Callable[[pa.RecordBatch], Result]) -> Iterator[Result]:
        """Yields what work makes of the rows, in batches, on several threads.

        Raises:
            DataError: A row is wrong, or the file is damaged.
        """
        spans = self._spans()
        threads = min(_MOST_THREADS, len(os.sched_getaffinity(0)), len(spans))
        if threads < 2:
            yield from (self._scan_span(span, work) for span in spans)
            return
        with ThreadPoolExecutor(threads, "sama-data-scan") as pool:
            ahead: deque[Future[Result]] = deque()
            try:
                for span in spans:
                    ahead.append(pool.submit(self._scan_span, span, work))
                    if len(ahead) > threads:  # what is not taken yet takes memory
                        yield ahead.popleft().result()
                while ahead:
                    yield ahead.popleft().result()
            finally:
                pool.shutdown(cancel_futures=True)

    def digest(self) -> str:
        """Returns a digest of the file's bytes.

        Raises:
            DataError: It can no longer be read.
        """
        state = hashlib.blake2b(digest_size=_DIGEST_BYTES)
        try:
            for offset in range(0, self._file.size(), _READ_BYTES):
                state.update(self._file.read_at(_READ_BYTES, offset))
        except (pa.ArrowException, OSError) as error:
            raise self._unreadable(error, 0) from error
        return state.hexdigest()

    def _names_of_group(self, reader: pq.ParquetFile, group: int) -> pa.Array:
        if "sample_id" in self._known:
            given = self._read(reader, [group], ["sample_id"])["sample_id"].combine_chunks()
            if pa.types.is_large_string(given.type) and given.null_count == 0:
                return given
        return self._scan_span(range(group, group + 1), names_of)

    def _spans(self) -> list[range]:
        """Neighbouring row groups that are read at once."""
        spans, first = [], 0
        for group in range(self._metadata.num_row_groups):
            if self._starts[group + 1] - self._starts[first] >= _SCANNED_ROWS:
                spans.append(range(first, group + 1))
                first = group + 1
        if self._starts[first] < len(self):  # a writer may end with a group of no rows
            spans.append(range(first, self._metadata.num_row_groups))
        return spans

    def _scan_span(self, span: range, work: Callable[[pa.RecordBatch], Result]) -> Result:
        # Readers are not safe between threads; one that is given the metadata costs nothing to make.
        reader = pq.ParquetFile(self._file, metadata=self._metadata)
        batch = as_one_batch(self._read(reader, list(span)))
        return work(check_batch(batch, self.places, self._starts[span[0]]))

    def _read(self, reader: pq.ParquetFile, groups: Sequence[int], columns: Sequence[str] | None = None) -> pa.Table:
        try:
            return reader.read_row_groups(groups, columns=columns or self._known, use_threads=False)
        except (pa.ArrowException, OSError) as error:
            raise self._unreadable(error, self._starts[groups[0]]) from error

    def _unreadable(self, error: Exception, row: int) -> DataError:
        first_line = str(error).splitlines()[0] if str(error) else type(error).__name__
        return DataError(f"{self.path}: is not readable Parquet after row {row}: {first_line}")
