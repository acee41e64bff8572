"""Reads rows' clips in worker processes: one that hangs or crashes its decoder is a bad clip and no more."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType

from sama_data.clips import Clip, load_clip
from sama_data.errors import ClipError, DataError, DecoderLostError
from sama_data.rows import Row
from sama_data.workers.pool import WorkerDiedError, WorkerPool, WorkersClosedError, WorkerTimeoutError


class ClipReader:
    """Does what `load_clip` does, in workers; safe between threads. To be closed.

    Args:
        buckets: The (width, height) buckets, in pixels.
        max_frames: The longest clip wanted.
        timeout_seconds: The longest that a row's files may take to be read and decoded.
        num_workers: How many rows are read at a time.
    """

    def __init__(
        self, buckets: Sequence[tuple[int, int]], max_frames: int, timeout_seconds: float, num_workers: int = 1
    ) -> None:
        self._buckets = tuple(buckets)
        self._max_frames = max_frames
        self._timeout_seconds = timeout_seconds
        self._workers = WorkerPool(num_workers, preload=[load_clip.__module__])

    def read(self, row: Row, threads: int = 1) -> Clip:
        """Returns a row's clip.

        Args:
            row: The row.
            threads: Decoder threads for a large clip.

        Raises:
            ClipError: A file cannot be decoded, whatever its decoder says, or lacks the row's frames; of the kind
                DecoderLostError where it took too long, or its decoder died, twice.
            DataError: No worker can be started, or what reads the row's URL is not installed.
            WorkersClosedError: The reader was closed meanwhile.
        """
        arguments = (row, self._buckets, self._max_frames, threads)
        try:
            return self._workers.run(load_clip, *arguments, timeout_seconds=self._timeout_seconds)
        except WorkerTimeoutError as error:
            raise DecoderLostError(row.target.name, f"{error} to decode (data.decode_timeout_seconds)") from error
        except WorkerDiedError as error:
            raise DecoderLostError(row.target.name, f"the decoder {error}") from error
        except (DataError, WorkersClosedError):
            raise
        except Exception as error:
            # Odd files make libraries raise anything, and none of it may end the run.
            words = (str(error).splitlines() or [""])[0]
            raise ClipError(row.target.name, f"cannot be decoded: {type(error).__name__}: {words}") from error

    def close(self) -> None:
        """Ends the workers, whatever they do; a later read starts new ones."""
        self._workers.close()

    def __enter__(self) -> ClipReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
