"""What of a row goes into the graph: looked at, and decoded by PyAV where DALI is not to. Runs in a guarded worker."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from sama_data.buckets import Geometry, choose_bucket, cover, cut_length
from sama_data.decode import decode_frames
from sama_data.graph.look import Abilities, Look, Unsuitable, look_at_image, look_at_video
from sama_data.graph.piece import Kind, Piece
from sama_data.media import Media
from sama_data.rows import Row
from sama_data.sniff import STILL_IMAGE, content_kind

# A larger file is read by PyAV, which takes from it only what it needs.
_MAX_CONTENT_BYTES = 512 << 20


@dataclass(frozen=True, slots=True)
class Fit:
    """Scales a picture to cover the nearest of some (width, height) buckets, and crops its middle."""

    buckets: tuple[tuple[int, int], ...]

    def __call__(self, width: int, height: int) -> Geometry:
        """Returns the geometry of a picture of this size."""
        return cover(width, height, choose_bucket(width, height, self.buckets))


@dataclass(frozen=True, slots=True)
class File:
    """One file of a row on its way through the graph.

    Attributes:
        media: Where it lies.
        kind: Of the graph that takes it.
        piece: What the graph takes.
        end: The row's `frame_end`.
        fit: What its geometry was made with.
        fps: Frames a second, where it says.
        why_pyav: Why PyAV decoded it; None where DALI is to.
    """

    media: Media
    kind: Kind
    piece: Piece
    end: int | None
    fit: Fit
    fps: float | None
    why_pyav: str | None

    @property
    def bucket(self) -> tuple[int, int]:
        """Its (width, height) when it leaves the graph."""
        if self.piece.frames is not None:
            return self.piece.frames.shape[2], self.piece.frames.shape[1]
        assert self.piece.geometry is not None
        return self.piece.geometry.width, self.piece.geometry.height


def files_of_row(
    row: Row, buckets: Sequence[tuple[int, int]], max_frames: int, abilities: Abilities
) -> tuple[File, ...]:
    """Returns a row's target and, of a pair, its source, with one bucket and one length, as `load_clip` has them.

    Args:
        row: The row.
        buckets: The (width, height) buckets, in pixels.
        max_frames: The longest clip wanted.
        abilities: Of the DALI decoder that is to be used.

    Raises:
        ClipError: A file cannot be read or decoded, or lacks the row's frames.
        DataError: It has a URL, and what reads such is not installed.
    """
    limit = 1 if row.kind == "image" else cut_length(max_frames)
    target = _look_at(row, row.target, limit, Fit(tuple(buckets)), abilities)
    if row.source is None:
        return (_with_length(target, cut_length(target.piece.num_frames)),)
    source = _look_at(row, row.source, target.piece.num_frames, Fit((target.bucket,)), abilities)
    num_frames = cut_length(source.piece.num_frames)  # no more than the target has
    return _with_length(target, num_frames), _with_length(source, num_frames)


def decoded_by_pyav(file: File, why: str) -> File:
    """Returns a file of which DALI was to decode the bytes with the frames that PyAV decodes.

    Args:
        file: The file.
        why: What is told of the reason.

    Raises:
        ClipError: PyAV cannot decode it either.
    """
    piece = file.piece
    decoded = decode_frames(file.media, piece.start, file.end, piece.num_frames, file.fit)
    return replace(file, piece=_decoded(piece.start, decoded.frames), why_pyav=why)


def _look_at(row: Row, media: Media, limit: int, fit: Fit, abilities: Abilities) -> File:
    start, end = row.frame_start, row.frame_end
    content: bytes | None = None
    kind: Kind = "video"
    try:
        if (media.stored_bytes() or 0) > _MAX_CONTENT_BYTES:
            raise Unsuitable("large files")
        content = media.read()
        demuxer = content_kind(media, content)
        if demuxer == STILL_IMAGE:
            kind = "image"
            look = _look_at_image(content, start, end)
        else:
            look = look_at_video(media, demuxer, content, start, end, limit, abilities)
    except Unsuitable as unsuitable:
        decoded = decode_frames(media, start, end, limit, fit, content=content)
        return File(media, kind, _decoded(start, decoded.frames), end, fit, decoded.fps, unsuitable.reason)
    geometry = fit(look.width, look.height)
    encoded = np.frombuffer(content, np.uint8)
    piece = Piece(encoded, look.width, look.height, geometry, start=start, num_frames=look.num_frames)
    return File(media, kind, piece, end, fit, look.fps, None)


def _look_at_image(content: bytes, start: int, end: int | None) -> Look:
    if start > 0 or (end is not None and end > 1):
        raise Unsuitable("images without the wanted frames")
    return look_at_image(content)


def _decoded(start: int, frames: np.ndarray) -> Piece:
    return Piece(start=start, num_frames=len(frames), frames=frames)


def _with_length(file: File, num_frames: int) -> File:
    frames = file.piece.frames
    cut = None if frames is None else np.ascontiguousarray(frames[:num_frames])
    return replace(file, piece=replace(file.piece, num_frames=num_frames, frames=cut))
