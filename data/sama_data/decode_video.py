"""Decodes the wanted frames of one clip with PyAV, converting colour and size in one pass."""

from __future__ import annotations

import io
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

import av
import av.logging
import numpy as np
from av.stream import Disposition
from av.video.frame import VideoFrame
from av.video.reformatter import Colorspace, Interpolation, VideoReformatter
from numpy.typing import NDArray

from sama_data.buckets import Geometry
from sama_data.decode_image import MAX_PIXELS
from sama_data.errors import ClipError
from sama_data.media import Media

# What a damaged clip says goes to the quarantine; FFmpeg would print it on every rank's terminal as well.
av.logging.set_level(av.logging.FATAL)

# FFmpeg's default flags lose up to 50 levels at colour edges; these equal DALI's conversion bit for bit.
_EXACT = Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT
_SAME_SIZE = Interpolation.BILINEAR | _EXACT
_RESIZE = Interpolation.BICUBIC | _EXACT  # swscale widens the filter when it shrinks, so it does not alias

# AVColorSpace values that name no matrix for a YUV picture: RGB, unspecified, reserved.
UNTAGGED_COLOUR_SPACES = frozenset({0, 2, 3})
# Below this, starting a decoder's threads costs more than they save.
_MIN_PIXELS_FOR_THREADS = 320 * 240
# A clip may declare any number of frames: memory is taken as frames arrive, beyond this many.
_FIRST_CAPACITY = 128
# Where a file counts no frames, its last frame may end this much before its declared duration.
_DURATION_SLACK_SECONDS = 0.25
_DURATION_SLACK_SHARE = 0.02
# With the explicit "file:" in front of the path, neither a path nor a content can name a network resource.
_OPEN_OPTIONS: dict[str, Any] = {"options": {"protocol_whitelist": "file,subfile"}, "metadata_errors": "replace"}

ChooseGeometry = Callable[[int, int], Geometry]


def decode_video(
    media: Media,
    demuxer: str,
    start: int,
    end: int | None,
    max_frames: int | None,
    choose_geometry: ChooseGeometry | None,
    threads: int,
    content: bytes | None = None,
) -> tuple[NDArray[np.uint8], float | None]:
    """Returns the frames ``[T, H, W, 3]`` uint8 RGB and the rate; see `sama_data.decode.decode_frames`.

    Raises:
        ClipError: The clip has no video, is damaged, or lacks a wanted frame.
    """
    limit = earliest(end, None if max_frames is None else start + max_frames)
    with open_video(media, demuxer, content, threads) as (container, stream):
        writer = _FrameWriter(media, choose_geometry, _first_capacity(stream, start, limit), threads)
        decoded, last = _read_frames(media, container, stream, start, limit, writer)
        if limit is None or decoded < limit:
            lacking = what_is_lacking(demuxer, container, stream, decoded, _end_seconds(last))
            if lacking is not None:
                raise ClipError(media.name, lacking)
            _check_range(media, decoded, start, end)
        rate = stream.average_rate
    return writer.frames(), None if not rate else float(rate)


@contextmanager
def open_video(
    media: Media, demuxer: str, content: bytes | None, threads: int = 1
) -> Generator[tuple[Any, Any], None, None]:
    """Opens a clip; gives FFmpeg's container and its video stream, and turns their errors into ClipErrors.

    Args:
        media: The file, or the part of one.
        demuxer: The name of FFmpeg's demuxer.
        content: The file's bytes, where they were read already.
        threads: Decoder threads for a clip that is large enough to gain from them.

    Raises:
        ClipError: The clip cannot be opened or has no video, or what is done with it fails.
    """
    try:
        with av.open(_input_of(media, content), format=demuxer, **_OPEN_OPTIONS) as container:
            stream = _video_stream(media, container)
            _set_threads(stream, threads)
            yield container, stream
    except av.FFmpegError as error:
        raise ClipError(media.name, f"cannot be opened: {_reason(error)}") from error
    except (ValueError, RuntimeError, MemoryError) as error:
        # PyAV raises these for contents that it cannot represent; a clip must never end the run.
        raise ClipError(media.name, f"cannot be decoded: {type(error).__name__}: {error}") from error


def _input_of(media: Media, content: bytes | None) -> str | io.BytesIO:
    """What FFmpeg opens: local bytes by themselves, so that only those it needs are read, and without Python."""
    if content is not None:
        return io.BytesIO(content)
    if media.offset is None or media.num_bytes is None:
        return f"file:{media.path}"
    return f"subfile,,start,{media.offset},end,{media.offset + media.num_bytes},,:file:{media.path}"


def _video_stream(media: Media, container: Any) -> Any:
    for stream in container.streams.video:
        # The cover picture of a sound file is a video stream of one frame.
        if stream.disposition & Disposition.attached_pic:
            continue
        if stream.codec_context is None:
            raise ClipError(media.name, "holds a video codec that FFmpeg does not know")
        return stream
    raise ClipError(media.name, "has no video stream: it holds sound only")


def _read_frames(
    media: Media, container: Any, stream: Any, start: int, limit: int | None, writer: _FrameWriter
) -> tuple[int, VideoFrame | None]:
    """Decodes up to frame `limit`, writes those from `start` on; returns how many there were and the last."""
    decoded, frame = 0, None
    try:
        for frame in container.decode(stream):
            if decoded >= start:
                if frame.is_corrupt:
                    raise ClipError(media.name, f"is damaged: frame {decoded} has errors")
                writer.add(frame)
            decoded += 1
            if decoded == limit:
                break
    except av.FFmpegError as error:
        declared = f" of {stream.frames}" if stream.frames else ""
        raise ClipError(media.name, f"is damaged after frame {decoded}{declared}: {_reason(error)}") from error
    return decoded, frame


def _set_threads(stream: Any, threads: int) -> None:
    codec = stream.codec_context
    if threads > 1 and codec.width * codec.height >= _MIN_PIXELS_FOR_THREADS:
        codec.thread_type = "AUTO"
        codec.thread_count = threads
    else:
        codec.thread_type = "NONE"
        codec.thread_count = 1


def _first_capacity(stream: Any, start: int, limit: int | None) -> int:
    last = earliest(limit, stream.frames or None)
    return _FIRST_CAPACITY if last is None else max(1, min(_FIRST_CAPACITY, last - start))


def what_is_lacking(
    demuxer: str, container: Any, stream: Any, num_frames: int, end_seconds: float | None
) -> str | None:
    """Says of a file that ended before the wanted frames did what it declares and does not hold; None if nothing.

    Args:
        demuxer: Name of FFmpeg's demuxer.
        container: FFmpeg's.
        stream: The video stream.
        num_frames: The frames that it gave.
        end_seconds: When the last of them ends, None where nothing says.
    """
    declared = _declared_frames(demuxer, stream)
    if declared is not None:
        lacks = num_frames < declared
        return f"is truncated: {num_frames} of its {declared} frames can be decoded" if lacks else None
    duration = _declared_seconds(container, stream)
    if duration is None or end_seconds is None:
        return None
    if end_seconds < duration - max(_DURATION_SLACK_SECONDS, _DURATION_SLACK_SHARE * duration):
        return f"is truncated: it ends after {end_seconds:.2f} of {duration:.2f} seconds"
    return None


def _end_seconds(last: VideoFrame | None) -> float | None:
    if last is None or last.time is None:
        return None
    return last.time + float((last.duration or 0) * (last.time_base or 0))


def _check_range(media: Media, decoded: int, start: int, end: int | None) -> None:
    if decoded == 0:
        raise ClipError(media.name, "has a video stream without frames")
    if start >= decoded:
        raise ClipError(media.name, f"frame_start {start} is out of range: the clip has {decoded} frames")
    if end is not None and end > decoded:
        raise ClipError(media.name, f"frame_end {end} is out of range: the clip has {decoded} frames")


def _declared_frames(demuxer: str, stream: Any) -> int | None:
    if not stream.frames:
        return None
    if demuxer != "mov":
        return int(stream.frames)
    # An edit list may hide frames that the header counts; the index holds what is really shown.
    return sum(not entry.is_discard for entry in stream.index_entries)


def _declared_seconds(container: Any, stream: Any) -> float | None:
    """The video's own duration, else that of a container which holds nothing but video."""
    if stream.duration:
        return float(stream.duration * stream.time_base)
    tag = stream.metadata.get("DURATION")  # Matroska: "00:00:01.062000000"
    if tag and tag.count(":") == 2:
        hours, minutes, seconds = tag.split(":")
        return int(hours) * 3600 + int(minutes) * 60 + float(seconds)
    if container.duration and len(container.streams) == 1:
        return container.duration / av.time_base
    return None


def earliest(first: int | None, second: int | None) -> int | None:
    """Returns the smaller of two limits; None is none."""
    if first is None or second is None:
        return first if second is None else second
    return min(first, second)


def _reason(error: av.FFmpegError) -> str:
    return (error.strerror or str(error)).lower()


class _FrameWriter:
    """Converts decoded frames into one growing uint8 array."""

    def __init__(self, media: Media, choose_geometry: ChooseGeometry | None, capacity: int, threads: int) -> None:
        self._media = media
        self._choose_geometry = choose_geometry
        self._capacity = capacity
        self._threads = threads
        self._reformatter = VideoReformatter()  # kept: it is slow to set up
        self._size: tuple[int, int] | None = None
        self._frames: NDArray[np.uint8] | None = None
        self._count = 0

    def frames(self) -> NDArray[np.uint8]:
        assert self._frames is not None, "_check_complete refuses a clip without frames"
        return self._frames[: self._count]

    def add(self, frame: VideoFrame) -> None:
        if self._size is None:
            self._prepare(frame)
        elif self._size != (frame.width, frame.height):
            raise ClipError(
                self._media.name,
                f"changes its size from {self._size} to {(frame.width, frame.height)} at frame {self._count}",
            )
        assert self._frames is not None
        if self._count == len(self._frames):
            self._frames = np.concatenate([self._frames, np.empty_like(self._frames)])
        self._frames[self._count] = self._convert(frame)
        self._count += 1

    def _prepare(self, frame: VideoFrame) -> None:
        """Fixes how every frame of the clip is converted, from its first one."""
        if frame.width * frame.height > MAX_PIXELS:
            size = f"{frame.width}x{frame.height}"
            raise ClipError(self._media.name, f"is too large: {size}, at most {MAX_PIXELS} pixels")
        self._size = (frame.width, frame.height)
        self._quarter_turns = round(frame.rotation / 90) % 4
        sideways = self._quarter_turns % 2 == 1
        width, height = self._size[::-1] if sideways else self._size
        if self._choose_geometry is None:
            geometry = Geometry(width, height, 0, 0, width, height)
        else:
            geometry = self._choose_geometry(width, height)
        scaled = (geometry.scaled_width, geometry.scaled_height)
        self._stored_size = scaled[::-1] if sideways else scaled
        self._crop = (
            slice(geometry.top, geometry.top + geometry.height),
            slice(geometry.left, geometry.left + geometry.width),
        )
        self._flags = _SAME_SIZE if self._stored_size == self._size else _RESIZE
        self._frames = np.empty((self._capacity, geometry.height, geometry.width, 3), np.uint8)
        # Slices in threads pay from about 480p on, as decoding does.
        self._slices = self._threads if width * height >= _MIN_PIXELS_FOR_THREADS else 1

    def _convert(self, frame: VideoFrame) -> NDArray[np.uint8]:
        """Returns a view ``[H, W, 3]`` of the converted, upright, cropped frame."""
        width, height = self._stored_size
        untagged = not frame.format.is_rgb and int(frame.colorspace) in UNTAGGED_COLOUR_SPACES
        picture = self._reformatter.reformat(
            frame,
            width=width,
            height=height,
            format="rgb24",
            src_colorspace=Colorspace.ITU601 if untagged else None,
            interpolation=self._flags,
            threads=self._slices,
        )
        plane: Any = picture.planes[0]
        rows = np.frombuffer(plane, np.uint8).reshape(height, plane.line_size)
        pixels = rows[:, : width * 3].reshape(height, width, 3)
        if self._quarter_turns:
            pixels = np.rot90(pixels, self._quarter_turns)
        return pixels[self._crop]
