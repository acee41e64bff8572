"""OpenVE-3M: pairs of videos, 65 to 129 frames, 720p; archives and one CSV for each category.

The CSVs are separated by `;`, with the header `video;prompt;original_video`: `video` is the edited clip. A target may
come again with another source or prompt, which is another row. The task is the CSV's name (`local_change`,
`background_change`, `global_style`, ...; what the one of the subtitles is called was not established, so every CSV
with these columns is taken).

The first four frames of both clips are left out, as the set's own loader does: `frame_start` is 4.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from sama_data.ingest.columns import EditColumns
from sama_data.ingest.edits import Values, edit_rows, metadata_files
from sama_data.ingest.interface import IngestSet, Job, Yielded

FIRST_FRAME = 4

_LAYOUT = "a CSV for each category (video;prompt;original_video) and the unpacked clips"
_PATTERNS = ("*.csv", "*/*.csv", "*/*/*.csv")


def _rows(job: Job) -> Iterator[Yielded]:
    for path in metadata_files(job, _PATTERNS, _LAYOUT):
        folders = job.folders(job.media / "videos", job.media / path.stem, path.parent, path.parent.parent)
        columns = {"task": path.stem, "frame_start": FIRST_FRAME}
        yield from edit_rows(job, path, folders, _always(columns))


def _always(columns: Mapping[str, Any]) -> Any:
    def more(values: Values, names: EditColumns) -> Mapping[str, Any]:
        return columns

    return more


OPENVE = IngestSet("openve", "Lewandofski/OpenVE-3M", "CC-BY-NC-4.0", _LAYOUT, _rows)
