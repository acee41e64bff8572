"""JSONL as diffusion-pipe and musubi-tuner take it: `video_path` or `image_path`, `caption`, `control_path`.

With a `control_path` (or `control_path_0`) a row is an edit, of which the control is the source; without one it is a
raw clip. Names are relative to the JSONL file. The columns that a manifest knows by the same name are taken over.
A TOML file only says where the JSONL files are: give those.
"""

from __future__ import annotations

from collections.abc import Iterator

from sama_data.errors import DataError
from sama_data.ingest.columns import carried_columns
from sama_data.ingest.edits import users_rows
from sama_data.ingest.interface import Candidate, IngestSet, Job, Skip, Yielded
from sama_data.ingest.metadata import Record

SEVERAL_CONTROLS = "more than one control"

_LAYOUT = "a JSONL file with video_path or image_path, caption and, for edits, control_path"


def _rows(job: Job) -> Iterator[Yielded]:
    if job.source.suffix.lower() == ".toml":
        raise DataError(f"{job.source}: is a TOML file: give the JSONL file that it names, one at a time")
    return users_rows(job, ("*.jsonl",), _LAYOUT, _row)


def _row(record: Record, sample_id: str, folders: tuple[str, ...]) -> Yielded:
    values = record.values
    controls = [key for key, value in values.items() if key.startswith("control_path") and value]
    if len(controls) > 1:
        return Skip(SEVERAL_CONTROLS, f"{record.place}: {', '.join(controls)}")
    return Candidate(
        place=record.place,
        sample_id=sample_id,
        text=values.get("caption"),
        source=values[controls[0]] if controls else None,
        target=values.get("video_path") or values.get("image_path"),
        is_edit=bool(controls),
        folders=folders,
        columns=carried_columns(values),
    )


DIFFUSION_PIPE = IngestSet("diffusion_pipe", None, None, _LAYOUT, _rows, aliases=("musubi", "musubi_tuner"))
