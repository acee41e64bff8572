"""Reads rows in batches: DALI decodes what it decodes exactly, PyAV the rest, one graph brings all to their buckets.

Source and target of a pair are two files of one batch with one bucket and one length; they are good or bad together.
Every frame of a clip is decoded, also where the plan plays the source twice as fast: the target of a raw clip needs all
of them, and the source is picked from the same ones. A stride at decoding would save nothing, and decode twice.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from sama_data.buckets import Geometry, choose_bucket, cover, cut_length
from sama_data.clips import Clip
from sama_data.decode import decode_frames
from sama_data.errors import ClipError
from sama_data.graph.frames import DeviceClip, DeviceFrames, Frames
from sama_data.graph.look import ON_CPU, ON_GPU, Unsuitable, look_at_image, look_at_video
from sama_data.graph.pipeline import Graph, Kind, Piece
from sama_data.media import Media
from sama_data.rows import Row
from sama_data.settings import LoaderSettings
from sama_data.sniff import STILL_IMAGE, content_kind

# A larger file is read by PyAV, which takes from it only what it needs.
_MAX_CONTENT_BYTES = 512 << 20

# One is in the graph, the other gets the next batch ready.
_NUM_CALLERS = 2

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Fit:
    """Scales and crops to the nearest of some buckets."""

    buckets: tuple[tuple[int, int], ...]

    def __call__(self, width: int, height: int) -> Geometry:
        return cover(width, height, choose_bucket(width, height, self.buckets))


@dataclass(frozen=True, slots=True)
class _File:
    """One file of a row on its way through the graph.

    Attributes:
        media: Where it lies.
        kind: Of the graph that takes it.
        piece: What the graph takes.
        end: The row's end, for PyAV.
        fit: The geometry by its size, for PyAV.
        fps: Frames a second, where it says.
    """

    media: Media
    kind: Kind
    piece: Piece
    end: int | None
    fit: _Fit
    fps: float | None

    @property
    def num_frames(self) -> int:
        return self.piece.num_frames

    @property
    def bucket(self) -> tuple[int, int]:
        if self.piece.frames is not None:
            return self.piece.frames.shape[2], self.piece.frames.shape[1]
        assert self.piece.geometry is not None
        return self.piece.geometry.width, self.piece.geometry.height


class DaliReader:
    """Reads rows with DALI; see `sama_data.readers.ClipReader`.

    Several threads may read at a time: one is in the graph while others look at files and decode with PyAV.

    Args:
        settings: Buckets, longest clip, threads and batch.
        device: The GPU's number, None to decode on the CPU.

    Attributes:
        by_pyav: How many files PyAV decoded instead of DALI, by reason.
    """

    def __init__(self, settings: LoaderSettings, device: int | None) -> None:
        self.batch_size = settings.decode_batch
        self.num_callers = _NUM_CALLERS
        # A view of one clip holds its whole batch in memory, which the cache would not count.
        self._copies = device is None and settings.decoded_cache_mib > 0
        self.by_pyav: Counter[str] = Counter()
        self._buckets = settings.buckets
        self._max_frames = settings.max_frames
        self._abilities = ON_CPU if device is None else ON_GPU
        self._threads = settings.decode_threads
        self._pool = ThreadPoolExecutor(settings.decode_threads, thread_name_prefix="sama-look")
        self._counting = threading.Lock()
        self._in_graph = threading.Lock()
        kinds: tuple[Kind, ...] = ("video", "image")
        self._graphs = {kind: Graph(kind, device, settings.decode_threads, 2 * settings.decode_batch) for kind in kinds}

    def read(self, rows: Sequence[Row], threads: int = 1) -> list[Clip | DeviceClip | ClipError]:
        """Returns each row's clip, or what is wrong with it.

        Args:
            rows: At most `batch_size`.
            threads: Not used: the reader has threads of its own.
        """
        found = list(self._pool.map(self._look_at_row, rows))
        files = [file for one in found if not isinstance(one, ClipError) for file in one]
        frames = dict(zip(map(id, files), self._decode(files), strict=True))
        return [
            one if isinstance(one, ClipError) else self._clip(row, one, [frames[id(file)] for file in one])
            for row, one in zip(rows, found, strict=True)
        ]

    def close(self) -> None:
        """Ends the threads and lets go of the decoders."""
        self._pool.shutdown(cancel_futures=True)
        with self._in_graph:
            for graph in self._graphs.values():
                graph.close()

    def _look_at_row(self, row: Row) -> list[_File] | ClipError:
        """The row's target and, of a pair, its source, with the length that both have."""
        limit = 1 if row.kind == "image" else cut_length(self._max_frames)

        try:
            target = self._look_at_file(row, row.target, limit, _Fit(self._buckets))
            if row.source is None:
                return [_with_length(target, cut_length(target.num_frames))]
            source = self._look_at_file(row, row.source, target.num_frames, _Fit((target.bucket,)))
        except ClipError as error:
            return error
        num_frames = cut_length(source.num_frames)
        return [_with_length(target, num_frames), _with_length(source, num_frames)]

    def _look_at_file(self, row: Row, media: Media, limit: int, fit: _Fit) -> _File:
        """What the graph is to decode; PyAV has decoded it already where DALI is not to."""
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
                if start > 0 or (end is not None and end > 1):
                    raise Unsuitable("images without the wanted frames")
                look = look_at_image(content)
            else:
                look = look_at_video(media, demuxer, content, start, end, limit, self._abilities)
        except Unsuitable as why:
            return self._decode_with_pyav(media, kind, (start, end, limit), fit, why.reason, content)
        piece = Piece(
            content, look.width, look.height, fit(look.width, look.height), start=start, num_frames=look.num_frames
        )
        return _File(media, kind, piece, end, fit, look.fps)

    def _decode_with_pyav(
        self,
        media: Media,
        kind: Kind,
        wanted: tuple[int, int | None, int],
        fit: _Fit,
        reason: str,
        content: bytes | None,
    ) -> _File:
        with self._counting:
            self.by_pyav[reason] += 1
            is_first = self.by_pyav[reason] == 1
        if is_first:
            _log.info("DALI does not decode %s: PyAV does, here and from now on (the first: %s)", reason, media.name)
        start, end, limit = wanted
        decoded = decode_frames(media, start, end, limit, fit, content=content)
        piece = Piece(start=start, num_frames=len(decoded.frames), frames=decoded.frames)
        return _File(media, kind, piece, end, fit, decoded.fps)

    def _decode(self, files: Sequence[_File]) -> list[Frames | ClipError]:
        """Runs the graph of each kind on its files; the results are in the order of the files."""
        results: dict[int, Frames | ClipError] = {}
        for kind, graph in self._graphs.items():
            places = [place for place, file in enumerate(files) if file.kind == kind]
            if places:
                decoded = self._decode_batch(graph, [files[place] for place in places])
                results.update(zip(places, decoded, strict=True))
        return [results[place] for place in range(len(files))]

    def _decode_batch(self, graph: Graph, files: Sequence[_File]) -> Iterable[Frames | ClipError]:
        """Decodes files together, or where one of them spoils that, each alone."""
        try:
            with self._in_graph:
                return graph.run([file.piece for file in files])
        except RuntimeError as error:
            if len(files) > 1:
                return [frames for file in files for frames in self._decode_batch(graph, [file])]
            return [self._decode_refused(graph, files[0], error)]

    def _decode_refused(self, graph: Graph, file: _File, error: RuntimeError) -> Frames | ClipError:
        """Has PyAV decode a file that DALI refuses: it gives the frames or the reason."""
        if file.piece.frames is not None:
            raise error  # frames cannot be refused: the graph itself or its device is broken
        wanted = (file.piece.start, file.end, file.piece.num_frames)
        try:
            content = file.piece.content
            decoded = self._decode_with_pyav(file.media, file.kind, wanted, file.fit, _what_dali_said(error), content)
        except ClipError as reason:
            return reason
        with self._in_graph:
            return graph.run([decoded.piece])[0]

    def _clip(
        self, row: Row, files: Sequence[_File], frames: Sequence[Frames | ClipError]
    ) -> Clip | DeviceClip | ClipError:
        """The clip of a row's target and source, or the first's error, as where one is decoded after the other."""
        for one in frames:
            if isinstance(one, ClipError):
                return one
        fps = row.fps if row.fps is not None else files[0].fps
        target, source = frames[0], frames[-1]
        if isinstance(target, DeviceFrames) and isinstance(source, DeviceFrames):
            return DeviceClip(source, target, fps)
        assert isinstance(target, np.ndarray) and isinstance(source, np.ndarray), "one graph, one device"
        if self._copies:
            source, target = (np.array(target),) * 2 if source is target else (np.array(source), np.array(target))
        return Clip(source, target, fps)


def _with_length(file: _File, num_frames: int) -> _File:
    frames: NDArray[np.uint8] | None = file.piece.frames
    cut = None if frames is None else np.ascontiguousarray(frames[:num_frames])
    return replace(file, piece=replace(file.piece, num_frames=num_frames, frames=cut))


def _what_dali_said(error: RuntimeError) -> str:
    """The line of DALI's message that says what is wrong, without names, numbers and traces."""
    lines = [line.strip() for line in str(error).split("encountered:")[-1].splitlines() if line.strip()]
    return f"what it refuses with '{lines[0][:120] if lines else 'an error'}'"
