"""What one image or clip really is: every frame is decoded, none is converted."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from av.video.frame import VideoFrame
from PIL import Image

from sama_data.decode import require_still_range
from sama_data.decode_image import EXIF_ORIENTATION, decode_image
from sama_data.media import Media
from sama_data.sniff import STILL_IMAGE, content_kind
from sama_data.video_reader import VideoReader, open_video, quarter_turns, upright_size

# A difference of two times that is off by more than this share makes the rate a variable one. Containers round times,
# phones and screen recorders let them sway a little.
_STEADY_SHARE = 0.1
# A header's rate is taken for the measured one if it is this near: 23.976 is better known than measured.
_SAME_RATE_SHARE = 0.01
_RATE_DIGITS = 3
_DURATION_DIGITS = 6
_BITS_OF_MODE = {"1": 1, "I": 16, "I;16": 16, "I;16B": 16, "I;16L": 16, "F": 32}
_ROTATION_OF_ORIENTATION = {3: 180, 4: 180, 5: 270, 6: 270, 7: 90, 8: 90}
_CODEC_OF_FORMAT = {"JPEG": "mjpeg", "PNG": "png", "WEBP": "webp"}


@dataclass(frozen=True, slots=True)
class ClipFacts:
    """What a clip turned out to be.

    Attributes:
        codec: As FFmpeg calls it.
        width: Pixels of the upright picture; the next likewise.
        height: Lines.
        rotation: By how many degrees counter-clockwise the stored picture is turned to be upright.
        pixel_format: How pixels are stored: FFmpeg's name, of a still image Pillow's mode.
        bit_depth: Bits of one colour value.
        num_read: Frames from the first one wanted to the last.
        num_frames: All frames of the clip; None where those behind the wanted ones were not looked at.
        fps: Frames a second, None for an image, or where the clip has no times.
        variable_fps: Whether the frames come at uneven times; None where that cannot be told.
        duration_seconds: How long the frames that were read are shown; None for an image.
    """

    codec: str
    width: int
    height: int
    rotation: int
    pixel_format: str
    bit_depth: int
    num_read: int
    num_frames: int | None
    fps: float | None = None
    variable_fps: bool | None = None
    duration_seconds: float | None = None


def probe_clip(media: Media, start: int = 0, end: int | None = None, max_frames: int | None = None) -> ClipFacts:
    """Decodes the frames that `sama_data.decode.decode_frames` would, with the same checks.

    Raises:
        ClipError: The file cannot be decoded or does not hold the wanted frames.
        DataError: It has a URL, and what reads such is not installed.
    """
    content = media.read() if media.is_remote else None
    kind = content_kind(media, content)
    if kind == STILL_IMAGE:
        require_still_range(media, start, end)
        return _probe_image(media, content)
    with open_video(media, kind, content=content) as video:
        return _probe_video(video, start, end, max_frames)


def _probe_image(media: Media, content: bytes | None) -> ClipFacts:
    _, height, width, _ = decode_image(media, None, content).shape
    with Image.open(io.BytesIO(content or media.read())) as image:
        orientation = image.getexif().get(EXIF_ORIENTATION, 1)
        return ClipFacts(
            codec=_CODEC_OF_FORMAT[image.format or ""],
            width=width,
            height=height,
            rotation=_ROTATION_OF_ORIENTATION.get(orientation, 0),
            pixel_format=image.mode,
            bit_depth=_BITS_OF_MODE.get(image.mode, 8),
            num_read=1,
            num_frames=1,
        )


def _probe_video(video: VideoReader, start: int, end: int | None, max_frames: int | None) -> ClipFacts:
    first: VideoFrame | None = None
    times: list[float | None] = []
    for frame in video.frames(start, end, max_frames):
        first = first or frame
        times.append(frame.time)
    assert first is not None, "a clip without frames was refused"
    fps, variable_fps = _rate(times, video.fps, float(first.time_base or 0))
    width, height = upright_size(first)
    return ClipFacts(
        codec=video.codec,
        width=width,
        height=height,
        rotation=90 * quarter_turns(first),
        pixel_format=first.format.name,
        bit_depth=max(component.bits for component in first.format.components),
        num_read=len(times),
        num_frames=start + len(times) if end is None and max_frames is None else None,
        fps=fps,
        variable_fps=variable_fps,
        duration_seconds=round(len(times) / fps, _DURATION_DIGITS) if fps else None,
    )


def _rate(
    times: Sequence[float | None], declared: float | None, tick_seconds: float
) -> tuple[float | None, bool | None]:
    """Frames a second, and whether they come at uneven times."""
    known = np.array([time for time in times if time is not None])
    if len(known) < len(times) or len(known) < 2 or known[-1] <= known[0]:
        return declared, None
    gaps = np.diff(known)
    middle = float(np.median(gaps))
    is_variable = bool(np.abs(gaps - middle).max() > max(_STEADY_SHARE * middle, 1.5 * tick_seconds))
    measured = len(gaps) / float(known[-1] - known[0])
    is_declared = declared is not None and abs(declared - measured) <= _SAME_RATE_SHARE * measured
    return (declared if is_declared and not is_variable else round(measured, _RATE_DIGITS)), is_variable
