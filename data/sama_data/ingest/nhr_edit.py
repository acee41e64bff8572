"""NHR-Edit: pairs of pictures, `train/metadata.jsonl` beside them.

The hub holds half of the set (358K pairs); where the other half is was not established: ingest what you have of it
as a set of its own. Of the keys `sample_id, source_file_name, edited_file_name, edit_instruction,
augmented_instructions, img_width, img_height, category, style` the row takes the names, the instruction and the
category; the augmented instructions are other wordings and are not used; sizes are for `data probe` to measure.

The hub's Parquet form keeps the pictures inside its columns, where nothing can point at them: it is refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from sama_data.errors import DataError
from sama_data.ingest.edits import metadata_files
from sama_data.ingest.interface import Candidate, IngestSet, Job, Skip, Yielded
from sama_data.ingest.metadata import read_records
from sama_data.ingest.names import UniqueNames

_LAYOUT = "the downloaded repository, with train/metadata.jsonl and the pictures it names"


def _rows(job: Job) -> Iterator[Yielded]:
    names = UniqueNames()
    for path in _files(job):
        folders = job.folders(path.parent, job.folder)
        for record in read_records(path, job):
            if isinstance(record, Skip):
                yield record
                continue
            values = record.values
            yield Candidate(
                place=record.place,
                sample_id=names.name(str(values.get("sample_id") or f"{job.place_of(path)}:{record.number}")),
                text=values.get("edit_instruction"),
                source=values.get("source_file_name"),
                target=values.get("edited_file_name"),
                folders=folders,
                columns={"task": values.get("category")},
            )


def _files(job: Job) -> list[Path]:
    """The lists of rows; says so where the pictures are inside Parquet files instead."""
    try:
        return metadata_files(job, ("train/metadata.jsonl", "metadata.jsonl", "*/metadata.jsonl"), _LAYOUT)
    except DataError as error:
        if any(job.source.glob("**/*.parquet")):
            raise DataError(
                f"{job.source}: holds NHR-Edit's Parquet form, whose pictures lie inside its columns: download the "
                "form with train/metadata.jsonl and jpg files"
            ) from error
        raise


NHR_EDIT = IngestSet("nhr_edit", "iitolstykh/NHR-Edit", "Apache-2.0", _LAYOUT, _rows)
