"""Feature caches, as small as a test wants them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sama_mega.encoders.feature_cache import CacheFolder, Content, FeatureCache, Keys, Kind
from sama_mega.encoders.feature_cache.index import write_index
from sama_mega.encoders.feature_cache.stored import pack

IDENTITY: dict[str, dict[str, Any]] = {
    "video": {"encoder": "dct", "arithmetic": "float32"},
    "text": {"encoder": "hash", "tokens": 6},
    "semantic": {"encoder": "tiny", "grid": 2},
}
TEXT_LENGTH = 6
Feature = tuple[Kind, Content, Tensor]


def frames(number: int, count: int = 2) -> NDArray[np.uint8]:
    """A clip that no other number has."""
    return np.random.default_rng(number).integers(0, 256, (count, 4, 4, 3), dtype=np.uint8)


def write_cache(
    path: Path, shards: Mapping[str, Sequence[Feature]], identity: Mapping[str, dict[str, Any]] = IDENTITY
) -> CacheFolder:
    """Adds shards by name, and indexes."""
    folder, keys = CacheFolder(path), Keys(identity)
    folder.claim(identity)
    for name, features in shards.items():
        tensors = {keys.key(kind, content).hex(): pack(kind, feature) for kind, content, feature in features}
        folder.write(folder.shards / f"{name}.safetensors", tensors)
    write_index(folder)
    return folder


def open_cache(path: Path, identity: Mapping[str, dict[str, Any]] = IDENTITY) -> FeatureCache:
    return FeatureCache(path, identity, TEXT_LENGTH)


def random_feature(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
