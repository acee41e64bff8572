"""Writes safetensors files tensor by tensor, in shards with an index.

The format: eight bytes with the header's length, a JSON header that says where each tensor lies, then the tensors.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

import torch
from torch import Tensor

SHARD_BYTES = 5_000_000_000
_DTYPES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}
_ALIGNMENT = 8


@dataclass(frozen=True)
class PlannedTensor:
    """What will be written under a name."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        """Its size in the file."""
        return math.prod(self.shape) * self.dtype.itemsize


class SafetensorsWriter:
    """Writes planned tensors in any order; a context manager that ends with every file on the disk.

    Args:
        folder: An existing folder.
        name: Of the file, or of what the shards are named after: `model.safetensors`.
        planned: Every tensor, in the order in which the files hold them.
        shard_bytes: A file holds at most as much, unless one tensor alone is larger; None writes one file.
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        planned: Mapping[str, PlannedTensor],
        shard_bytes: int | None = SHARD_BYTES,
    ) -> None:
        self._planned = dict(planned)
        self._written: set[str] = set()
        shards = _split(self._planned, shard_bytes)
        self._files: list[BinaryIO] = []
        self._places: dict[str, tuple[BinaryIO, int]] = {}
        weight_map: dict[str, str] = {}
        for number, names in enumerate(shards, start=1):
            file_name = name if len(shards) == 1 else _shard_name(name, number, len(shards))
            self._open(folder / file_name, names)
            weight_map |= dict.fromkeys(names, file_name)
        if len(shards) > 1:
            total = sum(tensor.num_bytes for tensor in self._planned.values())
            index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
            (folder / f"{name}.index.json").write_text(json.dumps(index, indent=2) + "\n")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for file in self._files:
            if kind is None:
                file.flush()
                os.fsync(file.fileno())
            file.close()
        if kind is None:
            assert self._written == self._planned.keys(), sorted(self._planned.keys() - self._written)[:3]

    def write(self, name: str, tensor: Tensor) -> None:
        """Writes one tensor, converted to what was planned.

        Raises:
            OSError: The disk refuses.
        """
        planned = self._planned[name]
        assert tuple(tensor.shape) == planned.shape and name not in self._written, (name, tensor.shape, planned)
        self._written.add(name)
        file, place = self._places[name]
        file.seek(place)
        file.write(tensor.detach().to(planned.dtype).contiguous().flatten().view(torch.uint8).numpy().data)

    def _open(self, path: Path, names: list[str]) -> None:
        header: dict[str, object] = {"__metadata__": {"format": "pt"}}
        place = 0
        places = {}
        for name in names:
            tensor = self._planned[name]
            places[name], end = place, place + tensor.num_bytes
            offsets = [place, end]
            header[name] = {"dtype": _DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": offsets}
            place = end
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % _ALIGNMENT)
        file = path.open("wb")
        self._files.append(file)
        file.write(len(text).to_bytes(8, "little") + text)
        start = file.tell()
        self._places |= {name: (file, start + offset) for name, offset in places.items()}


def _split(planned: Mapping[str, PlannedTensor], shard_bytes: int | None) -> list[list[str]]:
    shards: list[list[str]] = [[]]
    size = 0
    for name, tensor in planned.items():
        if shard_bytes is not None and shards[-1] and size + tensor.num_bytes > shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += tensor.num_bytes
    return shards


def _shard_name(name: str, number: int, total: int) -> str:
    stem, dot, ending = name.rpartition(".")
    return f"{stem}-{number:05d}-of-{total:05d}{dot}{ending}"
