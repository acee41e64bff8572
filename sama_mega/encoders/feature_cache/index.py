"""The index: which shard holds a key. Sorted and mapped into memory, so that millions cost a rank next to nothing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from sama_mega.config.errors import ConfigError
from sama_mega.encoders.feature_cache.folder import CacheFolder

_PREFIX_BYTES = 8


class Index:
    """An index file, opened.

    Args:
        path: The file.

    Raises:
        FileNotFoundError: There is none.
        SafetensorError: It is damaged.
    """

    def __init__(self, path: Path) -> None:
        with safe_open(path, framework="pt") as file:
            self._prefixes: Tensor = file.get_tensor("prefixes")
            self._shards: Tensor = file.get_tensor("shards")
            names: Tensor = file.get_tensor("names")
            sizes: Tensor = file.get_tensor("sizes")
        self.names = bytes(names.numpy()).decode().split("\n") if len(names) else []
        self.sizes: list[int] = sizes.tolist()

    def __len__(self) -> int:
        return len(self._prefixes)

    def shards_of(self, key: bytes) -> list[str]:
        """Names of the shards that may hold a key: none, one, or rarely more."""
        prefix = _prefix(key)
        first, last = (
            int(torch.searchsorted(self._prefixes, torch.tensor(prefix), right=after)) for after in (False, True)
        )
        return [self.names[number] for number in self._shards[first:last].tolist()]


def index_is_current(folder: CacheFolder) -> bool:
    """Whether the index lists exactly the shards that are there, as they are: one may have been made anew."""
    try:
        index = Index(folder.index)
    except (FileNotFoundError, SafetensorError):
        return False
    names = folder.shard_names()
    return index.names == names and index.sizes == _sizes(folder, names)


def write_index(folder: CacheFolder) -> None:
    """Indexes all shards that are there, again and again while others add some.

    Raises:
        ConfigError: A shard is damaged, or the disk refuses.
    """
    while not index_is_current(folder):
        names = folder.shard_names()
        sizes = _sizes(folder, names)  # before their keys: one that is replaced meanwhile will show
        prefixes: list[int] = []
        shards: list[int] = []
        for number, name in enumerate(names):
            keys = _keys_in(folder.shards / name)
            prefixes += map(_prefix, keys)
            shards += [number] * len(keys)
        sorted_prefixes, order = torch.sort(torch.tensor(prefixes, dtype=torch.int64), stable=True)
        table = {
            "prefixes": sorted_prefixes,
            "shards": torch.tensor(shards, dtype=torch.int32)[order],
            "names": torch.from_numpy(np.frombuffer("\n".join(names).encode(), np.uint8).copy()),
            "sizes": torch.tensor(sizes, dtype=torch.int64),
        }
        folder.write(folder.index, table)


def _sizes(folder: CacheFolder, names: Sequence[str]) -> list[int]:
    """Bytes of shards; -1 for one that is gone again."""
    sizes = []
    for name in names:
        try:
            sizes.append((folder.shards / name).stat().st_size)
        except FileNotFoundError:
            sizes.append(-1)
    return sizes


def _keys_in(shard: Path) -> list[bytes]:
    try:
        with safe_open(shard, framework="pt") as tensors:
            return [bytes.fromhex(key) for key in tensors.keys()]  # noqa: SIM118 (no mapping)
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"{shard} cannot be read: {error}: delete it, and cache its rows again") from error


def _prefix(key: bytes) -> int:
    return int.from_bytes(key[:_PREFIX_BYTES], "big", signed=True)
