"""What the datasets call source, target and instruction. In an edit set, a column `video` is the target.

The names are those met in the published sets and their loaders; one table serves every set, so that no reader can
take `video` for the source.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from sama_data.errors import DataError
from sama_data.rows import NUMBER_COLUMNS

SOURCE_NAMES = (
    "source",
    "source_video",
    "original_video",
    "src_video",
    "vace_video",
    "source_path",
    "control_video",
    "source_image",
    "edit_image",
)
TARGET_NAMES = (
    "target",
    "video",
    "tar_video",
    "tgt_video",
    "target_video",
    "edited_path",
    "edited_video",
    "image",
    "target_image",
    "edited_image",
)
# The first that a set has is taken: refined instructions stand beside the raw ones.
TEXT_NAMES = ("instruction_final_refine", "edit_instruction", "instruction", "prompt", "text", "caption")

_CARRIED_TEXT = ("task", "dataset", "licence")
_CARRIED_COUNTS = ("frame_start", "frame_end", "width", "height", "num_frames")


@dataclass(frozen=True, slots=True)
class EditColumns:
    """A set's own names of the three things an edit has.

    Attributes:
        source: The clip before the edit; None in a set of raw clips.
        target: The clip after the edit, or the raw clip.
        text: The instruction, or the caption.
    """

    source: str | None
    target: str
    text: str


def edit_columns(names: Iterable[str], place: str, needs_source: bool = True) -> EditColumns:
    """Says which of a set's columns are source, target and instruction.

    Args:
        names: The set's columns.
        place: Names the file in errors.
        needs_source: Whether a set without a source is wrong, or one of raw clips.

    Raises:
        DataError: One of them is absent, or two columns could be the same thing.
    """
    known = set(names)
    source = _only(known, SOURCE_NAMES, "source", place)
    target = _only(known, TARGET_NAMES, "target", place)
    text = next((name for name in TEXT_NAMES if name in known), None)
    wanted = {"target": (target, TARGET_NAMES), "instruction": (text, TEXT_NAMES)}
    if needs_source:
        wanted = {"source": (source, SOURCE_NAMES), **wanted}
    for role, (found, possible) in wanted.items():
        if found is None:
            have = ", ".join(sorted(known)) or "none"
            raise DataError(f"{place}: no column for the {role} among {have}: it needs one of {', '.join(possible)}")
    assert target is not None
    assert text is not None
    return EditColumns(source, target, text)


def has_edit_columns(names: Iterable[str]) -> bool:
    """Whether a set's columns hold a source, a target and an instruction."""
    known = set(names)
    return all(known & set(group) for group in (SOURCE_NAMES, TARGET_NAMES, TEXT_NAMES))


def carried_columns(values: Mapping[str, Any]) -> dict[str, Any]:
    """Takes over the columns that a manifest knows by the same name; text that is a number becomes one.

    A number that cannot be read stays as it is, and the row is refused for it later.
    """
    carried: dict[str, Any] = {}
    for column in (*_CARRIED_TEXT, *_CARRIED_COUNTS, *NUMBER_COLUMNS):
        value = values.get(column)
        if isinstance(value, str):
            value = value.strip()
            if column not in _CARRIED_TEXT and value:
                value = _number(value)
        if value is not None and value != "":
            carried[column] = value
    return carried


def _only(known: set[str], names: tuple[str, ...], role: str, place: str) -> str | None:
    found = [name for name in names if name in known]
    if len(found) > 1:
        raise DataError(
            f"{place}: columns {' and '.join(found)} could each be the {role}: remove or rename all but one"
        )
    return found[0] if found else None


def _number(text: str) -> Any:
    try:
        return float(text)
    except ValueError:
        return text
