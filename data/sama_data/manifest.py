"""Reads and writes manifests, Parquet or JSONL, one row a sample."""

from __future__ import annotations

import difflib
import json
import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from sama_data.dataset import FILE_SCHEMA, SCHEMA, Dataset, Part, concatenate
from sama_data.errors import DataError
from sama_data.media import Media
from sama_data.rows import KNOWN_COLUMNS, PATH_COLUMNS, Row, parse_row

__all__ = ["Dataset", "Row", "load_blend", "load_manifest", "write_jsonl", "write_parquet"]

_PARQUET_MAGIC = b"PAR1"
_BATCH_ROWS = 65_536
_LOGGER = logging.getLogger("sama_data")


def load_manifest(path: Path | str) -> Dataset:
    """Reads a manifest; its content, not its name, says whether it is Parquet or JSONL.

    A row is an edit (`source, target, instruction`) or a raw clip (`video, caption`, or `image, caption`);
    the other columns are optional. Paths are relative to the manifest. Whether the clips exist is seen when
    they are drawn. A row without `sample_id` is named after its target and frame range. Unknown columns are
    passed over with one warning each.

    Raises:
        DataError: The file is missing, unreadable, empty, or a row is wrong (the message names the row).
    """
    path = Path(path)
    if _starts_with(path, _PARQUET_MAGIC):
        table = _build_table(path, "row", _parquet_records(path))
    else:
        table = _build_table(path, "line", _jsonl_records(path))
    if table.num_rows == 0:
        raise DataError(f"{path}: the manifest is empty: it needs at least one row")
    return Dataset(table, (Part(path, 0, table.num_rows),))


def load_blend(manifests: Sequence[tuple[Path | str, float]]) -> Dataset:
    """Reads several manifests into one dataset.

    Args:
        manifests: (path, weight) pairs; a weight of 2 draws a manifest's rows twice as often as a weight of
            1.

    Raises:
        DataError: As `load_manifest`; or the list is empty or a weight is not above 0.
    """
    return concatenate([load_manifest(path) for path, _ in manifests], [weight for _, weight in manifests])


def write_jsonl(rows: Iterable[Row | Mapping[str, Any]], path: Path | str) -> None:
    """Writes a manifest, whole or not at all.

    Args:
        rows: Rows, whose paths are written relative to the manifest; or mappings of a manifest's own keys,
            whose paths already are.
        path: The file; an existing one is replaced.

    Raises:
        DataError: A row is wrong, or the file cannot be written.
    """
    path = Path(path)
    with _replacing(path) as unfinished, open(unfinished, "w", encoding="utf-8") as file:
        for record, _ in _checked(rows, path, "line"):
            file.write(json.dumps(record, ensure_ascii=False) + "\n")


def write_parquet(rows: Iterable[Row | Mapping[str, Any]], path: Path | str) -> None:
    """Writes a Parquet manifest, whole or not at all.

    Args:
        rows: As in `write_jsonl`.
        path: The file; an existing one is replaced.

    Raises:
        DataError: As `write_jsonl`.
    """
    path = Path(path)
    with _replacing(path) as unfinished:
        records = [record for record, _ in _checked(rows, path, "row")]
        table = pa.Table.from_pylist(records, FILE_SCHEMA)
        pq.write_table(
            table.select([name for name in FILE_SCHEMA.names if table[name].null_count < len(table)]), unfinished
        )


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """Yields a file beside `path` that takes its place when all went well, and goes away otherwise."""
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.unfinished")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield unfinished
        os.replace(unfinished, path)
    except OSError as error:
        raise DataError(f"{path}: cannot write the manifest: {error.strerror or error}") from error
    finally:
        unfinished.unlink(missing_ok=True)


def _checked(
    rows: Iterable[Row | Mapping[str, Any]], path: Path, unit: str
) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Yields every row as it is written and as it will be read."""
    for number, row in enumerate(rows, start=1):
        record = _record_of(row, path.parent) if isinstance(row, Row) else dict(row)
        yield record, parse_row(record, f"{path} {unit} {number}")


def _record_of(row: Row, folder: Path) -> dict[str, Any]:
    target = _relative(row.target, folder)
    record: dict[str, Any] = {row.kind: target} if row.source is None else {"target": target}
    record["caption" if row.source is None else "instruction"] = row.text
    for side, media in (("source", row.source), ("target", row.target)):
        if media is not None and not media.is_whole:
            record |= {f"{side}_offset": media.offset, f"{side}_bytes": media.num_bytes}
    if row.source is not None:
        record["source"] = _relative(row.source, folder)
    for column in KNOWN_COLUMNS:
        value = getattr(row, column, None)
        if column not in PATH_COLUMNS and value is not None and (column, value) != ("frame_start", 0):
            record[column] = value
    return record


def _relative(media: Media, folder: Path) -> str:
    if media.is_remote:
        return str(media.path)
    return Path(os.path.relpath(media.path, folder)).as_posix()


def _starts_with(path: Path, magic: bytes) -> bool:
    try:
        with open(path, "rb") as file:
            return file.read(len(magic)) == magic
    except FileNotFoundError as error:
        raise DataError(f"{path}: the manifest does not exist: check data.manifest") from error
    except OSError as error:
        raise DataError(f"{path}: the manifest cannot be read: {error.strerror or error}") from error


def _jsonl_records(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields (line number, row) of every line that is not blank."""
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            place = f"{path} line {number}"
            try:
                record = json.loads(line)
            except ValueError as error:  # also not UTF-8
                raise DataError(f"{place}: is not JSON: {error}; write one object a line") from error
            if not isinstance(record, dict):
                raise DataError(f"{place}: must be a JSON object, not {type(record).__name__}")
            yield number, record


def _parquet_records(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields (row number from 1, row) of every row."""
    number = 0
    try:
        file = pq.ParquetFile(path)
        names = file.schema_arrow.names
        _warn_of_unknown(path, {name for name in names if name not in KNOWN_COLUMNS})
        known = [name for name in names if name in KNOWN_COLUMNS]
        if not known:
            raise DataError(f"{path}: no known column among {', '.join(names)}: it needs video, caption at least")
        # Other columns may hold whole pictures: they are not read.
        for batch in file.iter_batches(batch_size=_BATCH_ROWS, columns=known):
            for record in batch.to_pylist():
                number += 1
                yield number, record
    except (pa.ArrowException, OSError) as error:
        first_line = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"{path}: is not readable Parquet after row {number}: {first_line}") from error


def _build_table(path: Path, unit: str, records: Iterable[tuple[int, dict[str, Any]]]) -> pa.Table:
    """Checks every row and gathers them, a batch at a time, into one table."""
    batches: list[pa.RecordBatch] = []
    waiting: list[dict[str, Any]] = []
    names = _Names(path, unit)
    unknown: set[str] = set()
    for number, record in records:
        unknown.update(key for key in record if key not in KNOWN_COLUMNS)
        row = parse_row(record, f"{path} {unit} {number}")
        row["sample_id"] = names.name(row, number)
        waiting.append(row)
        if len(waiting) == _BATCH_ROWS:
            batches.append(pa.RecordBatch.from_pylist(waiting, SCHEMA))
            waiting = []
    batches.append(pa.RecordBatch.from_pylist(waiting, SCHEMA))
    _warn_of_unknown(path, unknown)
    return pa.Table.from_batches(batches, SCHEMA)


def _warn_of_unknown(path: Path, unknown: set[str]) -> None:
    for key in sorted(unknown):
        near = difflib.get_close_matches(key, KNOWN_COLUMNS, n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        _LOGGER.warning("%s: column %r is unknown and not used%s", path, key, hint)


class _Names:
    """Gives every row a name of its own."""

    def __init__(self, path: Path, unit: str) -> None:
        self._path = path
        self._unit = unit
        self._numbers: dict[str, int] = {}

    def name(self, row: Mapping[str, Any], number: int) -> str:
        given = row["sample_id"]
        name = str(self._default(row) if given is None else given)
        if name in self._numbers:
            if given is not None:
                first = f"{self._unit} {self._numbers[name]}"
                raise DataError(f"{self._path} {self._unit} {number}: sample_id {name!r} is that of {first} already")
            # One clip may be the target of several rows; their order in the manifest tells them apart.
            base, copy = name, 2
            while name in self._numbers:
                name, copy = f"{base}#{copy}", copy + 1
        self._numbers[name] = number
        return name

    @staticmethod
    def _default(row: Mapping[str, Any]) -> str:
        start, end, offset = row["frame_start"], row["frame_end"], row["target_offset"]
        clip = row["target"] if offset is None else f"{row['target']}:{offset}"
        return clip if start == 0 and end is None else f"{clip}@{start}-{'' if end is None else end}"
