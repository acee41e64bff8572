"""X2Edit: pairs of pictures in 1,396 tars, read from inside them.

A sample is a run of members `NNN.1.0.jpg` (source), `NNN.2.jpg` (edited), `NNN.json`, `NNN.txt`; textflux adds
`NNN.1.1.jpg`, a mask. Some tars are several written one behind the other, and their member names repeat with other
content: members belong together by standing beside each other in the stream, never by name, and a new sample starts
where the name changes, a part comes a second time, or an archive ends.

What is read of the JSON: `instruction_en`, else `instruction`, else `instruction_zh` (the builders differ in which
they fill; the txt is not read), and `task`, else the tar's folder. The scores in it (`score`, `score_7b`,
`clip_score`, ...) are other judges' on other scales: `data score` gives the four that the filter knows.
`personalized_generation`, `portrait` and `portrait_editing` are not aligned pairs and are left out.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from sama_data.errors import DataError
from sama_data.ingest.in_order import in_order
from sama_data.ingest.interface import Candidate, Clip, IngestSet, Job, Skip, Yielded
from sama_data.ingest.metadata import file_size
from sama_data.ingest.tar_members import Damage, Member, read_members

UNALIGNED = "source and target are not aligned in this category"
INCOMPLETE = "a sample lacks its source, its edit or its JSON"
NOT_JSON = "a sample's JSON cannot be read"
DAMAGED = "an archive is damaged"

_LAYOUT = "a folder with its tars, in folders or not, or one tar"
_UNALIGNED_TASKS = ("personalized_generation", "portrait", "portrait_editing")
_ROLES = {"1.0": "source", "1": "source", "2": "target"}
_PICTURE = re.compile(r"\.*(?P<part>[0-9.]+)\.(jpg|jpeg|png|webp)$", re.IGNORECASE)
_MOST_JSON_BYTES = 1 << 24


@dataclass
class _Sample:
    """Members that stand beside each other under one name."""

    key: str
    parts: dict[str, Member] = field(default_factory=dict)


def _rows(job: Job) -> Iterator[Yielded]:
    tars = [job.source] if job.source.is_file() else sorted(job.source.rglob("*.tar"))
    if not tars:
        raise DataError(f"{job.source}: found no *.tar there; it needs {_LAYOUT}")
    job.advance.expect(sum(file_size(tar) for tar in tars))
    for item in in_order(lambda tar: _tar_rows(tar, job), tars, job.workers):
        if isinstance(item, int):
            job.advance.add(item)
        else:
            yield item


def _tar_rows(tar: Path, job: Job) -> Iterator[Yielded | int]:
    """Yields a tar's rows, then its size."""
    place = job.place_of(tar)
    name = place.removesuffix(".tar")
    names: Counter[str] = Counter()
    size = file_size(tar)
    try:
        with open(tar, "rb") as file:
            for sample in _samples(tar):
                if isinstance(sample, Damage):
                    yield Skip(DAMAGED, f"{place} at byte {sample.offset}: {sample.what}")
                    continue
                names[sample.key] += 1
                copy = f"#{names[sample.key]}" if names[sample.key] > 1 else ""
                yield _row(sample, file, tar, place, f"{name}/{sample.key}{copy}")
    except OSError as error:
        raise DataError(f"{tar}: cannot be read: {error.strerror or error}") from error
    yield size


def _samples(tar: Path) -> Iterator[_Sample | Damage]:
    """Groups a tar's members."""
    sample: _Sample | None = None
    for member in read_members(tar):
        if isinstance(member, Damage):
            yield member
            continue
        key, role = _key_and_role(member.name)
        if sample is not None and (key != sample.key or role in sample.parts or not member.follows):
            yield sample
            sample = None
        sample = sample or _Sample(key)
        sample.parts[role] = member
    if sample is not None:
        yield sample


def _key_and_role(name: str) -> tuple[str, str]:
    """A member's sample, and which part of it the member is."""
    folder, _, last = name.rpartition("/")
    stem, _, rest = last.partition(".")
    picture = _PICTURE.fullmatch(rest)
    role = _ROLES.get(picture["part"], rest) if picture else rest.lower()
    return (f"{folder}/{stem}" if folder else stem), role


def _row(sample: _Sample, file: BinaryIO, tar: Path, place: str, sample_id: str) -> Yielded:
    place = f"{place} sample {sample.key}"
    if not {"source", "target", "json"} <= sample.parts.keys():
        return Skip(INCOMPLETE, f"{place}: has {', '.join(sample.parts)}")
    values = _read_json(file, sample.parts["json"])
    if values is None:
        return Skip(NOT_JSON, place)
    task = values.get("task")
    if not isinstance(task, str) or not task.strip():
        task = tar.parent.name
    if _is_unaligned(task) or any(map(_is_unaligned, place.split("/")[:-1])):
        return Skip(UNALIGNED, place)
    source, target = (
        Clip(str(tar), sample.parts[role].offset, sample.parts[role].num_bytes, "image")
        for role in ("source", "target")
    )
    return Candidate(
        place=place,
        sample_id=sample_id,
        text=_instruction(values),
        source=source,
        target=target,
        columns={"task": task},
    )


def _read_json(file: BinaryIO, member: Member) -> dict[str, Any] | None:
    if member.num_bytes > _MOST_JSON_BYTES:
        return None
    file.seek(member.offset)
    try:
        values = json.loads(file.read(member.num_bytes).decode("utf-8-sig"))
    except (ValueError, RecursionError):
        return None
    return values if isinstance(values, dict) else None


def _instruction(values: dict[str, Any]) -> Any:
    """The English instruction if there is one."""
    found = [values.get(key) for key in ("instruction_en", "instruction", "instruction_zh")]
    return next((text for text in found if isinstance(text, str) and text.strip()), None)


def _is_unaligned(name: str) -> bool:
    plain = re.sub(r"[\s-]+", "_", name.strip().lower())
    return any(plain == task or plain.endswith(f"_{task}") for task in _UNALIGNED_TASKS)


X2EDIT = IngestSet("x2edit", "OPPOer/X2Edit-Dataset", "Apache-2.0", _LAYOUT, _rows)
