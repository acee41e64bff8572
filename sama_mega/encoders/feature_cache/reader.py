"""What training asks of a cache."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from sama_mega.config.errors import ConfigError
from sama_mega.encoders.feature_cache.content import Content, Keys, Kind
from sama_mega.encoders.feature_cache.folder import CacheFolder
from sama_mega.encoders.feature_cache.index import Index
from sama_mega.encoders.feature_cache.stored import unpack
from sama_mega.encoders.interface import Identity

_log = logging.getLogger(__name__)
_OPEN_SHARDS = 32


class FeatureCache:
    """A cache, opened for reading; what it lacks is counted and said once.

    Args:
        path: The cache's folder.
        identity: Of the encoders in use; see `Encoders.identity`.
        text_length: Rows of a text feature.

    Attributes:
        hits: Features found so far, by kind.
        misses: Features that were not there.

    Raises:
        ConfigError: There is no cache, it is other encoders', or it is not finished.
    """

    def __init__(self, path: Path, identity: Mapping[str, Identity], text_length: int) -> None:
        self._folder = CacheFolder(path)
        self._folder.require_encoders("data.cache", identity)
        try:
            self._index = Index(self._folder.index)
        except (FileNotFoundError, SafetensorError) as error:
            raise ConfigError(
                f"data.cache ({path}) has no whole index: run `sama-mega data cache` again to finish it"
            ) from error
        self._keys = Keys(identity)
        self._text_length = text_length
        self._open = lru_cache(_OPEN_SHARDS)(self._open_anew)
        self._unreadable: set[str] = set()
        self.hits: Counter[Kind] = Counter()
        self.misses: Counter[Kind] = Counter()

    def __len__(self) -> int:
        return len(self._index)

    def find(self, kind: Kind, content: Content) -> Tensor | None:
        """Reads the feature of a content.

        Returns:
            What the encoder would give for this sample alone, float32 on the CPU; None where the cache lacks it.
        """
        key = self._keys.key(kind, content)
        for name in self._index.shards_of(key):
            stored = self._read(name, key.hex())
            if stored is not None:
                self.hits[kind] += 1
                return unpack(kind, stored, self._text_length)
        if not self.misses:
            _log.warning(
                "data.cache (%s) lacks some features, the first %s: they are encoded as they come",
                self._folder.path,
                "a prompt's" if kind == "text" else f"{kind} of frames",
            )
        self.misses[kind] += 1
        return None

    def holds(self, key: bytes) -> bool:
        """Whether a key is there; counts nothing."""
        return any(self._read(name, key.hex()) is not None for name in self._index.shards_of(key))

    def _read(self, name: str, key: str) -> Tensor | None:
        """One shard's feature; None where it holds another key of the same beginning, or is gone."""
        if name in self._unreadable:
            return None
        try:
            shard = self._open(name)
            return shard.get_tensor(key) if key in shard.keys() else None  # noqa: SIM118 (no mapping)
        except (OSError, SafetensorError) as error:
            # The run can go on without it, for weeks if need be.
            self._unreadable.add(name)
            _log.warning("%s cannot be read and is left alone: %s", self._folder.shards / name, error)
            return None

    def _open_anew(self, name: str) -> Any:
        return safe_open(self._folder.shards / name, framework="pt")
