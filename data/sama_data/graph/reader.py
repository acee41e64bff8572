"""Reads rows in batches: DALI decodes what it decodes exactly, PyAV the rest, one graph brings all to their buckets.

Source and target of a pair are two files of one batch with one bucket and one length; they are good or bad together.
Every frame of a clip is decoded, also where the plan plays the source twice as fast: the target of a raw clip needs all
of them, and the source is picked from the same ones. A stride at decoding would save nothing, and decode twice.

Files are read and looked at, and where need be decoded, in guarded workers: one that hangs or crashes FFmpeg is a bad
clip before DALI, which has no such guard, sees it.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from sama_data.clip_reader import ClipReader
from sama_data.clips import Clip
from sama_data.errors import ClipError
from sama_data.graph.files import File, decoded_by_pyav, files_of_row
from sama_data.graph.frames import DeviceClip, DeviceFrames, Frames
from sama_data.graph.look import ON_CPU, ON_GPU
from sama_data.graph.piece import Kind
from sama_data.graph.pipeline import Graph
from sama_data.rows import Row
from sama_data.settings import LoaderSettings

# One is in the graph, the other gets the next batch ready.
_NUM_CALLERS = 2
_KINDS: tuple[Kind, ...] = ("video", "image")

_log = logging.getLogger(__name__)


class DaliReader:
    """Reads rows with DALI; see `sama_data.readers.BatchReader`.

    Several threads may read at a time: one is in the graph while others have files looked at.

    Args:
        settings: Buckets, longest clip, threads, time limit and batch.
        device: The GPU's number, None to decode on the CPU.
        workers: What looks at files, shared with other readers; None: its own.

    Attributes:
        by_pyav: How many files PyAV decoded instead of DALI, by reason.
    """

    def __init__(self, settings: LoaderSettings, device: int | None, workers: ClipReader | None = None) -> None:
        self.name = "DALI on the CPU" if device is None else f"DALI on GPU {device}"
        self.batch_size = settings.decode_batch
        self.num_callers: int | None = _NUM_CALLERS
        self.by_pyav: Counter[str] = Counter()
        self._settings = settings
        self._abilities = ON_CPU if device is None else ON_GPU
        # A view of one clip holds its whole batch in memory, which the cache would not count.
        self._copies = device is None and settings.decoded_cache_mib > 0
        self._workers = workers or ClipReader(
            settings.buckets, settings.max_frames, settings.decode_timeout_seconds, settings.decode_threads
        )
        self._counting = threading.Lock()
        self._in_graph = threading.Lock()
        self._graphs = {
            kind: Graph(kind, device, settings.decode_threads, 2 * settings.decode_batch) for kind in _KINDS
        }

    def read(self, rows: Sequence[Row], threads: int = 1) -> list[Clip | DeviceClip | ClipError]:
        """Returns each row's clip, or what is wrong with it.

        Args:
            rows: At most `batch_size`.
            threads: Not used: a batch has enough files for all.
        """
        with ThreadPoolExecutor(self._settings.decode_threads, thread_name_prefix="sama-look") as callers:
            found = list(callers.map(self._files_of, rows))
        good = [
            (row, file) for row, one in zip(rows, found, strict=True) if not isinstance(one, ClipError) for file in one
        ]
        for _, file in good:
            self._count(file)
        decoded = iter(self._decode([row for row, _ in good], [file for _, file in good]))
        return [
            one if isinstance(one, ClipError) else self._clip(row, one, [next(decoded) for _ in one])
            for row, one in zip(rows, found, strict=True)
        ]

    def close(self) -> None:
        """Ends the workers and lets go of the decoders; a later read starts them anew."""
        self._workers.close()
        with self._in_graph:
            for graph in self._graphs.values():
                graph.close()

    def _files_of(self, row: Row) -> tuple[File, ...] | ClipError:
        settings = self._settings
        try:
            return self._workers.call(row, files_of_row, row, settings.buckets, settings.max_frames, self._abilities)
        except ClipError as error:
            return error

    def _count(self, file: File) -> None:
        """Counts a file that PyAV decoded, and says so of the first with its reason."""
        if file.why_pyav is None:
            return
        with self._counting:
            self.by_pyav[file.why_pyav] += 1
            is_first = self.by_pyav[file.why_pyav] == 1
        if is_first:
            _log.info(
                "DALI does not decode %s: PyAV does, here and from now on (first: %s)", file.why_pyav, file.media.name
            )

    def _decode(self, rows: Sequence[Row], files: Sequence[File]) -> list[Frames | ClipError]:
        """Runs the graph of each kind on its files; the results are in the order of the files."""
        results: dict[int, Frames | ClipError] = {}
        for kind, graph in self._graphs.items():
            places = [place for place, file in enumerate(files) if file.kind == kind]
            if places:
                batch = self._decode_batch(graph, [rows[place] for place in places], [files[place] for place in places])
                results.update(zip(places, batch, strict=True))
        return [results[place] for place in range(len(files))]

    def _decode_batch(self, graph: Graph, rows: Sequence[Row], files: Sequence[File]) -> Sequence[Frames | ClipError]:
        """Decodes files together, or where one of them spoils that, each alone."""
        try:
            with self._in_graph:
                return graph.run([file.piece for file in files])
        except RuntimeError as error:
            if len(files) == 1:
                return [self._decode_refused(graph, rows[0], files[0], error)]
        return [self._decode_batch(graph, [row], [file])[0] for row, file in zip(rows, files, strict=True)]

    def _decode_refused(self, graph: Graph, row: Row, file: File, error: RuntimeError) -> Frames | ClipError:
        """Has PyAV decode a file that DALI refuses: it gives the frames or the reason."""
        if file.piece.frames is not None:
            raise error  # frames cannot be refused: the graph itself or its device is broken
        try:
            decoded = self._workers.call(row, decoded_by_pyav, file, _what_dali_said(error))
        except ClipError as reason:
            return reason
        self._count(decoded)
        with self._in_graph:
            return graph.run([decoded.piece])[0]

    def _clip(
        self, row: Row, files: Sequence[File], frames: Sequence[Frames | ClipError]
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
            own = np.array(target)
            return Clip(own if source is target else np.array(source), own, fps)
        return Clip(source, target, fps)


def _what_dali_said(error: RuntimeError) -> str:
    """The line of DALI's message that says what is wrong, without names, numbers and traces."""
    lines = [line.strip() for line in str(error).split("encountered:")[-1].splitlines() if line.strip()]
    return f"what it refuses with '{lines[0][:120] if lines else 'an error'}'"
