"""The pictures that the judge sees of a pair: evenly spaced frames, scaled down, JPEG, as data URIs."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sama_data.buckets import Geometry
from sama_data.decode import decode_frames
from sama_data.media import Media
from sama_data.rows import Kind, Row
from sama_data.score.settings import JPEG_QUALITY, JudgeSettings


@dataclass(frozen=True, slots=True)
class Exhibit:
    """What is shown of one pair, as data URIs in the order of time."""

    originals: tuple[str, ...]
    edits: tuple[str, ...]


def make_exhibit(row: Row, settings: JudgeSettings) -> Exhibit:
    """Decodes what the judge sees of an edit: frames of the same moments of both clips, as long as both last.

    Raises:
        ClipError: A clip cannot be used.
        DataError: A clip has a URL, and what reads such is not installed.
    """
    assert row.source is not None, "only edits are judged"
    clips = [_frames(media, row, settings) for media in (row.source, row.target)]
    shown = evenly_spaced(min(map(len, clips)), settings.num_frames)
    originals, edits = (tuple(data_uri(frames[index]) for index in shown) for frames in clips)
    return Exhibit(originals, edits)


def evenly_spaced(num_frames: int, wanted: int) -> list[int]:
    """Returns the indices of at most `wanted` of a clip's frames, the first and the last among them."""
    if num_frames <= wanted:
        return list(range(num_frames))
    if wanted == 1:
        return [0]
    # Whole numbers only: round half up, whatever the number of frames.
    gaps = wanted - 1
    return [(2 * place * (num_frames - 1) + gaps) // (2 * gaps) for place in range(wanted)]


def shown_size(width: int, height: int, kind: Kind, settings: JudgeSettings) -> tuple[int, int]:
    """Returns the (width, height) at which a picture is shown: its own, or scaled down to the longest side allowed."""
    side = settings.image_side if kind == "image" else settings.video_side
    longest = max(width, height)
    if longest <= side:
        return width, height
    return max(1, round(width * side / longest)), max(1, round(height * side / longest))


def frames_looked_at(kind: Kind, settings: JudgeSettings) -> int:
    """Returns from how many frames at its start a clip's pictures are taken."""
    return 1 if kind == "image" else settings.max_frames


def _frames(media: Media, row: Row, settings: JudgeSettings) -> NDArray[np.uint8]:
    def scale(width: int, height: int) -> Geometry:
        shown_width, shown_height = shown_size(width, height, row.kind, settings)
        return Geometry(shown_width, shown_height, 0, 0, shown_width, shown_height)

    most = frames_looked_at(row.kind, settings)
    return decode_frames(media, row.frame_start, row.frame_end, most, scale).frames


def data_uri(frame: NDArray[np.uint8]) -> str:
    """Returns a frame ``[H, W, 3]`` uint8 RGB as a JPEG in a data URI."""
    content = io.BytesIO()
    Image.fromarray(frame).save(content, "JPEG", quality=JPEG_QUALITY)
    return f"data:image/jpeg;base64,{base64.b64encode(content.getvalue()).decode('ascii')}"
