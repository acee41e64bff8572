"""Writes manifests: Parquet, the canonical form, or JSONL; whole or not at all."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from sama_data.columns import FILE_SCHEMA, check_batch, file_batch
from sama_data.dataset import name_rows
from sama_data.errors import DataError
from sama_data.media import Media
from sama_data.places import Places
from sama_data.rows import KNOWN_COLUMNS, PATH_COLUMNS, Row
from sama_data.stored_rows import ParquetRows

# A row is read by reading its row group: a millisecond. Many more groups would take long to list.
ROWS_PER_GROUP = 4096
# Columns of few different values.
_DICTIONARY_COLUMNS = ("kind", "task", "dataset", "licence", "codec", "pixel_format")


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
        for records, _ in _checked(rows, Places(path, "line")):
            file.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


def write_parquet(rows: Iterable[Row | Mapping[str, Any]], path: Path | str) -> None:
    """Writes a Parquet manifest, whole or not at all: millions of rows open in seconds.

    Every row is written with its kind and its name, so that both stay whatever rows are left out later.

    Args:
        rows: As in `write_jsonl`.
        path: The file; an existing one is replaced.

    Raises:
        DataError: As `write_jsonl`; or two rows have the same `sample_id`.
    """
    path = Path(path)
    places = Places(path, "row")
    with _replacing(path) as unfinished, _removed(unfinished.with_suffix(".spool")) as spool:
        # Which columns there are and which names are taken is known after the last row only.
        used: set[str] = {"sample_id"}
        _write_groups(spool, FILE_SCHEMA, _noting_used((batch for _, batch in _checked(rows, places)), used))
        spooled = ParquetRows(spool, places)
        if len(spooled):
            schema = pa.schema([field for field in FILE_SCHEMA if field.name in used])
            _write_groups(unfinished, schema, map(file_batch, name_rows(spooled).batches()))
        else:
            os.replace(spool, unfinished)


def _checked(
    rows: Iterable[Row | Mapping[str, Any]], places: Places
) -> Iterator[tuple[list[dict[str, Any]], pa.RecordBatch]]:
    """Yields rows as they were given and as canonical batches."""
    folder, start, remaining = os.path.realpath(places.manifest.parent), 0, iter(rows)
    while given := list(islice(remaining, ROWS_PER_GROUP)):
        records = [_record_of(row, folder) if isinstance(row, Row) else dict(row) for row in given]
        yield records, check_batch(records, places, start)
        start += len(records)


def _noting_used(batches: Iterable[pa.RecordBatch], used: set[str]) -> Iterator[pa.RecordBatch]:
    for batch in map(file_batch, batches):
        used.update(name for name in batch.schema.names if batch.column(name).null_count < len(batch))
        yield batch


def _write_groups(path: Path, schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> None:
    dictionary = [name for name in _DICTIONARY_COLUMNS if name in schema.names]
    # Nothing looks up rows by the least and greatest text of a group.
    counted = [field.name for field in schema if not pa.types.is_large_string(field.type)]
    settings = {"compression": "zstd", "use_dictionary": dictionary, "write_statistics": counted}
    with pq.ParquetWriter(path, schema, **settings) as writer:
        for batch in batches:
            writer.write_batch(batch.select(schema.names), row_group_size=ROWS_PER_GROUP)


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """Yields a file beside `path` that takes its place when all went well, and goes away otherwise."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _removed(path.with_name(f".{path.name}.{os.getpid()}.unfinished")) as unfinished:
            yield unfinished
            os.replace(unfinished, path)
    except OSError as error:
        raise DataError(f"{path}: cannot write the manifest: {error.strerror or error}") from error


@contextmanager
def _removed(path: Path) -> Iterator[Path]:
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)


def _record_of(row: Row, folder: str) -> dict[str, Any]:
    record: dict[str, Any] = {}
    for side, media in (("source", row.source), ("target" if row.is_edit else row.kind, row.target)):
        if media is not None:
            record[side] = _relative(media, folder)
    record["instruction" if row.is_edit else "caption"] = row.text
    for side, media in (("source", row.source), ("target", row.target)):
        if media is not None and not media.is_whole:
            record |= {f"{side}_offset": media.offset, f"{side}_bytes": media.num_bytes}
    for column in KNOWN_COLUMNS:
        value = getattr(row, column, None)
        if column not in PATH_COLUMNS and value is not None and (column, value) != ("frame_start", 0):
            record[column] = value
    return record


def _relative(media: Media, folder: str) -> str:
    """A path as a manifest in a real folder writes it: `..` leaves the folder that a link leads to."""
    path = media.path
    if isinstance(path, str):
        return path
    if ".." in path.parts:
        path = Path(os.path.realpath(path.parent), path.name)
    return Path(os.path.relpath(path, folder)).as_posix()
