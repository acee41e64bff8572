"""Pico-Banana-400K: pairs of pictures; the edits come from a list of addresses, the sources from Open Images.

Rows are in `jsonl/sft.jsonl` (or another list of single turns), keys `open_image_input_url, text, output_image,
edit_type, summarized_text`; the publishers' mapping script adds `local_input_image`, and a source that is only an
address counts as missing. The instruction is `text`, the long wording.

`output_image` names can collide: rows that differ and name one file cannot all be its row, and which one is cannot be
told, so all of them are left out; rows that are wholly alike are kept once.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from sama_data.ingest.edits import Values, metadata_files
from sama_data.ingest.interface import Advance, Candidate, IngestSet, Job, Skip, Yielded
from sama_data.ingest.metadata import Record, read_records
from sama_data.ingest.names import Seen, digest
from sama_data.ingest.skips import MISSING_MEDIA

COLLIDING = "several rows that differ name the same output_image"
REPEATED = "the same row is there already"
NOT_SINGLE_TURN = "not a single turn"

_LAYOUT = "jsonl/sft.jsonl with local_input_image mapped, the edits under images/ and the Open Images sources"
_PATTERNS = ("jsonl/*sft*.jsonl", "*sft*.jsonl", "*/*sft*.jsonl", "jsonl/*.jsonl", "*.jsonl")


def _rows(job: Job) -> Iterator[Yielded]:
    seen = Seen()
    for path in _files(job):
        colliding = _colliding(path, job)
        stem = job.place_of(path).removesuffix(path.suffix)
        folders = job.folders(job.folder, path.parent, path.parent.parent)
        for record in read_records(path, job):
            if isinstance(record, Skip):
                yield record
            elif "files" in record.values or "output_image" not in record.values:
                yield Skip(NOT_SINGLE_TURN, record.place)
            elif digest(str(record.values["output_image"])) in colliding:
                yield Skip(COLLIDING, f"{record.place}: {record.values['output_image']}")
            elif seen.before(*_identity(record.values)):
                yield Skip(REPEATED, record.place)
            else:
                yield _row(record, f"{stem}:{record.number}", folders)


def _files(job: Job) -> list[Path]:
    """The lists to read: of the same rows with and without local sources, those with."""
    files = metadata_files(job, _PATTERNS, _LAYOUT)
    mapped = [path for path in files if _is_mapped(path, job)]
    return mapped or files


def _is_mapped(path: Path, job: Job) -> bool:
    records = (record for record in _quietly(path, job) if isinstance(record, Record))
    first = next(records, None)
    return first is not None and "local_input_image" in first.values


def _colliding(path: Path, job: Job) -> set[int]:
    """Digests of the names that rows share which are not alike."""
    row_of: dict[int, int] = {}
    colliding: set[int] = set()
    for record in _quietly(path, job):
        if isinstance(record, Skip) or "output_image" not in record.values:
            continue
        name = digest(str(record.values["output_image"]))
        row = digest(*_identity(record.values))
        if row_of.setdefault(name, row) != row:
            colliding.add(name)
    return colliding


def _quietly(path: Path, job: Job) -> Iterator[Record | Skip]:
    """Reads a file that will be read again and counted then."""
    return read_records(path, Job(job.source, job.media, job.workers, Advance()))


def _identity(values: Values) -> tuple[str, ...]:
    return tuple(str(values.get(key)) for key in ("output_image", "open_image_input_url", "local_input_image", "text"))


def _row(record: Record, sample_id: str, folders: tuple[str, ...]) -> Yielded:
    values = record.values
    source = values.get("local_input_image")
    if not source:
        return Skip(f"{MISSING_MEDIA}: the source is only an address, map it (local_input_image)", record.place)
    return Candidate(
        place=record.place,
        sample_id=sample_id,
        text=values.get("text"),
        source=source,
        target=values["output_image"],
        folders=folders,
        columns={"task": values.get("edit_type")},
    )


PICO_BANANA = IngestSet("pico_banana", "apple/pico-banana-400k", "CC-BY-NC-ND-4.0", _LAYOUT, _rows)
