"""One row of a manifest: its columns, what must be there, and the checks of each value."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from sama_data.errors import DataError
from sama_data.media import Media

Kind = Literal["image", "video"]

# A suffix wants something in front of it: a file may be called ".png".
IMAGE_NAME = r"[^/]\.(png|jpg|jpeg|webp)"
# A signed URL goes on behind its path.
IMAGE_ENDING = rf"({IMAGE_NAME}|://[^?]*{IMAGE_NAME}\?.*)"
_ENDS_AS_IMAGE = re.compile(rf"{IMAGE_ENDING}\Z", re.IGNORECASE)
TEXT_COLUMNS = ("task", "dataset", "licence", "codec", "pixel_format", "rejected", "unscored")
COUNT_COLUMNS = {  # with the least value
    "width": 1,
    "height": 1,
    "num_frames": 1,
    "source_width": 1,
    "source_height": 1,
    "source_num_frames": 1,
    "rotation": 0,
    "bit_depth": 1,
    "frame_start": 0,
    "frame_end": 1,
    "source_offset": 0,
    "source_bytes": 0,
    "target_offset": 0,
    "target_bytes": 0,
}
MOST_COUNTED = 2**63 - 1
FLAG_COLUMNS = ("variable_fps",)
NUMBER_COLUMNS = ("fps", "duration_seconds", "if_score", "vq_score", "cp_score", "mc_score")
PATH_COLUMNS = ("source", "target", "video", "image")
KNOWN_COLUMNS: tuple[str, ...] = (
    *PATH_COLUMNS,
    "instruction",
    "caption",
    "sample_id",
    "kind",
    *TEXT_COLUMNS,
    *COUNT_COLUMNS,
    *FLAG_COLUMNS,
    *NUMBER_COLUMNS,
)
NOT_JSON_FIX = "write one object a line, or make a manifest of another list with data ingest"


@dataclass(frozen=True, slots=True)
class Row:
    """One sample of a dataset.

    Attributes:
        index: Its place in the dataset, from 0: the number that noise is keyed by.
        sample_id: Its stable name, unique in the dataset.
        kind: Whether it is drawn as an image or as a video; as given, or told from the column or the
            target's extension.
        source: The clip before the edit; None for a raw clip with a caption.
        target: The clip after the edit, or the raw clip.
        text: The instruction of an edit, the caption of a raw clip.
        task: The kind of edit, where known.
        frame_start: The first frame used, of source and target alike.
        frame_end: The frame after the last one used; None means to the end.
        fps: Frames a second; None where only the file says.
        width: The target's width in pixels, where known; the next two likewise.
        height: The target's height.
        num_frames: The target's frames.
        source_width: The source's width in pixels, where known; the next two likewise.
        source_height: The source's height.
        source_num_frames: The source's frames.
        codec: The target's codec, as FFmpeg calls it, where known.
        pixel_format: How the target's pixels are stored, as FFmpeg (of a still image, Pillow) calls it, where known.
        bit_depth: Bits of one of its colour values, where known.
        rotation: By how many degrees counter-clockwise the stored target is turned to be upright, where known; `width`
            and `height` are those of the upright picture.
        duration_seconds: How long the frames that are used are shown, where known.
        variable_fps: Whether the target's frames come at uneven times, where known.
        rejected: Why the row must not be trained on; None for a good one.
        unscored: Why it has no scores although they were asked for.
        dataset: Where it comes from.
        licence: What it may be used for.
        if_score: Instruction following, 1 to 10; the next three likewise.
        vq_score: Visual quality.
        cp_score: Content preservation.
        mc_score: Motion consistency.
    """

    index: int
    sample_id: str
    kind: Kind
    source: Media | None
    target: Media
    text: str
    task: str | None = None
    frame_start: int = 0
    frame_end: int | None = None
    fps: float | None = None
    width: int | None = None
    height: int | None = None
    num_frames: int | None = None
    source_width: int | None = None
    source_height: int | None = None
    source_num_frames: int | None = None
    codec: str | None = None
    pixel_format: str | None = None
    bit_depth: int | None = None
    rotation: int | None = None
    duration_seconds: float | None = None
    variable_fps: bool | None = None
    rejected: str | None = None
    unscored: str | None = None
    dataset: str | None = None
    licence: str | None = None
    if_score: float | None = None
    vq_score: float | None = None
    cp_score: float | None = None
    mc_score: float | None = None

    @property
    def is_edit(self) -> bool:
        """Whether the row is a pair with an instruction, not a raw clip with a caption."""
        return self.source is not None


def parse_row(record: Mapping[str, Any], place: str) -> dict[str, Any]:
    """Checks one manifest row and returns its canonical columns.

    Args:
        record: The row's own keys and values; a null or NaN counts as absent, unknown keys are passed over.
        place: Names the row in errors, like "clips.jsonl line 3".

    Returns:
        `source` (or None) and `target` as written in the manifest, `text`, `sample_id` (or None), `kind` and
        every optional column, None where absent (frame_start 0).

    Raises:
        DataError: A needed key is absent or a value has the wrong type or range.
    """
    present = {key: value for key, value in record.items() if key in KNOWN_COLUMNS and not is_absent(value)}
    source, target, text = _paths_and_text(present, record, place)
    row: dict[str, Any] = {"source": source, "target": target, "text": text}
    for column in ("sample_id", *TEXT_COLUMNS):
        row[column] = _text(present, column, place) if column in present else None
    for column, least in COUNT_COLUMNS.items():
        row[column] = _count(present[column], column, least, place) if column in present else None
    for column in FLAG_COLUMNS:
        row[column] = _flag(present[column], column, place) if column in present else None
    for column in NUMBER_COLUMNS:
        row[column] = _number(present[column], column, place) if column in present else None
    _check_members(row, place)
    is_picture = source is None and "image" in present
    row["kind"] = _kind(present.get("kind"), row, is_picture, place)
    row["frame_start"] = row["frame_start"] or 0
    if row["frame_end"] is not None and row["frame_end"] <= row["frame_start"]:
        start, end = row["frame_start"], row["frame_end"]
        raise DataError(f"{place}: frame_end {end} must be greater than frame_start {start}")
    if row["fps"] is not None and row["fps"] <= 0:
        raise DataError(f"{place}: fps {row['fps']} must be greater than 0")
    return row


def kind_of(path: str) -> Kind:
    """Returns what a path's extension says it is."""
    return "image" if _ENDS_AS_IMAGE.search(path) else "video"


def _paths_and_text(present: Mapping[str, Any], record: Mapping[str, Any], place: str) -> tuple[str | None, str, str]:
    is_edit = "source" in present or "target" in present
    if is_edit:
        needed = ["source", "target", "instruction"]
    else:
        needed = ["image" if "image" in present else "video", "caption"]
    missing = [key for key in needed if key not in present]
    if missing:
        found = ", ".join(str(key) for key in record) or "nothing"
        hint = "" if set(PATH_COLUMNS) & record.keys() else "; data ingest makes a manifest of another tool's list"
        raise DataError(
            f"{place}: needs source, target, instruction (an edit) or video, caption (a raw clip); "
            f"no {missing[0]!r} among its keys: {found}{hint}"
        )
    *source, target, text = (_text(present, key, place) for key in needed)
    return (source[0] if is_edit else None), target, text


def _check_members(row: Mapping[str, Any], place: str) -> None:
    """Checks the columns that say which bytes of a file a clip is."""
    for side in ("source", "target"):
        offset, num_bytes = row[f"{side}_offset"], row[f"{side}_bytes"]
        if (offset is None) != (num_bytes is None):
            given, missing = ("offset", "bytes") if num_bytes is None else ("bytes", "offset")
            raise DataError(f"{place}: {side}_{given} needs {side}_{missing} beside it")
    if row["source"] is None and row["source_offset"] is not None:
        raise DataError(f"{place}: source_offset without a source: a raw clip's bytes are target_offset, target_bytes")


def _kind(given: Any, row: Mapping[str, Any], is_picture: bool, place: str) -> Kind:
    """The kind that is given, else a raw clip's column image, else what whole files' names tell."""
    if given is not None:
        if given not in ("image", "video"):
            raise DataError(f"{place}: kind must be 'image' or 'video', not {given!r}")
        return "image" if given == "image" else "video"
    if is_picture:
        return "image"
    source, target = row["source"], row["target"]
    if row["source_offset"] is not None or row["target_offset"] is not None:
        raise DataError(f"{place}: needs kind, 'image' or 'video': the name of a file does not tell what its parts are")
    if source is not None and kind_of(source) != kind_of(target):
        raise DataError(f"{place}: source {source!r} and target {target!r} must both be images or both be videos")
    return kind_of(target)


def is_absent(value: Any) -> bool:
    """Whether a manifest's value stands for none: null, or the NaN that pandas writes for it."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def _text(present: Mapping[str, Any], column: str, place: str) -> str:
    value = present[column]
    if not isinstance(value, str):
        raise DataError(f"{place}: {column} must be text, not {value!r}")
    if not value.strip():
        raise DataError(f"{place}: {column} is empty")
    if "\0" in value:
        raise DataError(f"{place}: {column} holds a NUL character")
    try:
        value.encode()
    except UnicodeEncodeError as error:  # half of a pair, which JSON can write
        raise DataError(f"{place}: {column} holds a character that is not Unicode: {value!r}") from error
    return value


def _count(value: Any, column: str, least: int, place: str) -> int:
    # A Parquet column with gaps comes back from pandas as floats.
    whole = isinstance(value, float) and value.is_integer()
    if isinstance(value, bool) or not (isinstance(value, int) or whole) or not least <= value <= MOST_COUNTED:
        raise DataError(f"{place}: {column} must be a whole number of at least {least}, not {value!r}")
    return int(value)


def _flag(value: Any, column: str, place: str) -> bool:
    if not isinstance(value, bool):
        raise DataError(f"{place}: {column} must be true or false, not {value!r}")
    return value


def _number(value: Any, column: str, place: str) -> float:
    try:
        is_number = not isinstance(value, bool) and isinstance(value, int | float) and math.isfinite(value)
    except OverflowError:  # JSON's whole numbers may have any length
        is_number = False
    if not is_number:
        raise DataError(f"{place}: {column} must be a number, not {value!r}")
    return float(value)
