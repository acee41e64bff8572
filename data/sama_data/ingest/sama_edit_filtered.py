"""SAMA-edit-filtered-1M: a list of video pairs chosen from Ditto, OpenVE and ReCo; metadata only.

Its columns are not public. SAMA's reference loader expects `source_video`, `video` (the target) and `prompt`; the
other names in `columns` are taken too, from CSV, JSONL, JSON or Parquet files. Its licence was not established
either: a row that says which set it comes from (`dataset`, `source_dataset` or `data_source`) gets that set's licence,
and of OpenVE's rows the first four frames are left out; a row that does not say gets no licence.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from sama_data.ingest.columns import EditColumns, carried_columns
from sama_data.ingest.ditto import DITTO
from sama_data.ingest.edits import Values, edit_rows, metadata_files
from sama_data.ingest.interface import IngestSet, Job, Yielded
from sama_data.ingest.metadata import SUFFIXES
from sama_data.ingest.openve import FIRST_FRAME, OPENVE
from sama_data.ingest.reco import RECO

_LAYOUT = "CSV, JSONL, JSON or Parquet files with source_video, video and prompt, and the clips they name"
_ORIGINS = {"ditto": DITTO, "openve": OPENVE, "reco": RECO}
_ORIGIN_COLUMNS = ("dataset", "source_dataset", "data_source")
_TASK_COLUMNS = ("task", "category", "edit_type", "type")


def _rows(job: Job) -> Iterator[Yielded]:
    patterns = tuple(f"{depth}*{suffix}" for depth in ("", "*/") for suffix in SUFFIXES)
    for path in metadata_files(job, patterns, _LAYOUT):
        folders = job.folders(job.media / "videos", path.parent, job.folder)
        yield from edit_rows(job, path, folders, _more)


def _more(values: Values, names: EditColumns) -> Mapping[str, Any]:
    more = carried_columns(values)
    more["task"] = next((values[key] for key in _TASK_COLUMNS if isinstance(values.get(key), str)), None)
    said = next((values[key] for key in _ORIGIN_COLUMNS if isinstance(values.get(key), str)), "")
    plain = "".join(character for character in said.lower() if character.isalnum())
    origin = next((known for name, known in _ORIGINS.items() if name in plain), None)
    more.pop("dataset", None)
    if origin is not None:
        more.setdefault("licence", origin.licence)
        if origin is OPENVE:
            more.setdefault("frame_start", FIRST_FRAME)
    return more


SAMA_EDIT_FILTERED = IngestSet("sama_edit_filtered", "syxbb/SAMA-edit-filtered-1M", None, _LAYOUT, _rows)
