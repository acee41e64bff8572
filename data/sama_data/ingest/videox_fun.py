"""JSON as VideoX-Fun takes it: a list of `file_path, text, type, control_file_path`.

With a `control_file_path` a row is an edit, of which the control is the source; without one it is a raw clip. Names
are relative to the media folder (VideoX-Fun's train_data_dir), else to the JSON file. `type` is not needed: a file's
extension tells images and videos apart. The columns that a manifest knows by the same name are taken over.
"""

from __future__ import annotations

from collections.abc import Iterator

from sama_data.ingest.columns import carried_columns
from sama_data.ingest.edits import users_rows
from sama_data.ingest.interface import Candidate, IngestSet, Job, Yielded
from sama_data.ingest.metadata import Record

_LAYOUT = "a JSON file with file_path, text, type and, for edits, control_file_path"


def _rows(job: Job) -> Iterator[Yielded]:
    return users_rows(job, ("*.json", "*.jsonl"), _LAYOUT, _row)


def _row(record: Record, sample_id: str, folders: tuple[str, ...]) -> Candidate:
    values = record.values
    control = values.get("control_file_path")
    return Candidate(
        place=record.place,
        sample_id=sample_id,
        text=values.get("text"),
        source=control,
        target=values.get("file_path"),
        is_edit=bool(control),
        folders=folders,
        columns=carried_columns(values),
    )


VIDEOX_FUN = IngestSet("videox_fun", None, None, _LAYOUT, _rows)
