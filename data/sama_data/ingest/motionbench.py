"""MotionBench: raw videos with captions of their motion.

`MotionBenchCaption-train/{videos/,train.jsonl}`, keys `video_path, motion_caption`, paths relative to `videos/`. The
public train split has 5,000 clips; the paper that names 53,879 counts others.
"""

from __future__ import annotations

from collections.abc import Iterator

from sama_data.ingest.edits import metadata_files
from sama_data.ingest.interface import Candidate, IngestSet, Job, Skip, Yielded
from sama_data.ingest.metadata import read_records
from sama_data.ingest.names import UniqueNames

_LAYOUT = "MotionBenchCaption-train with train.jsonl and videos/"


def _rows(job: Job) -> Iterator[Yielded]:
    names = UniqueNames()
    for path in metadata_files(job, ("MotionBenchCaption-train/train.jsonl", "train.jsonl"), _LAYOUT):
        folders = job.folders(path.parent / "videos", job.media / "videos", path.parent)
        for record in read_records(path, job):
            if isinstance(record, Skip):
                yield record
                continue
            video = record.values.get("video_path")
            yield Candidate(
                place=record.place,
                sample_id=names.name(str(video)),
                text=record.values.get("motion_caption"),
                target=video,
                is_edit=False,
                folders=folders,
            )


MOTIONBENCH = IngestSet("motionbench", "zai-org/MotionBench", "CC-BY-NC-SA-4.0", _LAYOUT, _rows)
