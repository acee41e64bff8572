"""Ingests a dataset: reads its rows, finds their clips, and writes the manifest, whole or not at all."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

from sama_data.errors import DataError
from sama_data.ingest.archives import how_to_unpack
from sama_data.ingest.finder import MediaFinder, RelativePaths
from sama_data.ingest.interface import Advance, Candidate, Clip, IngestSet, Job, Skip, Yielded
from sama_data.ingest.names import UniqueNames
from sama_data.ingest.registry import find_set
from sama_data.ingest.skips import (
    DIFFERENT_KINDS,
    EMPTY_TEXT,
    MISSING_MEDIA,
    NO_CLIP_NAME,
    NOT_TEXT,
    NOT_UNICODE,
    SAME_CLIP,
    WRONG_VALUE,
    Skips,
)
from sama_data.manifest import write_jsonl, write_parquet
from sama_data.rows import kind_of, parse_row

_CHUNK_ROWS = 2048
_ROWS_OF_A_THREAD = 128
_MOST_WORKERS = 16
_ENDINGS = (".parquet", ".pq", ".jsonl")

Progress = Callable[[int, int], None]
_Found = tuple[Clip | None, Clip | None]  # source and target


@dataclass(frozen=True)
class Summary:
    """What an ingest did.

    Attributes:
        name: The set.
        out: The manifest.
        rows: Rows written.
        kinds: How many of them are images and videos.
        skipped: How many were left out, by reason.
        examples: Where each reason was met first.
        hint: What would bring more of the missing clips; None where nothing is missing or nothing is known.
        seconds: How long it took.
    """

    name: str
    out: Path
    rows: int
    kinds: dict[str, int]
    skipped: dict[str, int]
    examples: dict[str, list[str]]
    hint: str | None
    seconds: float


def ingest(
    name: str,
    source: Path,
    out: Path,
    media: Path | None = None,
    limit: int | None = None,
    keep_missing: bool = False,
    workers: int | None = None,
    on_progress: Progress | None = None,
) -> Summary:
    """Writes a dataset's manifest.

    Args:
        name: One of `registry.SETS`.
        source: Where the dataset is: a folder, or for most sets the file that lists its rows.
        out: The manifest, `.parquet` or `.jsonl`. An existing one is replaced, and folders are made.
        media: The folder with the clips, where it is not the source's.
        limit: Rows to write at most.
        keep_missing: Whether rows whose clips are not there are written too.
        workers: Files read at the same time; None takes twice the cores, 16 at most.
        on_progress: Called with (done, total), in the unit of what is read, bytes as a rule.

    Raises:
        DataError: There is no such set, the source is not laid out as the set's, no row can be kept, or the
            manifest has another ending or cannot be written.
    """
    started = time.monotonic()
    chosen = find_set(name)
    write = _writer(Path(out))
    job = _job(source, media, 1 if limit else workers, Advance(on_progress), Path(out))
    run = _Run(chosen, job, Path(out), keep_missing)
    rows = run.rows()
    if limit is not None:
        rows = islice(rows, limit)
    first = next(rows, None)
    if first is None:
        raise DataError(run.why_empty())
    write(run.counted(chain([first], rows)), run.out)
    skips = run.skips
    return Summary(
        name=chosen.name,
        out=run.out,
        rows=run.kinds.total(),
        kinds=dict(run.kinds),
        skipped=skips.counts,
        examples=skips.examples,
        hint=run.hint(),
        seconds=time.monotonic() - started,
    )


def _writer(out: Path) -> Callable[[Iterator[dict[str, Any]], Path], None]:
    """How a manifest of this name is written; asked before hours of reading."""
    if out.suffix.lower() not in _ENDINGS:
        raise DataError(f"--out ({out}) must end in .parquet, or in .jsonl for one a person can read")
    if out.is_dir():
        raise DataError(f"--out ({out}) is a folder: name a file in it")
    return write_jsonl if out.suffix.lower() == ".jsonl" else write_parquet


def _job(source: Path, media: Path | None, workers: int | None, advance: Advance, out: Path) -> Job:
    if not source.exists():
        raise DataError(f"{source} does not exist: give the folder with the dataset, or the file that lists its rows")
    if media is not None and not media.is_dir():
        raise DataError(f"--media {media} is no folder: give the one that the clips are in")
    folder = Path(os.path.realpath(source if source.is_dir() else source.parent))
    return Job(
        source=folder if source.is_dir() else folder / source.name,
        media=folder if media is None else Path(os.path.realpath(media)),
        workers=workers or min(_MOST_WORKERS, 2 * (os.cpu_count() or 1)),
        advance=advance,
        out=out,
    )


class _Run:
    """One ingest."""

    def __init__(self, chosen: IngestSet, job: Job, out: Path, keep_missing: bool) -> None:
        self.out = out
        self.skips = Skips()
        self.kinds: Counter[str] = Counter()
        self._set = chosen
        self._job = job
        self._keep_missing = keep_missing
        self._finder = MediaFinder(job, self.skips.add)
        self._relative = RelativePaths(out)
        self._names = UniqueNames()

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yields the manifest's rows; what is left out is counted when its turn comes."""
        yielded = self._set.rows(self._job)
        with ThreadPoolExecutor(self._job.workers) as pool:
            while chunk := list(islice(yielded, 1 if self._job.workers == 1 else _CHUNK_ROWS)):
                for item, found in self._looked_for(pool, chunk):
                    row = self._row(item, found)
                    if row is not None:
                        yield row

    def counted(self, rows: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """Counts the rows that are written."""
        for row in rows:
            self.kinds[row.get("kind") or kind_of(_target_of(row))] += 1
            yield row

    def why_empty(self) -> str:
        """What to say when no row can be kept."""
        if not self.skips.total:
            return f"{self._job.source}: holds no rows of {self._set.name}: it needs {self._set.layout}"
        examples = self.skips.examples
        reasons = "; ".join(
            f"{reason}: {count} (first: {examples[reason][0]})" for reason, count in self.skips.counts.items()
        )
        hint = self.hint()
        return f"{self._job.source}: none of {self.skips.total} rows can be kept: {reasons}" + (
            f". {hint}" if hint else ""
        )

    def hint(self) -> str | None:
        """How to get the clips that are missing, where archives lie about that were not unpacked."""
        if MISSING_MEDIA not in self.skips.counts or not self._finder.archives.packed:
            return None
        packed = self._finder.archives.packed
        return (
            f"{len(packed)} archives under {self._job.media} must be unpacked before clips in them can be read, "
            f"such as: {how_to_unpack(packed[0])}"
        )

    def _looked_for(self, pool: ThreadPoolExecutor, chunk: list[Yielded]) -> Iterator[tuple[Yielded, _Found]]:
        """Looks for every candidate's source and target in folders; many at a time, to wait less for the storage."""
        if len(chunk) == 1:
            return iter(self._look_for(chunk))
        slices = [chunk[start : start + _ROWS_OF_A_THREAD] for start in range(0, len(chunk), _ROWS_OF_A_THREAD)]
        return chain.from_iterable(pool.map(self._look_for, slices))

    def _look_for(self, items: list[Yielded]) -> list[tuple[Yielded, _Found]]:
        return [
            (item, (None, None))
            if isinstance(item, Skip)
            else (item, (self._on_disk(item.source, item.folders), self._on_disk(item.target, item.folders)))
            for item in items
        ]

    def _on_disk(self, name: Any, folders: tuple[str, ...]) -> Clip | None:
        if isinstance(name, Clip):
            return name
        return self._finder.on_disk(name, folders) if _is_name(name) else None

    def _row(self, item: Yielded, found: _Found) -> dict[str, Any] | None:
        """Makes a row of a candidate, or counts why not."""
        result = item if isinstance(item, Skip) else self._row_or_skip(item, found)
        if isinstance(result, Skip):
            self.skips.add(result)
            return None
        return result

    def _row_or_skip(self, candidate: Candidate, found: _Found) -> dict[str, Any] | Skip:
        wrong = _wrong_text(candidate)
        if wrong is not None:
            return Skip(wrong, candidate.place)
        clips: dict[str, Clip] = {}
        for role, name, clip in zip(("source", "target"), (candidate.source, candidate.target), found, strict=True):
            if role == "source" and not candidate.is_edit:
                continue
            placed = self._placed(candidate, name, clip)
            if isinstance(placed, Skip):
                return placed
            clips[role] = placed
        if "source" in clips and clips["source"] == clips["target"]:
            return Skip(SAME_CLIP, candidate.place)
        if len({clip.kind or kind_of(clip.path) for clip in clips.values()}) > 1:
            return Skip(DIFFERENT_KINDS, candidate.place)
        row = self._values(candidate, clips)
        try:
            parse_row(row, candidate.place)
        except DataError as error:
            return Skip(WRONG_VALUE, str(error))
        return row

    def _placed(self, candidate: Candidate, name: Any, clip: Clip | None) -> Clip | Skip:
        """Returns where a clip is, looking in archives too."""
        if clip is not None:
            return clip
        if not _is_name(name):
            return Skip(NO_CLIP_NAME, candidate.place)
        in_archive = self._finder.in_archives(name)
        if isinstance(in_archive, Skip):
            return Skip(in_archive.reason, f"{candidate.place}: {name}")
        if in_archive is not None:
            return in_archive
        if self._keep_missing:
            return self._finder.where_expected(name, candidate.folders)
        return Skip(MISSING_MEDIA, f"{candidate.place}: {name}")

    def _values(self, candidate: Candidate, clips: dict[str, Clip]) -> dict[str, Any]:
        """The row as the manifest holds it."""
        target = clips["target"]
        row: dict[str, Any] = {}
        if candidate.is_edit:
            row["source"] = self._relative.of(clips["source"].path)
            row["target"] = self._relative.of(target.path)
            row["instruction"] = candidate.text.strip()
        else:
            row[target.kind or kind_of(target.path)] = self._relative.of(target.path)
            row["caption"] = candidate.text.strip()
        row["sample_id"] = candidate.sample_id
        if candidate.may_repeat:
            row["sample_id"] = self._names.name(candidate.sample_id)
        for role, clip in clips.items():
            if clip.offset is not None:
                row[f"{role}_offset"], row[f"{role}_bytes"] = clip.offset, clip.num_bytes
        if any(clip.offset is not None for clip in clips.values()):
            row["kind"] = target.kind or kind_of(target.path)
        own = {"dataset": self._set.name, "licence": self._set.licence, **candidate.columns}
        own["task"] = _task_text(own.get("task"))
        row |= {key: value for key, value in own.items() if value is not None and value != ""}
        return row


def _task_text(task: Any) -> str | None:
    """A dataset's category as text: some give several, some numbers."""
    if isinstance(task, list):
        return ", ".join(map(str, task))
    return None if task is None else str(task).strip()


def _target_of(row: dict[str, Any]) -> str:
    return str(next(row[key] for key in ("target", "video", "image") if key in row))


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and value.strip() != ""


def _is_unicode(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _wrong_text(candidate: Candidate) -> str | None:
    """Why a candidate's text cannot be trained on."""
    text = candidate.text
    if text is None or (isinstance(text, str) and not text.strip()):
        return EMPTY_TEXT
    if not isinstance(text, str):
        return NOT_TEXT
    others = (candidate.sample_id, candidate.source, candidate.target, *candidate.columns.values())
    if not all(_is_unicode(value) for value in (text, *others) if isinstance(value, str)):
        return NOT_UNICODE
    return None
