"""Ditto-1M: pairs of videos, 101 frames at 20 fps, 720p; split tar.gz files that must be unpacked or decompressed.

`training_metadata/*.json` (`source_path, instruction, edited_path`) or, where that is absent,
`csvs_for_DiffSynth/*.csv`, whose column `video` is the target and whose `vace_video` is the source; both list the
same pairs, with paths relative to `videos/`. The task is the folder of the edited clip (`global_style1`,
`global_style2`, `global_freeform1`, `local`, ...: Style is the first two); of lists that turn pairs round, so that the
"edited" clip is one of `source/`, it is the list's own name, such as `sim2real`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sama_data.ingest.columns import EditColumns
from sama_data.ingest.edits import Values, edit_rows, metadata_files
from sama_data.ingest.interface import IngestSet, Job, Yielded

_LAYOUT = "training_metadata/*.json or csvs_for_DiffSynth/*.csv, and the clips under videos/"
_PATTERNS = ("training_metadata/*.json", "csvs_for_DiffSynth/*.csv", "*.json", "*.csv")
_SOURCES = "source"


def _rows(job: Job) -> Iterator[Yielded]:
    files = metadata_files(job, _PATTERNS, _LAYOUT)
    base = files[0].parent.parent if job.source.is_file() else job.source
    folders = job.folders(job.media / "videos", base, base / "videos")
    for path in files:
        yield from edit_rows(job, path, folders, _more(path))


def _more(path: Path) -> Any:
    def more(values: Values, names: EditColumns) -> Mapping[str, Any]:
        edited = values[names.target]
        parts = edited.split("/") if isinstance(edited, str) else []
        folder = parts[-2] if len(parts) > 1 else _SOURCES
        return {"task": path.stem if folder == _SOURCES else folder}

    return more


DITTO = IngestSet("ditto", "QingyanBai/Ditto-1M", "CC-BY-NC-SA-4.0", _LAYOUT, _rows)
