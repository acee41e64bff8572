"""Reads manifests, Parquet or JSONL, one row a sample."""

from __future__ import annotations

import difflib
import hashlib
import json
import logging
from array import array
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa

from sama_data.columns import SCHEMA, check_batch, whole_batch
from sama_data.dataset import Dataset, Part, concatenate, name_rows
from sama_data.errors import DataError
from sama_data.manifest_writer import ROWS_PER_GROUP, write_jsonl, write_parquet
from sama_data.places import Places
from sama_data.rows import KNOWN_COLUMNS, NOT_JSON_FIX, Row
from sama_data.stored_rows import HeldRows, ParquetRows, StoredRows

__all__ = ["Dataset", "Row", "load_blend", "load_manifest", "write_jsonl", "write_parquet"]

_PARQUET_MAGIC = b"PAR1"
_BATCH_ROWS = 65_536
# One row is found by reading its whole row group: in larger ones that takes too long.
_MOST_ROWS_PER_GROUP = 4 * ROWS_PER_GROUP
_BYTES_PER_GIB = 1 << 30
_LARGE_BYTES = _BYTES_PER_GIB
_KNOWN = frozenset(KNOWN_COLUMNS)
_LOGGER = logging.getLogger("sama_data")


def load_manifest(path: Path | str) -> Dataset:
    """Reads a manifest; its content, not its name, says whether it is Parquet or JSONL.

    A row is an edit (`source, target, instruction`) or a raw clip (`video, caption`, or `image, caption`);
    the other columns are optional. Paths are relative to the manifest. Whether the clips exist is seen when
    they are drawn. A row without `sample_id` is named after its target and frame range. Unknown columns are
    passed over with one warning each.

    Every row is checked. Those of a Parquet file that `write_parquet` made stay there until they are wanted;
    others are held in memory.

    Raises:
        DataError: The file is missing, unreadable, empty, or a row is wrong (the message names the row).
    """
    path = Path(path)
    try:
        rows = _open_parquet(path) if _starts_with(path, _PARQUET_MAGIC) else _read_jsonl(path)
    except FileNotFoundError as error:
        raise DataError(f"{path}: the manifest does not exist: check its path (in a recipe, data.manifest)") from error
    except IsADirectoryError as error:
        raise DataError(f"{path}: is a folder: name the manifest in it, JSONL or Parquet") from error
    except OSError as error:
        raise DataError(f"{path}: the manifest cannot be read: {error.strerror or error}") from error
    if len(rows) == 0:
        raise DataError(f"{path}: the manifest is empty: it needs at least one row")
    return Dataset([name_rows(rows)], [Part(path, 0, len(rows))])


def load_blend(manifests: Sequence[tuple[Path | str, float]]) -> Dataset:
    """Reads several manifests into one dataset.

    Args:
        manifests: (path, weight) pairs; a weight of 2 draws a manifest's rows twice as often as a weight of
            1.

    Raises:
        DataError: As `load_manifest`; or the list is empty or a weight is not above 0.
    """
    return concatenate([load_manifest(path) for path, _ in manifests], [weight for _, weight in manifests])


def _starts_with(path: Path, magic: bytes) -> bool:
    with open(path, "rb") as file:
        return file.read(len(magic)) == magic


def _open_parquet(path: Path) -> StoredRows:
    rows = ParquetRows(path)
    _warn_of_unknown(path, {name for name in rows.column_names if name not in KNOWN_COLUMNS})
    if rows.most_rows_per_group <= _MOST_ROWS_PER_GROUP:
        return rows
    return _held(list(rows.scan(whole_batch)), rows.places, rows.digest)


def _read_jsonl(path: Path) -> StoredRows:
    state = hashlib.blake2b(digest_size=16)
    numbers = array("q")
    places = Places(path, "line", numbers)
    unknown: set[str] = set()
    batches = []
    with open(path, "rb") as file:
        for records in _batched(_records(file, path, state.update)):
            unknown.update(*(record.keys() - _KNOWN for _, record in records))
            start = len(numbers)
            numbers.extend(number for number, _ in records)
            batches.append(whole_batch(check_batch([record for _, record in records], places, start)))
    _warn_of_unknown(path, unknown)
    digest = state.hexdigest()
    return _held(batches, places, lambda: digest)


def _records(file: BinaryIO, path: Path, look: Callable[[bytes], None]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields (line number, row) of every line that is not blank; look is shown all bytes."""
    for number, line in enumerate(file, start=1):
        look(line)
        if not line.strip():
            continue
        place = f"{path} line {number}"
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:  # also not UTF-8, or nested too deep
            raise DataError(f"{place}: is not JSON: {error}; {NOT_JSON_FIX}") from error
        if not isinstance(record, dict):
            raise DataError(f"{place}: must be a JSON object, not {type(record).__name__}")
        yield number, record


def _batched(records: Iterator[tuple[int, dict[str, Any]]]) -> Iterator[list[tuple[int, dict[str, Any]]]]:
    """Yields lists of records; what ends them early is raised after the last list."""
    problem: DataError | None = None
    while True:
        batch: list[tuple[int, dict[str, Any]]] = []
        try:
            for record in islice(records, _BATCH_ROWS):
                batch.append(record)
        except DataError as error:
            problem = error
        if batch:
            yield batch  # a row of it may be wrong, and comes first
        if problem is not None:
            raise problem
        if not batch:
            return


def _held(batches: Sequence[pa.RecordBatch], places: Places, digest: Callable[[], str]) -> HeldRows:
    table = pa.Table.from_batches(batches, SCHEMA)
    if table.nbytes > _LARGE_BYTES:
        _LOGGER.warning(
            "%s: its rows take %.1f GiB of memory in every process: write them with sama_data.manifest.write_parquet",
            places.manifest,
            table.nbytes / _BYTES_PER_GIB,
        )
    return HeldRows(table, places, digest)


def _warn_of_unknown(path: Path, unknown: set[str]) -> None:
    for key in sorted(unknown):
        near = difflib.get_close_matches(key, KNOWN_COLUMNS, n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        _LOGGER.warning("%s: column %r is unknown and not used%s", path, key, hint)
