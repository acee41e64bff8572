"""Reads the files that list a dataset's rows, a row at a time: JSONL, JSON, CSV and Parquet of any size.

Text may start with a byte order mark. Bytes that are not UTF-8 are carried through as Python's lone surrogates, so
that the row they are in can be left out and counted, and no other.
"""

from __future__ import annotations

import codecs
import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sama_data.errors import DataError
from sama_data.ingest.csv_records import csv_rows
from sama_data.ingest.interface import Job, Skip
from sama_data.ingest.json_stream import json_values

NOT_JSON = "line is not JSON"
NOT_AN_OBJECT = "not a JSON object"

_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_ADVANCE_EVERY = 1000  # records
_PARQUET_ROWS = 8192
SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet")


@dataclass(frozen=True, slots=True)
class Record:
    """One row of a metadata file.

    Attributes:
        number: Its place in the file, from 1; rows that cannot be read count too.
        place: Names it in messages.
        values: Its columns.
    """

    number: int
    place: str
    values: Mapping[str, Any]


def read_records(path: Path, job: Job) -> Iterator[Record | Skip]:
    """Yields a file's rows; the job is told how far the reading is, in bytes.

    Raises:
        DataError: The file cannot be read, or not to its end.
    """
    size = file_size(path)
    job.advance.expect(size)
    told = 0
    name = job.place_of(path)
    try:
        with open(path, "rb") as file:
            for count, record in enumerate(_records(path, name, file), start=1):
                if count % _ADVANCE_EVERY == 0:
                    at = min(file.tell(), size)
                    job.advance.add(at - told)
                    told = at
                yield record
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error
    job.advance.add(size - told)


def file_size(path: Path) -> int:
    """A file's size in bytes.

    Raises:
        DataError: There is no such file.
    """
    try:
        return path.stat().st_size
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error


def open_text(file: io.BufferedReader) -> io.TextIOWrapper:
    """Decodes a file by its byte order mark, as UTF-8 without one; line ends stay as they are."""
    head = file.peek(4)[:4]
    encoding = next((name for mark, name in _MARKS if head.startswith(mark)), "utf-8")
    # Of the encodings only UTF-8 can carry wrong bytes through; in the others they become a replacement mark.
    errors = "surrogateescape" if encoding.startswith("utf-8") else "replace"
    return io.TextIOWrapper(file, encoding=encoding, errors=errors, newline="")


def _records(path: Path, name: str, file: io.BufferedReader) -> Iterator[Record | Skip]:
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        return _parquet(path, name, file)
    if suffix in (".csv", ".tsv"):
        return _csv(name, open_text(file))
    if suffix == ".jsonl" and not _starts_with_bracket(file):
        return _json_lines(name, open_text(file))
    return _json(path, name, open_text(file))


def _starts_with_bracket(file: io.BufferedReader) -> bool:
    """Whether a file that is called JSONL is one JSON list after all."""
    return file.peek(64)[:64].removeprefix(codecs.BOM_UTF8).lstrip().startswith(b"[")


def _json_lines(name: str, text: io.TextIOWrapper) -> Iterator[Record | Skip]:
    for number, line in enumerate(text, start=1):
        if not line.strip():
            continue
        place = f"{name} line {number}"
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            yield Skip(NOT_JSON, place)
            continue
        yield Record(number, place, value) if isinstance(value, dict) else Skip(NOT_AN_OBJECT, place)


def _json(path: Path, name: str, text: io.TextIOWrapper) -> Iterator[Record | Skip]:
    for number, value in enumerate(json_values(text, path), start=1):
        place = f"{name} item {number}"
        yield Record(number, place, value) if isinstance(value, dict) else Skip(NOT_AN_OBJECT, place)


def _csv(name: str, text: io.TextIOWrapper) -> Iterator[Record | Skip]:
    for number, row in enumerate(csv_rows(text, name), start=1):
        yield row if isinstance(row, Skip) else Record(number, row.place, row.values)


def _parquet(path: Path, name: str, file: io.BufferedReader) -> Iterator[Record | Skip]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        parquet = pq.ParquetFile(file)
        # Columns of bytes, lists and structures hold pictures, which must not be read for their neighbours' sake.
        plain = [
            field.name for field in parquet.schema_arrow if not (pa.types.is_nested(field.type) or _is_bytes(field))
        ]
        if not plain:
            raise DataError(f"{path}: has no column of text or numbers: {', '.join(parquet.schema_arrow.names)}")
        for batch in parquet.iter_batches(batch_size=_PARQUET_ROWS, columns=plain):
            for values in batch.to_pylist():
                number += 1
                yield Record(number, f"{name} row {number}", values)
    except pa.ArrowException as error:
        first_line = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"{path}: is not readable Parquet after row {number}: {first_line}") from error


def _is_bytes(field: Any) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_binary(field.type) or pa.types.is_large_binary(field.type))
