"""Reads what most sets are: files of rows with a source, a target and an instruction under names of their own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from sama_data.errors import DataError
from sama_data.ingest.columns import EditColumns, edit_columns
from sama_data.ingest.interface import Candidate, Job, Skip, Yielded
from sama_data.ingest.metadata import SUFFIXES, Record, read_records
from sama_data.ingest.names import UniqueNames

Values = Mapping[str, Any]

_MOST_REASONS = 20  # a file of rows that all differ must not become as many reasons


class RowColumns:
    """Finds out which columns are source, target and instruction, once for all rows that have the same.

    Args:
        place: Names the file in reasons.
        needs_source: Whether a row without a source column is wrong, or a raw clip.
    """

    def __init__(self, place: str, needs_source: bool = True) -> None:
        self._place = place
        self._needs_source = needs_source
        self._known: dict[frozenset[str], EditColumns | str] = {}

    def of(self, values: Values) -> EditColumns | str:
        """Returns a row's columns, or why it has none."""
        keys = frozenset(values)
        known = self._known.get(keys)
        if known is None:
            try:
                known = edit_columns(keys, self._place, self._needs_source)
            except DataError as error:
                known = str(error)
            if len(self._known) >= _MOST_REASONS:
                return known if isinstance(known, EditColumns) else f"{self._place}: rows lack columns of an edit"
            self._known[keys] = known
        return known


def edit_rows(
    job: Job,
    path: Path,
    folders: tuple[str, ...],
    more: Callable[[Values, EditColumns], Mapping[str, Any]],
    needs_source: bool = True,
) -> Iterator[Yielded]:
    """Yields the rows of one metadata file; they are named after the file and their number in it.

    Args:
        job: The ingest.
        path: The file.
        folders: Where its clips' names may be relative to.
        more: Returns a row's other columns, such as its task.
        needs_source: Whether a row without a source column is wrong, or a raw clip.

    Raises:
        DataError: The file cannot be read to its end.
    """
    place = job.place_of(path)
    columns = RowColumns(place, needs_source)
    stem = place.removesuffix(path.suffix)
    for record in read_records(path, job):
        if isinstance(record, Skip):
            yield record
            continue
        names = columns.of(record.values)
        if isinstance(names, str):
            yield Skip(names, record.place)
        else:
            source = None if names.source is None else record.values[names.source]
            yield Candidate(
                place=record.place,
                sample_id=f"{stem}:{record.number}",
                text=record.values[names.text],
                target=record.values[names.target],
                source=source,
                # A pair that lost its source is no raw clip: its text says what to change, not what there is.
                is_edit=needs_source or bool(source),
                folders=folders,
                columns=more(record.values, names),
            )


def users_rows(
    job: Job,
    patterns: tuple[str, ...],
    layout: str,
    make: Callable[[Record, str, tuple[str, ...]], Yielded],
) -> Iterator[Yielded]:
    """Yields the rows of users' own lists, named by their `sample_id`, else by file and number.

    Args:
        job: The ingest.
        patterns: As for `metadata_files`.
        layout: Likewise.
        make: From a record, its name and the folders that its clips may be relative to, to what becomes of it.

    Raises:
        DataError: There are no files, or one cannot be read to its end.
    """
    names = UniqueNames()
    for path in metadata_files(job, patterns, layout):
        folders = job.folders(path.parent)
        stem = job.place_of(path).removesuffix(path.suffix)
        for record in read_records(path, job):
            if isinstance(record, Skip):
                yield record
                continue
            name = names.name(str(record.values.get("sample_id") or f"{stem}:{record.number}"))
            yield make(record, name, folders)


def metadata_files(job: Job, patterns: tuple[str, ...], layout: str) -> list[Path]:
    """Finds the files that list a dataset's rows.

    Args:
        job: The ingest; a source that is a file is taken as it is.
        patterns: What to look for under the source, the best first; the first that finds files decides.
        layout: What the set needs, for the error.

    Raises:
        DataError: There are none, or one is the manifest that will be written.
    """
    files = _find_files(job, patterns, layout)
    if job.out is not None and job.out.exists() and any(job.out.samefile(file) for file in files):
        raise DataError(f"--out ({job.out}) is one of the lists that are read: name another file")
    return files


def _find_files(job: Job, patterns: tuple[str, ...], layout: str) -> list[Path]:
    if job.source.is_file():
        if job.source.suffix.lower() not in SUFFIXES:
            raise DataError(f"{job.source}: is not a file of rows ({', '.join(SUFFIXES)}); it needs {layout}")
        return [job.source]
    for pattern in patterns:
        files = sorted(path for path in job.source.glob(pattern) if path.is_file())
        if files:
            return files
    raise DataError(f"{job.source}: found no {' and no '.join(patterns)} there; it needs {layout}")
