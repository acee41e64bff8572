"""Koala-36M: raw videos with captions; the set is a list of places in YouTube videos, the clips are the user's to cut.

CSV files with `videoID, url, timestamp, caption, clarity_score, aesthetic_score, motion_score,
video_training_suitability_score`. `videoID` is the YouTube id, `_` and the clip's number, so it names a clip and not
a video; `timestamp` says where the clip lies in the video, as two times `H:M:S.sss`.

A row is kept if a clip `<videoID>.mp4` (or .webm, .mkv, ...) is there: somewhere under the media folder, in folders of
any depth, or in a tar as `<videoID>.mp4`. Whole videos are not taken. A manifest counts in frames, the timestamp in
seconds, and a video's rate is known only to who opens it and may vary: the range would be a guess; and to train on a
clip from the middle of an hour would mean decoding the half hour before it in every epoch. Downloaders cut anyway
(yt-dlp --download-sections). So that nothing is taken for a clip that is not cut, names must be the videoID, whole.

The scores are on other scales than the four that `data filter` knows, and are not taken over.
"""

from __future__ import annotations

import os
from array import array
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from sama_data.ingest.edits import metadata_files
from sama_data.ingest.interface import Candidate, Clip, IngestSet, Job, Skip, Yielded
from sama_data.ingest.metadata import read_records
from sama_data.ingest.names import digest

_LAYOUT = "the CSV files with videoID and caption, and clips cut by timestamp that are called <videoID>.mp4"
_SUFFIXES = (".mp4", ".webm", ".mkv", ".mov", ".m4v", ".avi")


def _rows(job: Job) -> Iterator[Yielded]:
    clips = _CutClips(job.media)
    for path in metadata_files(job, ("Koala*.csv", "*.csv", "*/*.csv"), _LAYOUT):
        for record in read_records(path, job):
            if isinstance(record, Skip):
                yield record
                continue
            video = record.values.get("videoID")
            if not isinstance(video, str) or not video:
                yield Skip("no videoID", record.place)
                continue
            clip = clips.find(video)
            yield Candidate(
                place=record.place,
                sample_id=video,
                text=record.values.get("caption"),
                target=f"{video}.mp4" if clip is None else clip,
                is_edit=False,
                may_repeat=True,
            )


class _CutClips:
    """The videos under a folder by their names without extension, in 13 bytes each.

    Args:
        root: The folder.
    """

    def __init__(self, root: Path) -> None:
        self._folders: list[str] = []
        names, folders, suffixes = array("Q"), array("I"), array("B")
        for folder, _, files in os.walk(root):
            self._folders.append(folder)
            for file in files:
                stem, suffix = os.path.splitext(file)
                if suffix in _SUFFIXES:
                    names.append(digest(stem))
                    folders.append(len(self._folders) - 1)
                    suffixes.append(_SUFFIXES.index(suffix))
        # Of clips with the same name the one whose path comes first, whatever order the storage lists them in.
        rank = np.argsort(np.argsort(np.asarray(self._folders)))
        order = np.lexsort((np.asarray(suffixes), rank[np.asarray(folders)], np.asarray(names)))
        self._names = np.asarray(names)[order]
        self._folder_of = np.asarray(folders)[order]
        self._suffix_of = np.asarray(suffixes)[order]

    def find(self, stem: str) -> Clip | None:
        """Returns the clip of a name."""
        key = np.uint64(digest(stem))
        row = int(np.searchsorted(self._names, key))
        if row == len(self._names) or self._names[row] != key:
            return None
        return Clip(f"{self._folders[int(self._folder_of[row])]}/{stem}{_SUFFIXES[int(self._suffix_of[row])]}")


KOALA = IngestSet("koala", "Koala-36M/Koala-36M-v1", "non-commercial", _LAYOUT, _rows)
