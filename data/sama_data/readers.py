"""How rows become clips: one by one with PyAV, or in batches with DALI."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Protocol, TypeAlias

from sama_data.clips import Clip, load_clip
from sama_data.errors import ClipError, DataError
from sama_data.graph.frames import DeviceClip
from sama_data.rows import Row
from sama_data.settings import Decoder, LoaderSettings

Read: TypeAlias = Clip | DeviceClip | ClipError

_log = logging.getLogger(__name__)


class BatchReader(Protocol):
    """Reads rows; several threads may at a time.

    Attributes:
        batch_size: The most rows that are read together.
        num_callers: How many threads should read at a time.
    """

    batch_size: int
    num_callers: int

    def read(self, rows: Sequence[Row], threads: int) -> list[Read]:
        """Returns each row's clip, or what is wrong with it.

        Which rows are bad does not depend on those they are read with.

        Args:
            rows: At most `batch_size`.
            threads: Decoder threads for a large clip.
        """

    def close(self) -> None:
        """Lets go of threads and memory; clips that were handed over stay valid."""


class PyavReader:
    """Reads rows one by one with PyAV, and images with Pillow.

    Args:
        settings: Buckets and the longest clip.
    """

    def __init__(self, settings: LoaderSettings) -> None:
        self.batch_size = 1
        self.num_callers = settings.decode_threads
        self._buckets = settings.buckets
        self._max_frames = settings.max_frames

    def read(self, rows: Sequence[Row], threads: int) -> list[Read]:
        """See `BatchReader.read`."""
        return [self._read(row, threads) for row in rows]

    def close(self) -> None:
        """Does nothing: a reader of this kind holds nothing."""

    def _read(self, row: Row, threads: int) -> Read:
        try:
            return load_clip(row, self._buckets, self._max_frames, threads)
        except ClipError as error:
            return error


def make_reader(settings: LoaderSettings, device: int | None) -> BatchReader:
    """Makes the reader that `settings.decoder` asks for and logs which it is.

    Args:
        settings: The loader's.
        device: The number of the GPU that frames may be decoded to, None where there is none.

    Raises:
        DataError: DALI is asked for and not installed.
    """
    decoder = choose_decoder(settings.decoder, device)
    where = "the CPU" if device is None or decoder == "pyav" else f"GPU {device}"
    _log.info("clips are decoded by %s on %s (data.decoder: %s)", decoder, where, settings.decoder)
    if decoder == "pyav":
        return PyavReader(settings)
    if device is not None and settings.decoded_cache_mib:
        _log.warning("data.decoded_cache_mib (%d) is not used: frames stay on the GPU", settings.decoded_cache_mib)
    from sama_data.graph.reader import DaliReader

    return DaliReader(settings, device)


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
