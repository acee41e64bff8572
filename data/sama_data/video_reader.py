"""Reads the frames of one clip with PyAV as they are stored, and tells whether all of them are there and whole."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import av
import av.logging
from av.stream import Disposition
from av.video.frame import VideoFrame

from sama_data.decode_image import MAX_PIXELS
from sama_data.errors import ClipError
from sama_data.media import Media

# What a damaged clip says goes to the quarantine; FFmpeg would print it on every rank's terminal as well.
av.logging.set_level(av.logging.FATAL)

# Below this, starting a decoder's threads costs more than they save.
MIN_PIXELS_FOR_THREADS = 320 * 240
# Where a file counts no frames, its last frame may end this much before its declared duration.
_DURATION_SLACK_SECONDS = 0.25
_DURATION_SLACK_SHARE = 0.02
# With the explicit "file:" in front of the path, neither a path nor a content can name a network resource.
_OPEN_OPTIONS: dict[str, Any] = {"options": {"protocol_whitelist": "file,subfile"}, "metadata_errors": "replace"}


class VideoReader:
    """An open clip; made by `open_video`.

    Args:
        media: The clip.
        demuxer: FFmpeg's name of its format.
        container: PyAV's container.
        stream: The video stream in it.
    """

    def __init__(self, media: Media, demuxer: str, container: Any, stream: Any) -> None:
        self._media = media
        self._demuxer = demuxer
        self._container = container
        self._stream = stream

    @property
    def codec(self) -> str:
        """FFmpeg's name of the codec, whichever decoder reads it."""
        return str(self._stream.codec_context.codec.canonical_name)

    @property
    def fps(self) -> float | None:
        """Frames a second as the file's header has them; None where it does not say."""
        rate = self._stream.average_rate
        return float(rate) if rate else None

    @property
    def num_declared(self) -> int | None:
        """The frames that the header counts; None where it counts none."""
        return int(self._stream.frames) or None

    def frames(self, start: int, end: int | None, max_frames: int | None) -> Iterator[VideoFrame]:
        """Yields the frames start <= i < end, at most max_frames; nothing behind them is decoded.

        Raises:
            ClipError: One of them is missing or damaged, or they differ in size or are too large.
        """
        limit, decoded = end_of_range(start, end, max_frames), 0
        frame, size = None, None
        try:
            for frame in self._container.decode(self._stream):
                if decoded >= start:
                    size = self._check_frame(frame, decoded, size)
                    yield frame
                decoded += 1
                if decoded == limit:
                    return
        except av.FFmpegError as error:
            declared = f" of {self._stream.frames}" if self._stream.frames else ""
            raise ClipError(
                self._media.name, f"is damaged after frame {decoded}{declared}: {_reason(error)}"
            ) from error
        self._check_complete(decoded, frame)
        self._check_range(decoded, start, end)

    def _check_frame(self, frame: VideoFrame, number: int, size: tuple[int, int] | None) -> tuple[int, int]:
        """Raises if the frame is damaged or of another size than the one before; returns its size."""
        if frame.is_corrupt:
            raise ClipError(self._media.name, f"is damaged: frame {number} has errors")
        found = (frame.width, frame.height)
        if size is None:
            _check_size(self._media, *found)
        elif found != size:
            raise ClipError(self._media.name, f"changes its size from {size} to {found} at frame {number}")
        return found

    def _check_complete(self, decoded: int, last: VideoFrame | None) -> None:
        """Called when the file ended before the wanted frames did: raises if it declares more than it gave."""
        declared = self._frames_shown()
        if declared is not None:
            if decoded < declared:
                raise ClipError(self._media.name, f"is truncated: {decoded} of its {declared} frames can be decoded")
            return
        duration = self._declared_seconds()
        if duration is not None and last is not None and last.time is not None:
            end = last.time + float((last.duration or 0) * (last.time_base or 0))
            if end < duration - max(_DURATION_SLACK_SECONDS, _DURATION_SLACK_SHARE * duration):
                raise ClipError(self._media.name, f"is truncated: it ends after {end:.2f} of {duration:.2f} seconds")

    def _check_range(self, decoded: int, start: int, end: int | None) -> None:
        if decoded == 0:
            raise ClipError(self._media.name, "has a video stream without frames")
        for name, frame, most in (("frame_start", start, decoded - 1), ("frame_end", end, decoded)):
            if frame is not None and frame > most:
                raise ClipError(self._media.name, f"{name} {frame} is out of range: the clip has {decoded} frames")

    def _frames_shown(self) -> int | None:
        if not self._stream.frames:
            return None
        if self._demuxer != "mov":
            return int(self._stream.frames)
        # An edit list may hide frames that the header counts; the index holds what is really shown.
        return sum(not entry.is_discard for entry in self._stream.index_entries)

    def _declared_seconds(self) -> float | None:
        """The video's own duration, else that of a container which holds nothing but video."""
        if self._stream.duration:
            return float(self._stream.duration * self._stream.time_base)
        tag = self._stream.metadata.get("DURATION")  # Matroska: "00:00:01.062000000"
        if tag and tag.count(":") == 2:
            hours, minutes, seconds = tag.split(":")
            return int(hours) * 3600 + int(minutes) * 60 + float(seconds)
        if self._container.duration and len(self._container.streams) == 1:
            return float(self._container.duration / av.time_base)
        return None


@contextmanager
def open_video(media: Media, demuxer: str, threads: int = 1, content: bytes | None = None) -> Iterator[VideoReader]:
    """Opens a clip; what PyAV raises inside the block becomes a ClipError.

    Args:
        media: The clip.
        demuxer: FFmpeg's name of its format, see `sama_data.sniff.content_kind`.
        threads: Decoder threads for a clip that is large enough to gain from them.
        content: Its bytes, where they were read already.

    Raises:
        ClipError: It cannot be opened, has no video or is too large.
    """
    done = "opened"
    try:
        with av.open(_input_of(media, content), format=demuxer, **_OPEN_OPTIONS) as container:
            done = "decoded"
            stream = _video_stream(media, container)
            _set_decoder(stream, threads)
            yield VideoReader(media, demuxer, container, stream)
    except av.FFmpegError as error:
        raise ClipError(media.name, f"cannot be {done}: {_reason(error)}") from error
    except (ValueError, RuntimeError, MemoryError) as error:
        # PyAV raises these for contents that it cannot represent; a clip must never end the run.
        raise ClipError(media.name, f"cannot be decoded: {type(error).__name__}: {error}") from error


def quarter_turns(frame: VideoFrame) -> int:
    """Returns by how many quarter turns counter-clockwise a stored frame is turned to be upright, 0 to 3."""
    return round(frame.rotation / 90) % 4


def upright_size(frame: VideoFrame) -> tuple[int, int]:
    """Returns the (width, height) of a frame once it is turned upright."""
    return (frame.height, frame.width) if quarter_turns(frame) % 2 else (frame.width, frame.height)


def end_of_range(start: int, end: int | None, max_frames: int | None) -> int | None:
    """Returns the frame after the last one wanted; None for the end of the clip."""
    ends = [place for place in (end, None if max_frames is None else start + max_frames) if place is not None]
    return min(ends, default=None)


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
        _check_size(media, stream.codec_context.width, stream.codec_context.height)
        return stream
    held = "it holds sound only" if container.streams.audio else "it is empty or cut off"
    raise ClipError(media.name, f"has no video stream: {held}")


def _check_size(media: Media, width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise ClipError(media.name, f"is too large: {width}x{height}, at most {MAX_PIXELS} pixels")


def _set_decoder(stream: Any, threads: int) -> None:
    codec = stream.codec_context
    # A header deep in the stream could ask for gigabytes. Decoders count their margins too.
    codec.options = {"max_pixels": str(2 * MAX_PIXELS)}
    if threads > 1 and codec.width * codec.height >= MIN_PIXELS_FOR_THREADS:
        codec.thread_type = "AUTO"
        codec.thread_count = threads
    else:
        codec.thread_type = "NONE"
        codec.thread_count = 1


def _reason(error: av.FFmpegError) -> str:
    return (error.strerror or str(error)).lower()
