"""Makes a new manifest of an old one, a batch of rows at a time: all its columns, and what was done to it."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from sama_data.columns import FILE_SCHEMA
from sama_data.errors import DataError
from sama_data.manifest_writer import ROWS_PER_GROUP
from sama_data.rows import KNOWN_COLUMNS, NOT_JSON_FIX, NUMBER_COLUMNS, PATH_COLUMNS, is_absent, parse_row

Transform = Callable[[pa.RecordBatch, int], pa.RecordBatch]

HISTORY_KEY = b"sama_mega.history"

_BATCH_ROWS = 65_536
_PARQUET_MAGIC = b"PAR1"
_LOGGER = logging.getLogger("sama_data")


def rewrite_manifest(manifest: Path, out: Path, transform: Transform, describe: Callable[[], Mapping[str, Any]]) -> int:
    """Writes what `transform` makes of a manifest's rows as Parquet, whole or not at all.

    Columns that are not part of the schema are kept too, for a manifest that is Parquet. Relative paths are
    written anew where `out` is in another folder. What was done is appended to the history that the file's
    metadata hold, see `read_history`.

    Args:
        manifest: JSONL or Parquet.
        out: The Parquet file to write; an existing one is replaced.
        transform: Given a batch and the number of its first row from 0, returns the rows to write; always with
            the same columns.
        describe: Called after the last batch; the new entry of the history.

    Returns:
        Rows written. When there are none, no file is written and an existing one stays.

    Raises:
        DataError: The manifest cannot be read, a row of a JSONL one is wrong, or `out` cannot be written.
    """
    check_output(manifest, out)
    history = _entries(read_metadata(manifest))
    prefix = _folder_between(manifest, out)

    def batches() -> Iterator[pa.RecordBatch]:
        first_row = 0
        for batch in read_batches(manifest):
            yield _rebase(transform(batch, first_row), prefix)
            first_row += batch.num_rows

    unfinished = out.with_name(f".{out.name}.{os.getpid()}.unfinished")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        try:
            num_rows = _write(batches(), unfinished, lambda: [*history, _entry(manifest, describe())])
            if num_rows:
                os.replace(unfinished, out)
        finally:
            unfinished.unlink(missing_ok=True)
    except OSError as error:
        raise DataError(f"{out}: cannot write the manifest: {error.strerror or error}") from error
    return num_rows


def check_output(manifest: Path, out: Path) -> None:
    """Refuses an output that is not Parquet by name, or that is the manifest itself.

    Raises:
        DataError: It is.
    """
    if out.suffix.lower() not in (".parquet", ".pq"):
        raise DataError(f"--out ({out}) must end in .parquet: a manifest with scores and history is Parquet")
    if out.exists() and manifest.exists() and os.path.samefile(manifest, out):
        raise DataError(f"--out ({out}) is the manifest itself: name another file")
    if out.is_dir():
        raise DataError(f"--out ({out}) is a folder: name a file in it")


def read_batches(path: Path) -> Iterator[pa.RecordBatch]:
    """Yields the rows of a manifest in order, all with the same columns: for Parquet its own, else the known ones.

    Raises:
        DataError: The file is missing or unreadable, or a row of a JSONL one is wrong.
    """
    if _is_parquet(path):
        yield from _parquet_batches(path)
    else:
        yield from _jsonl_batches(path)


def read_metadata(path: Path) -> dict[bytes, bytes]:
    """Returns a Parquet manifest's own metadata; a JSONL one has none.

    Raises:
        DataError: The file is missing or unreadable.
    """
    if not _is_parquet(path):
        return {}
    try:
        return dict(pq.read_metadata(path).metadata or {})
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: is not readable Parquet: {_first_line(error)}") from error


def read_history(path: Path) -> list[dict[str, Any]]:
    """Returns what was done to a manifest, oldest first: by which tool, when, from which file, with what settings.

    Raises:
        DataError: The file is missing or unreadable.
    """
    return _entries(read_metadata(path))


def _write(batches: Iterator[pa.RecordBatch], path: Path, history: Callable[[], list[dict[str, Any]]]) -> int:
    """Writes batches to a file, and after the last one the history; returns the rows."""
    num_rows, writer = 0, None
    try:
        for batch in batches:
            if writer is None:
                writer = pq.ParquetWriter(path, batch.schema, compression="zstd")
            if batch.num_rows:
                writer.write_batch(batch, row_group_size=ROWS_PER_GROUP)
                num_rows += batch.num_rows
        if writer is not None:
            writer.add_key_value_metadata({HISTORY_KEY: json.dumps(history())})
    finally:
        if writer is not None:
            writer.close()
    return num_rows


def _entries(metadata: Mapping[bytes, bytes]) -> list[dict[str, Any]]:
    try:
        entries = json.loads(metadata.get(HISTORY_KEY, b"[]"))
    except ValueError:
        return []
    return entries if isinstance(entries, list) else []


def _entry(manifest: Path, description: Mapping[str, Any]) -> dict[str, Any]:
    with open(manifest, "rb") as file:
        digest = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
    at = datetime.now(UTC).isoformat(timespec="seconds")
    return {"at": at, "manifest": manifest.name, "manifest_blake2b": digest, **description}


def _is_parquet(path: Path) -> bool:
    try:
        with open(path, "rb") as file:
            return file.read(len(_PARQUET_MAGIC)) == _PARQUET_MAGIC
    except FileNotFoundError as error:
        raise DataError(f"{path}: the manifest does not exist: check MANIFEST") from error
    except OSError as error:
        raise DataError(f"{path}: the manifest cannot be read: {error.strerror or error}") from error


def _parquet_batches(path: Path) -> Iterator[pa.RecordBatch]:
    number = 0
    try:
        # Memory-mapped: pages that were used can be given back, so a large manifest needs one batch of memory.
        with pq.ParquetFile(path, memory_map=True) as file:
            if not set(file.schema_arrow.names) & set(PATH_COLUMNS):
                names = ", ".join(file.schema_arrow.names)
                raise DataError(f"{path}: no target, video or image among its columns: {names}")
            for batch in file.iter_batches(batch_size=_BATCH_ROWS):
                yield batch.replace_schema_metadata(file.schema_arrow.metadata)
                number += batch.num_rows
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: is not readable Parquet after row {number}: {_first_line(error)}") from error


def _jsonl_batches(path: Path) -> Iterator[pa.RecordBatch]:
    waiting: list[dict[str, Any]] = []
    unknown: set[str] = set()
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            record = _jsonl_record(line, f"{path} line {number}")
            unknown.update(record.keys() - set(KNOWN_COLUMNS))
            waiting.append(record)
            if len(waiting) == _BATCH_ROWS:
                yield pa.RecordBatch.from_pylist(waiting, FILE_SCHEMA)
                waiting = []
    if waiting:
        yield pa.RecordBatch.from_pylist(waiting, FILE_SCHEMA)
    for name in sorted(unknown):
        _LOGGER.warning("%s: column %r is unknown and left out", path, name)


def _jsonl_record(line: bytes, place: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{place}: is not JSON: {error}; {NOT_JSON_FIX}") from error
    if not isinstance(record, dict):
        raise DataError(f"{place}: must be a JSON object, not {type(record).__name__}")
    row = parse_row(record, place)
    present = {key: value for key, value in record.items() if not is_absent(value)}
    # A whole number may be more than Arrow takes for a float.
    return present | {key: row[key] for key in NUMBER_COLUMNS if key in present}


def _folder_between(manifest: Path, out: Path) -> str:
    """What to put before a path that is relative to the manifest, so that it is relative to the output."""
    return Path(os.path.relpath(manifest.parent.resolve(), out.parent.resolve())).as_posix()


def _rebase(batch: pa.RecordBatch, prefix: str) -> pa.RecordBatch:
    if prefix == ".":
        return batch
    for name in PATH_COLUMNS:
        place = batch.schema.get_field_index(name)
        if place < 0 or is_without_text(batch.column(place)):
            continue
        paths = plain_text(batch.column(place))
        stays = pc.or_(pc.starts_with(paths, "/"), pc.match_substring(paths, "://"))
        moved = pc.binary_join_element_wise(pa.scalar(prefix, paths.type), paths, pa.scalar("/", paths.type))
        batch = batch.set_column(place, name, pc.if_else(stays, paths, moved))
    return batch


def target_names(batch: pa.RecordBatch) -> pa.Array:
    """Returns what each row names as the clip to train on, large_string."""
    return pc.coalesce(*(text_column(batch, name) for name in ("target", "image", "video")))


def text_column(batch: pa.RecordBatch, name: str) -> pa.Array:
    """Returns a column as large_string; all null where there is no such column.

    Raises:
        DataError: It holds no text.
    """
    if name not in batch.schema.names:
        return pa.nulls(batch.num_rows, pa.large_string())
    column = plain_text(batch.column(name))
    if is_without_text(column):
        return pa.nulls(batch.num_rows, pa.large_string())
    if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type) or pa.types.is_null(column.type)):
        raise DataError(f"column {name} must hold text, not {column.type}")
    return column.cast(pa.large_string())


def is_without_text(column: pa.Array) -> bool:
    """Whether a column of text that no row has may look like this: all null, or the NaN that pandas writes for it."""
    if pa.types.is_floating(column.type):
        return pc.all(pc.is_nan(column)).as_py() is not False
    return bool(pa.types.is_null(column.type))


def plain_text(column: pa.Array) -> pa.Array:
    """Returns a text column as plain text, where a writer (pandas' categories) made a dictionary of it."""
    return column.dictionary_decode() if pa.types.is_dictionary(column.type) else column


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
