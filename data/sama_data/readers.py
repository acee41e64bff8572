"""How rows become clips: one by one with PyAV, or in batches with DALI."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Protocol, TypeAlias

from sama_data.clip_reader import ClipReader
from sama_data.clips import Clip
from sama_data.errors import ClipError, DataError
from sama_data.graph.frames import DeviceClip
from sama_data.rows import Row
from sama_data.settings import Decoder, LoaderSettings

Read: TypeAlias = Clip | DeviceClip | ClipError

_log = logging.getLogger(__name__)


class BatchReader(Protocol):
    """Reads rows; several threads may at a time.

    Attributes:
        name: What decodes and where.
        batch_size: The most rows that are read together.
        num_callers: How many threads should read at a time; None: as many as the settings ask for.
    """

    name: str
    batch_size: int
    num_callers: int | None

    def read(self, rows: Sequence[Row], threads: int) -> list[Read]:
        """Returns each row's clip, or what is wrong with it.

        Which rows are bad does not depend on those they are read with.

        Args:
            rows: At most `batch_size`.
            threads: Decoder threads for a large clip.
        """

    def close(self) -> None:
        """Ends what decodes, whatever it does; clips that were handed over stay valid, and a later read starts anew."""


class PyavReader:
    """Reads rows one by one in guarded workers: videos with PyAV, images with Pillow.

    Args:
        settings: Buckets, the longest clip, threads and time limit.
    """

    def __init__(self, settings: LoaderSettings) -> None:
        self.name = "PyAV on the CPU"
        self.batch_size = 1
        self.num_callers: int | None = None
        self._reader = clip_reader(settings)

    def read(self, rows: Sequence[Row], threads: int) -> list[Read]:
        """See `BatchReader.read`."""
        return [self._read(row, threads) for row in rows]

    def close(self) -> None:
        """See `BatchReader.close`."""
        self._reader.close()

    def _read(self, row: Row, threads: int) -> Read:
        try:
            return self._reader.read(row, threads)
        except ClipError as error:
            return error


def make_reader(settings: LoaderSettings, device: int | None) -> BatchReader:
    """Makes the reader that `settings.decoder` asks for.

    Args:
        settings: The loader's.
        device: The number of the GPU that frames may be decoded to, None where there is none.

    Raises:
        DataError: DALI is asked for and not installed.
    """
    if choose_decoder(settings.decoder, device) == "pyav":
        return PyavReader(settings)
    if device is not None and settings.decoded_cache_mib:
        _log.warning("data.decoded_cache_mib (%d) is not used: frames stay on the GPU", settings.decoded_cache_mib)
    from sama_data.graph.reader import DaliReader

    return DaliReader(settings, device)


def clip_reader(settings: LoaderSettings) -> ClipReader:
    """Makes the workers that read rows as the settings say."""
    timeout_seconds, workers = settings.decode_timeout_seconds, settings.decode_threads
    return ClipReader(settings.buckets, settings.max_frames, timeout_seconds, workers)


def choose_decoder(wanted: Decoder, device: int | None) -> Decoder:
    """Returns "dali" or "pyav": what is wanted, and for "auto" DALI where there is a GPU and DALI is installed.

    Raises:
        DataError: DALI is asked for and not installed.
    """
    if wanted == "auto":
        return "dali" if device is not None and has_dali() else "pyav"
    if wanted == "dali" and not has_dali():
        raise DataError(
            "data.decoder (dali) needs DALI, which is not installed: pip install 'sama-mega[dali]', or pyav"
        )
    return wanted


def has_dali() -> bool:
    """Whether DALI is installed; imports nothing of it but its parent packages."""
    try:
        return find_spec("nvidia.dali") is not None
    except ModuleNotFoundError:
        return False
