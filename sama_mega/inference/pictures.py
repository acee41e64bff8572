"""Pictures and videos of samples: what a person looks at."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.video.reformatter import Interpolation
from PIL import Image, ImageDraw, ImageFont

from sama_mega.inference.sound import Sound

Frames = np.ndarray
"""[T, H, W, 3] uint8, RGB."""
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
"""The second where Pillow was built without FreeType."""

_MAX_COLUMNS = 8
_MIN_CELL_WIDTH, _MAX_CELL_WIDTH = 128, 240
_GAP_PIXELS = 4
_FONT_PIXELS = 16
_LINE_PIXELS = 22
_BACKGROUND, _INK = (255, 255, 255), (20, 20, 20)
# FFmpeg's numbers for BT.601, the matrix that readers assume for small untagged video, and limited range.
_BT601_525 = 6
_LIMITED_RANGE = 1
# Close to the eye's limit and still small; the index goes first, so that a browser can start at once.
_CODEC_OPTIONS = {"crf": "16", "preset": "medium"}
_CONTAINER_OPTIONS = {"movflags": "+faststart"}
# Flags as for decoding: the default ones lose levels at colour edges.
_SCALING = Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT


def before_after_picture(source: Frames, edit: Frames, path: Path, title: str = "") -> None:
    """Writes a PNG: a row of the source's frames over a row of the edit's, at the same moments.

    Args:
        source: ``[T, H, W, 3]`` uint8 RGB.
        edit: Same; it may be shorter or longer, each row is then spread over its own clip.
        path: The PNG; replaced whole.
        title: A line above, such as the instruction; long ones are broken.

    Raises:
        ValueError: A clip is no uint8 RGB clip.
        OSError: The disk refuses.
    """
    grid_picture([("source", source), ("edit", edit)], path, title)


def grid_picture(rows: Sequence[tuple[str, Frames]], path: Path, title: str = "") -> None:
    """Writes a PNG with one labelled row of evenly spaced frames per clip.

    Args:
        rows: (label, ``[T, H, W, 3]`` uint8 RGB), at least one.
        path: The PNG; replaced whole.
        title: A line above.

    Raises:
        ValueError: There is no row, or a clip is no uint8 RGB clip.
        OSError: The disk refuses.
    """
    if not rows:
        raise ValueError("grid_picture: no rows to draw")
    clips = [(label, _checked(f"row {label!r}", frames)) for label, frames in rows]
    columns = min(_MAX_COLUMNS, max(len(frames) for _, frames in clips))
    cell_width = min(_MAX_CELL_WIDTH, max(_MIN_CELL_WIDTH, max(frames.shape[2] for _, frames in clips)))
    font = ImageFont.load_default(size=_FONT_PIXELS)
    width = _GAP_PIXELS + columns * (cell_width + _GAP_PIXELS)
    title_lines = _broken(title, font, width - 2 * _GAP_PIXELS)
    strips = [_strip(label, frames, columns, cell_width, width, font) for label, frames in clips]
    top = len(title_lines) * _LINE_PIXELS + _GAP_PIXELS
    picture = Image.new("RGB", (width, top + sum(strip.height for strip in strips)), _BACKGROUND)
    draw = ImageDraw.Draw(picture)
    for number, line in enumerate(title_lines):
        draw.text((_GAP_PIXELS, _GAP_PIXELS + number * _LINE_PIXELS), line, fill=_INK, font=font)
    for strip in strips:
        picture.paste(strip, (0, top))
        top += strip.height
    with _replaced_whole(path) as temporary:
        picture.save(temporary, format="PNG")


def write_video(
    path: Path, frames: Frames, fps: float, *, size: tuple[int, int] | None = None, sound: Sound | None = None
) -> None:
    """Writes an H.264 mp4 that any player shows; the file appears whole or not at all.

    yuv420p needs even sizes: an odd width or height is padded by repeating its last column or line. Colours
    are converted and tagged as BT.601, limited range.

    Args:
        path: The mp4; replaced whole.
        frames: ``[T, H, W, 3]`` uint8 RGB.
        fps: Frames a second, above 0.
        size: (width, height) that the frames are scaled to; None keeps theirs.
        sound: Written beside the frames, whole.

    Raises:
        ValueError: The clip is no uint8 RGB clip, fps is not above 0, or the name does not end in .mp4.
        OSError: The disk refuses.
        SoundError: The sound cannot be read or written.
    """
    frames = _checked("write_video", frames)
    if not fps > 0:
        raise ValueError(f"write_video: fps ({fps}) must be above 0")
    if path.suffix.lower() != ".mp4":
        raise ValueError(f"write_video: {path} must end in .mp4")
    height, width = frames.shape[1:3]
    with _replaced_whole(path) as temporary:
        _encode(temporary, frames, Fraction(fps).limit_denominator(1001), size or (width, height), sound)


def _encode(path: Path, frames: Frames, rate: Fraction, size: tuple[int, int], sound: Sound | None) -> None:
    with av.open(str(path), "w", format="mp4", options=_CONTAINER_OPTIONS) as container:
        stream = container.add_stream("libx264", rate=rate, options=_CODEC_OPTIONS)
        stream.width, stream.height = (pixels + pixels % 2 for pixels in size)
        stream.pix_fmt = "yuv420p"
        context = stream.codec_context
        context.colorspace = context.color_primaries = context.color_trc = _BT601_525
        context.color_range = _LIMITED_RANGE
        if sound is not None:
            sound.join(container)
        for number, picture in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(_of_even_size(_scaled(picture, size)), format="rgb24")
            frame = frame.reformat(format="yuv420p", dst_colorspace="ITU601", dst_color_range="MPEG")
            container.mux(stream.encode(frame))
            if sound is not None:
                sound.write_until(container, float((number + 1) / rate))
        container.mux(stream.encode(None))
        if sound is not None:
            sound.write_until(container, math.inf)


def _scaled(picture: Frames, size: tuple[int, int]) -> Frames:
    if (picture.shape[1], picture.shape[0]) == size:
        return picture
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
    return frame.reformat(*size, format="rgb24", interpolation=_SCALING).to_ndarray()


def _of_even_size(picture: Frames) -> Frames:
    height, width = picture.shape[:2]
    return np.ascontiguousarray(np.pad(picture, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge"))


def _strip(label: str, frames: Frames, columns: int, cell_width: int, width: int, font: Font) -> Image.Image:
    """One clip: its label, then evenly spaced frames side by side with their numbers."""
    chosen = np.unique(np.linspace(0, len(frames) - 1, min(columns, len(frames))).round().astype(int))
    cell_height = max(1, round(cell_width * frames.shape[1] / frames.shape[2]))
    # Small synthetic clips are enlarged without blur, real ones shrunk without aliasing.
    method = Image.Resampling.NEAREST if frames.shape[2] < cell_width else Image.Resampling.LANCZOS
    strip = Image.new("RGB", (width, _LINE_PIXELS + cell_height + _GAP_PIXELS), _BACKGROUND)
    numbers = ", ".join(str(index) for index in chosen)
    ImageDraw.Draw(strip).text((_GAP_PIXELS, 1), f"{label}   (frames {numbers} of {len(frames)})", fill=_INK, font=font)
    for column, index in enumerate(chosen):
        cell = Image.fromarray(frames[index]).resize((cell_width, cell_height), method)
        strip.paste(cell, (_GAP_PIXELS + column * (cell_width + _GAP_PIXELS), _LINE_PIXELS))
    return strip


def _broken(text: str, font: Font, width: int) -> list[str]:
    lines: list[str] = []
    for word in text.split():
        if lines and font.getlength(f"{lines[-1]} {word}") <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines


def _checked(name: str, frames: Frames) -> Frames:
    frames = np.asarray(frames)
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3 or 0 in frames.shape:
        raise ValueError(f"{name}: frames must be uint8 [T, H, W, 3] and not empty, not {frames.dtype} {frames.shape}")
    return frames


@contextmanager
def _replaced_whole(path: Path) -> Iterator[Path]:
    """Gives a temporary name beside the path and renames it at the end; on failure the old file stays."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
