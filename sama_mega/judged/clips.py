"""Reads which clips a suite edits: users' own lists, and the benchmarks' own files."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sama_data.ingest.csv_records import csv_rows
from sama_data.ingest.interface import Skip
from sama_mega.config.errors import ConfigError
from sama_mega.judged.suite import Suite, plain_name

# Names of the columns, best first: `video` is the edit in every set of edits that has a source as well.
SOURCE_COLUMNS = (
    "source",
    "source_video",
    "original_video",
    "src_video",
    "source_path",
    "vace_video",
    "video_path",
    "video",
)
INSTRUCTION_COLUMNS = ("instruction", "edit_instruction", "instruction_final_refine", "prompt", "text")
CATEGORY_COLUMNS = ("category", "edited_type", "edit_type", "task_type", "task", "type")
_LISTS = (".jsonl", ".json", ".csv", ".txt")
_CLIP_FOLDERS = ("", "videos", "src_videos", "source_videos")
_NAME_CHARACTERS = 80


@dataclass(frozen=True, slots=True)
class SourceClip:
    """One clip that is to be edited.

    Attributes:
        name: Unique and fit for a file's name; another instruction or source is another name.
        given_id: The list's own name of it; None where it has none.
        path: The source.
        instruction: What to change.
        category: The suite's key.
    """

    name: str
    given_id: str | None
    path: Path
    instruction: str
    category: str


@dataclass(frozen=True)
class ClipList:
    """What a list held.

    Attributes:
        clips: Those that the suite asks about.
        left_out: Those that it does not, by reason.
        given_names: How many rows have a category and a name that others may call an edit by. All rows count, so that
            a name means the same with fewer of them; those that are left out have the category "".
    """

    clips: tuple[SourceClip, ...]
    left_out: Mapping[str, int]
    given_names: Mapping[tuple[str, str], int]


@dataclass(frozen=True, slots=True)
class _Row:
    """A row as it was written."""

    place: str
    folder: Path
    values: Mapping[str, Any]
    file_category: str | None


def read_clips(where: Path, suite: Suite, limit: int | None = None) -> ClipList:
    """Reads a list of clips, or the lists in a folder.

    Args:
        where: A .jsonl, .json, .csv or ReCo-Bench .txt file, or a folder with one, or with one for each category.
        suite: Knows the categories.
        limit: Clips at most of each category, the first ones; None takes all.

    Raises:
        ConfigError: It cannot be read, a row lacks something, has an unknown category or is there twice, a clip is not
            there or could be another row's, or no clip is left.
    """
    categories = {plain_name(name): item.key for item in suite.categories for name in (item.key, *item.also)}
    passed_over = {plain_name(name): item.reason for item in suite.left_out for name in item.names}
    clips: list[SourceClip] = []
    seen: set[str] = set()
    written_of: dict[Path, str] = {}
    names: Counter[tuple[str, str]] = Counter()
    counts: Counter[str] = Counter()
    left_out: Counter[str] = Counter()
    for row in _rows(where, categories):
        category = _category(row, suite, categories, passed_over)
        path = _find_clip(row, category or plain_name(_written_category(row)))
        if path is not None:
            _refuse_two_clips_in_one_file(row, path, written_of)
        given = given_names(_given_id(row), Path(_text(row, SOURCE_COLUMNS)))
        names.update((category or "", name) for name in given)
        if category is None:
            left_out[passed_over[plain_name(_written_category(row))]] += 1
            continue
        name = _clip_name(row, category)
        if name in seen:
            raise ConfigError(f"{row.place}: the same clip, instruction and category as a row before: remove one")
        seen.add(name)
        counts[category] += 1
        if limit is None or counts[category] <= limit:
            clips.append(_clip(row, name, path, category))
    if not clips:
        raise ConfigError(f"--clips ({where}) holds no clip that {suite.title} asks about")
    return ClipList(tuple(clips), dict(left_out), names)


def given_names(given_id: str | None, source: Path) -> list[str]:
    """Returns what others may call a clip's edit, best first, each once: as the list calls it, or its source."""
    return [name for name in dict.fromkeys((given_id, source.stem)) if name]


def _rows(where: Path, categories: Mapping[str, str]) -> Iterator[_Row]:
    for path in _list_files(where, categories):
        file_category = _category_of_file(path, categories)
        try:
            text = path.read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from error
        for place, values in _parsed(path, text):
            yield _Row(place, path.parent, values, file_category)


def _list_files(where: Path, categories: Mapping[str, str]) -> list[Path]:
    if not where.exists():
        raise ConfigError(f"--clips ({where}) does not exist: name a list of clips, or a folder with one")
    if where.is_file():
        if where.suffix.lower() not in _LISTS:
            raise ConfigError(f"--clips ({where}) must be a folder, or end in one of: {', '.join(_LISTS)}")
        return [where]
    found = sorted(path for path in where.iterdir() if path.suffix.lower() in _LISTS and path.is_file())
    found = [path for path in found if path.suffix != ".txt" or _category_of_file(path, categories)]
    if len(found) > 1 and not all(_category_of_file(path, categories) for path in found):
        names = ", ".join(path.name for path in found)
        raise ConfigError(f"--clips ({where}) holds several lists ({names}): name one, or name each like a category")
    if not found:
        raise ConfigError(f"--clips ({where}) holds no list of clips: it needs one that ends in {', '.join(_LISTS)}")
    return found


def _category_of_file(path: Path, categories: Mapping[str, str]) -> str | None:
    """Returns the category that a file's name begins with: `add_test.txt`, `style.json`."""
    words = plain_name(path.stem).split("_")
    beginnings = ("_".join(words[:count]) for count in range(len(words), 0, -1))
    return next((categories[name] for name in beginnings if name in categories), None)


def _parsed(path: Path, text: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    match path.suffix.lower():
        case ".jsonl":
            yield from _json_lines(path, text)
        case ".json":
            yield from _json_items(path, text)
        case ".csv":
            yield from _csv_rows(path, text)
        case _:
            yield from _reco_lines(path, text)


def _json_lines(path: Path, text: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for number, line in enumerate(_lines(text), start=1):
        if line.strip():
            yield f"{path} line {number}", _object(_json(line, f"{path} line {number}"), f"{path} line {number}")


def _json_items(path: Path, text: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    found = _json(text, str(path))
    if isinstance(found, dict):
        found = [{"sample_id": key} | _object(item, f"{path} {key}") for key, item in found.items()]
    if not isinstance(found, list):
        raise ConfigError(f"{path}: must hold a list of objects, or an object of them")
    for number, item in enumerate(found, start=1):
        yield f"{path} item {number}", _object(item, f"{path} item {number}")


def _csv_rows(path: Path, text: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    csv.field_size_limit(max(csv.field_size_limit(), len(text)))
    for row in csv_rows(_lines(text), str(path)):
        if isinstance(row, Skip):
            raise ConfigError(f"{row.place}: {row.reason}")
        yield row.place, row.values


def _reco_lines(path: Path, text: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """`clip.mp4: what to change | picture`, as ReCo's own lists have it; the picture is not looked at."""
    for number, line in enumerate(_lines(text), start=1):
        if not line.strip():
            continue
        name, colon, rest = line.partition(": ")
        if not colon:
            raise ConfigError(f"{path} line {number}: must be `CLIP.mp4: INSTRUCTION`")
        yield f"{path} line {number}", {"source": name.strip(), "instruction": rest.split(" | ")[0].strip()}


def _lines(text: str) -> Iterator[str]:
    """Lines with their ends; unlike `splitlines`, whole where a text holds one of Unicode's other separators."""
    return io.StringIO(text, newline="")


def _json(text: str, place: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{place}: is not JSON: {error}") from None


def _object(value: Any, place: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ConfigError(f"{place}: is no object with source, instruction and category")
    return value


def _category(row: _Row, suite: Suite, categories: Mapping[str, str], passed_over: Mapping[str, str]) -> str | None:
    """Returns the suite's key of a row's category; None where the suite passes it over."""
    known = ", ".join(category.key for category in suite.categories)
    written = _written_category(row)
    if not written:
        raise ConfigError(
            f"{row.place}: has no category: add a column `category` (one of: {known}), or name the list like one"
        )
    name = plain_name(written)
    if name not in categories and name not in passed_over:
        raise ConfigError(f"{row.place}: category ({written}) must be one of: {known}")
    return categories.get(name)


def _written_category(row: _Row) -> str:
    return _text(row, CATEGORY_COLUMNS) or row.file_category or ""


def _clip(row: _Row, name: str, path: Path | None, category: str) -> SourceClip:
    written, instruction = _text(row, SOURCE_COLUMNS), _text(row, INSTRUCTION_COLUMNS)
    for what, text in (("source", written), ("instruction", instruction)):
        if not text:
            raise ConfigError(f"{row.place}: has no {what}: add a column `{what}`")
    if path is None:
        raise ConfigError(f"{row.place}: {row.folder / written} does not exist: clips are looked for beside their list")
    return SourceClip(name, _given_id(row), path, instruction, category)


def _clip_name(row: _Row, category: str) -> str:
    written, instruction = _text(row, SOURCE_COLUMNS), _text(row, INSTRUCTION_COLUMNS)
    digest = hashlib.blake2b("\0".join((written, instruction, category)).encode(), digest_size=4).hexdigest()
    stem = re.sub(r"[^A-Za-z0-9._-]+", "_", _given_id(row) or Path(written).stem).strip("._")[:_NAME_CHARACTERS]
    return f"{stem}-{digest}"


def _given_id(row: _Row) -> str | None:
    return _text(row, ("sample_id",)) or None


def _find_clip(row: _Row, category: str) -> Path | None:
    """Returns where a clip is: as the list says, or in one of the folders that the benchmarks keep clips in."""
    written = Path(_text(row, SOURCE_COLUMNS))
    roots = (row.folder, row.folder / category)
    candidates = (
        root / folder / name for name in (written, written.name) for root in roots for folder in _CLIP_FOLDERS
    )
    return next((path for path in candidates if path.is_file()), None)


def _refuse_two_clips_in_one_file(row: _Row, path: Path, written_of: dict[Path, str]) -> None:
    """Raises ConfigError where `a/1.mp4` and `b/1.mp4` were both found as `1.mp4`, which is one of them at most."""
    written = _text(row, SOURCE_COLUMNS)
    before = written_of.setdefault(path, written)
    if before != written and not all(_is_as_written(path, name) for name in (before, written)):
        raise ConfigError(
            f"{row.place}: {written} and {before} of a row before were both found as {path}: "
            "keep the clips in the folders that the list names"
        )


def _is_as_written(path: Path, written: str) -> bool:
    parts = Path(written).parts
    return path.parts[-len(parts) :] == parts


def _text(row: _Row, columns: tuple[str, ...]) -> str:
    """Returns the first of the columns that a row has a text in."""
    values = (row.values.get(name) for name in columns)
    return next((value.strip() for value in values if isinstance(value, str) and value.strip()), "")
