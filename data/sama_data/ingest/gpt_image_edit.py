"""GPT-Image-Edit-1.5M: pairs of pictures in three families of tasks; split tar.gz files that must be unpacked first.

Two forms. `gpt-edit/{hqedit,omniedit,ultraedit}/<task>/{input,output,metadata/*.json}` has the keys `id,
dataset_source, task, input, output, instruction, instruction_type`, with paths relative to the task's folder; it is
taken where it is there. Otherwise `training_json/*.json`, with `image: [input, output]` and `conversations`, whose
paths are relative to folders that the authors' own list of data names (wyhlovecpp/GPT-Image-Edit@9a1618e, data.txt).

A pair is there more than once, with its first instruction and with rewritten ones: the first row of every (input,
output) is kept.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from sama_data.errors import DataError
from sama_data.ingest.in_order import in_order
from sama_data.ingest.interface import Advance, Candidate, IngestSet, Job, Skip, Yielded
from sama_data.ingest.metadata import Record, read_records
from sama_data.ingest.names import Seen, UniqueNames

REPEATED_PAIR = "the same pair is an earlier row"

_LAYOUT = "gpt-edit/{hqedit,omniedit,ultraedit}/<task>/{input,output,metadata}, unpacked, or training_json/*.json"
_FAMILIES = ("hqedit", "omniedit", "ultraedit")
_FOLDERS_OF_TRAINING_JSON = {
    "hqedit_gpt_edit": "hqedit/edit",
    "hqedit_gpt_generate": "hqedit/generate",
    "omniedit_gpt": "omniedit",
    "omniedit_gpt_rewrite": "omniedit",
    "complexedit_gpt": "omniedit/complex-edit",
    "ultraedit_gpt": "ultraedit",
}
_PICTURE_MARK = re.compile(r"<image>\s*")


def _rows(job: Job) -> Iterator[Yielded]:
    tasks = [] if job.source.is_file() else _task_folders(job.source)
    seen = Seen()
    for row in _metadata_rows(job, tasks) if tasks else _training_rows(job):
        # A row without words is left out for that, and must not take the place of one that has them.
        has_text = isinstance(row, Candidate) and isinstance(row.text, str) and row.text.strip() != ""
        if isinstance(row, Candidate) and has_text and seen.before(row.folders[-1], str(row.source), str(row.target)):
            yield Skip(REPEATED_PAIR, row.place)
        else:
            yield row


def _task_folders(source: Path) -> list[Path]:
    """The folders that hold a `metadata` folder, one or two levels below a family's."""
    bases = [source, source / "gpt-edit", *(source.parents[:1] if source.name in _FAMILIES else ())]
    return sorted(
        {
            metadata.parent
            for base in bases
            for family in _FAMILIES
            for pattern in ("metadata", "*/metadata", "*/*/metadata")
            for metadata in (base / family).glob(pattern)
            if metadata.is_dir() and metadata.is_relative_to(source)
        }
    )


def _metadata_rows(job: Job, tasks: list[Path]) -> Iterator[Yielded]:
    """Reads every file of every task; there may be one a row, so several are read at the same time."""
    files = {task: sorted((task / "metadata").glob("*.json*")) for task in tasks}
    job.advance.expect(sum(map(len, files.values())))
    names = UniqueNames()
    for task in tasks:
        place = job.place_of(task)
        folders = tuple(dict.fromkeys((str(job.media / place), str(task))))
        for record in in_order(lambda path: _records_of(path, job), files[task], job.workers):
            if isinstance(record, int):
                job.advance.add(record)
            elif isinstance(record, Skip):
                yield record
            else:
                name = names.name(f"{place}/{record.values.get('id') or record.place}")
                yield _metadata_row(record, name, task.name, folders)


def _records_of(path: Path, job: Job) -> Iterator[Record | Skip | int]:
    """Yields a file's records, then that it is one file."""
    # Threads share the job's advance; what a file alone would tell it is not wanted.
    yield from read_records(path, replace(job, advance=Advance()))
    yield 1


def _metadata_row(record: Record, name: str, task: str, folders: tuple[str, ...]) -> Candidate:
    values = record.values
    return Candidate(
        place=record.place,
        sample_id=name,
        text=values.get("instruction"),
        source=values.get("input"),
        target=values.get("output"),
        folders=folders,
        columns={"task": values.get("task") or task},
    )


def _training_rows(job: Job) -> Iterator[Yielded]:
    for path in _training_files(job):
        folder = _FOLDERS_OF_TRAINING_JSON.get(path.stem, "")
        bases = (job.media, job.media / "gpt-edit", job.folder, job.folder / "gpt-edit")
        folders = tuple(dict.fromkeys(str(base / part) for part in (folder, "") for base in bases))
        for record in read_records(path, job):
            if isinstance(record, Skip):
                yield record
                continue
            yield _training_row(record, path.stem, f"{path.stem}:{record.number}", (*folders, str(job.media / folder)))


def _training_files(job: Job) -> list[Path]:
    if job.source.is_file():
        return [job.source]
    files = sorted(job.source.glob("training_json/*.json")) or sorted(job.source.glob("*.json"))
    if not files:
        raise DataError(f"{job.source}: found no gpt-edit/*/*/metadata and no training_json there; it needs {_LAYOUT}")
    return files


def _training_row(record: Record, task: str, sample_id: str, folders: tuple[str, ...]) -> Yielded:
    images = record.values.get("image")
    if not isinstance(images, list) or len(images) != 2:
        return Skip("`image` is not a pair of names", record.place)
    source, target = images
    return Candidate(
        place=record.place,
        sample_id=sample_id,
        text=_instruction(record.values),
        source=source,
        target=target,
        folders=folders,
        columns={"task": task},
    )


def _instruction(values: Mapping[str, Any]) -> Any:
    """What the human's first turn says, without the mark that stands for the picture."""
    turns = values.get("conversations")
    for turn in turns if isinstance(turns, list) else ():
        if isinstance(turn, dict) and turn.get("from") in ("human", "user"):
            said = turn.get("value")
            return _PICTURE_MARK.sub("", said) if isinstance(said, str) else said
    return None


GPT_IMAGE_EDIT = IngestSet("gpt_image_edit", "UCSC-VLAA/GPT-Image-Edit-1.5M", "CC-BY-4.0", _LAYOUT, _rows)
