"""Writes and reads a checkpoint tensor by tensor, in one process without process groups.

The files are those of `checkpoint_io`, in the same format: what is written here loads in any layout, and what ranks of
any layout wrote is read here.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

import torch
import torch.distributed.checkpoint as torch_checkpoint
from torch import Tensor
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.storage import WriteResult

from sama_mega.config.errors import CheckpointError
from sama_mega.parallel.checkpoint_io import (
    FAILURES,
    SHARD_SUFFIX,
    disks_refusal,
    failure_reason,
    mark_complete,
    read_metadata,
)

LARGEST_FILE_BYTES = 5_000_000_000


class CheckpointWriter:
    """Writes whole tensors, one after the other, into files of a few gigabytes; a context manager.

    Args:
        folder: An existing, empty folder.
        largest_file_bytes: A file that has grown beyond it is followed by another.
    """

    def __init__(self, folder: Path, largest_file_bytes: int = LARGEST_FILE_BYTES) -> None:
        self._folder = folder
        self._largest_file_bytes = largest_file_bytes
        self._stream: BinaryIO | None = None
        self._num_files = 0
        self._entries: dict[str, TensorStorageMetadata | BytesStorageMetadata] = {}
        self._places: list[WriteResult] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._stream is not None:
            self._stream.close()

    def add(self, keys: Sequence[str], tensor: Tensor) -> None:
        """Writes a tensor once, under one or several keys that share its bytes.

        Raises:
            OSError: The disk refuses.
        """
        stream = self._stream_with_room()
        start = stream.tell()
        # Of a view, torch would save all that it is a view of: a whole file of weights.
        own = tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
        try:
            torch.save(tensor if own else tensor.clone(), stream)
        except RuntimeError as error:  # torch's own file closes after a refused write, and fails at that
            raise disks_refusal(error) or error from None
        length = stream.tell() - start
        place = _StorageInfo(self._file_name(), start, length)
        origin = torch.Size([0] * tensor.dim())
        for key in keys:
            assert key not in self._entries, key
            chunk = ChunkStorageMetadata(offsets=origin, sizes=tensor.size())
            self._entries[key] = TensorStorageMetadata(TensorProperties(tensor.dtype), tensor.size(), [chunk])
            self._places.append(WriteResult(MetadataIndex(key, origin), length, place))

    def finish(self) -> None:
        """Flushes everything to the disk and marks the tensors as complete.

        Raises:
            OSError: The disk refuses.
        """
        self._end_file()
        writer = torch_checkpoint.FileSystemWriter(self._folder)
        writer.finish(Metadata(self._entries), [self._places])
        mark_complete(self._folder)

    def _stream_with_room(self) -> BinaryIO:
        if self._stream is not None and self._stream.tell() >= self._largest_file_bytes:
            self._end_file()
        if self._stream is None:
            self._stream = (self._folder / self._file_name()).open("wb")
        return self._stream

    def _file_name(self) -> str:
        return f"__0_{self._num_files}{SHARD_SUFFIX}"

    def _end_file(self) -> None:
        if self._stream is not None:
            self._stream.flush()
            os.fsync(self._stream.fileno())
            self._stream.close()
            self._stream = None
            self._num_files += 1


class CheckpointReader:
    """Reads whole tensors of a checkpoint, one at a time.

    Args:
        folder: A complete checkpoint.

    Raises:
        CheckpointError: It is none.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._reader = _ReaderOfOne(folder, read_metadata(folder))

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Whole shapes by key."""
        return {key: tuple(entry.size) for key, entry in self._reader.tensors.items()}

    def read(self, key: str, dtype: torch.dtype | None = None) -> Tensor:
        """Reads a tensor, whole, onto the CPU.

        Args:
            key: One of `shapes`.
            dtype: Converted to it piece by piece; None keeps what is stored.

        Raises:
            CheckpointError: The file is damaged.
        """
        entry = self._reader.tensors[key]
        tensor = torch.empty(entry.size, dtype=dtype or entry.properties.dtype)
        try:
            with warnings.catch_warnings():
                # "assuming the intent is to load in a single process": it is.
                warnings.simplefilter("ignore", UserWarning)
                torch_checkpoint.load({key: tensor}, storage_reader=self._reader, no_dist=True)
        except FAILURES as error:
            raise CheckpointError(
                f"cannot read {key} of the checkpoint {self._folder}: {failure_reason(error)}"
            ) from error
        return tensor


class _ReaderOfOne(torch_checkpoint.FileSystemReader):
    """torch's reader, for many small loads: it reads the list of pieces, which may be long, once."""

    def __init__(self, folder: Path, metadata: Metadata) -> None:
        super().__init__(folder)
        self._metadata = metadata
        entries = metadata.state_dict_metadata
        self.tensors = {key: entry for key, entry in entries.items() if isinstance(entry, TensorStorageMetadata)}

    def read_metadata(self, *arguments: object, **options: object) -> Metadata:
        """What the folder's own list said when it was opened."""
        return self._metadata
