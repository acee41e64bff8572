"""Metadata as DiffSynth-Studio takes it: `metadata.csv` (or .json, .jsonl) with `video` or `image` and `prompt`.

`video` is the target. A row with one of the source columns (`vace_video`, `edit_image`, ...) filled in is an edit; a
row without is a raw clip. Names are relative to the media folder (DiffSynth's dataset_base_path), else to the file.
The columns that a manifest knows by the same name are taken over.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from sama_data.ingest.columns import EditColumns, carried_columns
from sama_data.ingest.edits import Values, edit_rows, metadata_files
from sama_data.ingest.interface import IngestSet, Job, Yielded

_LAYOUT = "metadata.csv with video or image, prompt and, for edits, a source such as vace_video"
_PATTERNS = ("metadata.csv", "metadata.json", "metadata.jsonl", "*.csv")


def _rows(job: Job) -> Iterator[Yielded]:
    for path in metadata_files(job, _PATTERNS, _LAYOUT):
        yield from edit_rows(job, path, job.folders(path.parent), _more, needs_source=False)


def _more(values: Values, names: EditColumns) -> Mapping[str, Any]:
    return carried_columns(values)


DIFFSYNTH = IngestSet("diffsynth", None, None, _LAYOUT, _rows)
