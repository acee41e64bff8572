"""What a row's clips really are, and whether the row may be trained on."""

from __future__ import annotations

from typing import NamedTuple

from sama_data.errors import ClipError
from sama_data.media import Media
from sama_data.probe.clip import ClipFacts, probe_clip
from sama_data.rows import Row

# Source and target are scaled to cover one bucket and cropped in the middle: where their aspect ratios differ by this
# share, what is at the edge shifts by half of it. Sizes rounded to a model's multiples (1280x720 made 832x480) stay
# below.
MAX_ASPECT_DIFFERENCE = 0.03


class Finding(NamedTuple):
    """What probing a row found, by the manifest's columns; see `sama_data.rows.Row` for what they mean.

    Attributes:
        rejected: Why the row must not be trained on.
        is_passing: Whether that may be gone when it is tried again: a network's trouble, a worker that was killed.
    """

    codec: str | None = None
    pixel_format: str | None = None
    bit_depth: int | None = None
    rotation: int | None = None
    width: int | None = None
    height: int | None = None
    num_frames: int | None = None
    fps: float | None = None
    variable_fps: bool | None = None
    duration_seconds: float | None = None
    source_width: int | None = None
    source_height: int | None = None
    source_num_frames: int | None = None
    rejected: str | None = None
    is_passing: bool = False


def probe_row(row: Row) -> Finding:
    """Decodes a row's clips as training would, but to their ends.

    Of an image row's files only the first frame is looked at; of clips nothing behind `frame_end`.

    Raises:
        DataError: A clip has a URL, and what reads such is not installed.
    """
    target = _probe_side(row, row.target)
    source = None if row.source is None else _probe_side(row, row.source)
    finding = Finding()
    if isinstance(target, ClipFacts):
        finding = _with_target(target)
    if isinstance(source, ClipFacts):
        finding = finding._replace(
            source_width=source.width, source_height=source.height, source_num_frames=source.num_frames
        )
    alone = "picture" if row.kind == "image" else "clip"
    for name, side in (("target" if row.is_edit else alone, target), ("source", source)):
        if isinstance(side, ClipError):
            return finding._replace(rejected=f"{name} {side.reason}", is_passing=side.is_passing)
    if isinstance(target, ClipFacts) and isinstance(source, ClipFacts):
        finding = finding._replace(rejected=_mismatch(source, target))
    return finding


def _probe_side(row: Row, media: Media) -> ClipFacts | ClipError:
    try:
        return probe_clip(media, row.frame_start, row.frame_end, max_frames=1 if row.kind == "image" else None)
    except ClipError as error:
        return error


def _with_target(facts: ClipFacts) -> Finding:
    return Finding(
        codec=facts.codec,
        pixel_format=facts.pixel_format,
        bit_depth=facts.bit_depth,
        rotation=facts.rotation,
        width=facts.width,
        height=facts.height,
        num_frames=facts.num_frames,
        fps=facts.fps,
        variable_fps=facts.variable_fps,
        duration_seconds=facts.duration_seconds,
    )


def _mismatch(source: ClipFacts, target: ClipFacts) -> str | None:
    """Why two good clips are no pair."""
    if source.num_read != target.num_read:
        return f"source and target differ in length: {source.num_read} and {target.num_read} frames"
    ratio = (source.width * target.height) / (source.height * target.width)
    if max(ratio, 1 / ratio) > 1 + MAX_ASPECT_DIFFERENCE:
        sizes = f"{source.width}x{source.height} and {target.width}x{target.height}"
        return f"source and target differ in aspect: {sizes}"
    return None
