"""ReCo-Data: pairs of videos, 81 frames at 16 fps, 480x832, in uncompressed tars that clips are read from.

`{task}/{task}_data_configs.json` with `src_video, tar_video, instruction_final_refine`, names relative to the set's
folder; tars `{task}/src_videos/{task}_src_video_XX.tar` and `{task}/tar_videos/...`, unpacked in place or not. The
task is the folder: add, remove, replace, style.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from sama_data.ingest.columns import EditColumns
from sama_data.ingest.edits import Values, edit_rows, metadata_files
from sama_data.ingest.interface import IngestSet, Job, Yielded

_LAYOUT = "{task}/{task}_data_configs.json with src_videos and tar_videos beside it, as tars or unpacked"
_SUFFIX = "_data_configs"


def _rows(job: Job) -> Iterator[Yielded]:
    for path in metadata_files(job, (f"*/*{_SUFFIX}.json", f"*{_SUFFIX}.json"), _LAYOUT):
        task = path.stem.removesuffix(_SUFFIX)

        def more(values: Values, names: EditColumns, task: str = task) -> Mapping[str, Any]:
            return {"task": task}

        folders = job.folders(path.parent.parent, job.media / task, path.parent)
        yield from edit_rows(job, path, folders, more)


RECO = IngestSet("reco", "HiDream-ai/ReCo-Data", "CC-BY-NC-SA-4.0", _LAYOUT, _rows)
