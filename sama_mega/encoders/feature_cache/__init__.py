"""A cache of what the frozen encoders give: written by many processes, read by training.

A feature is found by the content that it was encoded from: the very frames, cropped and cut, or the very prompt. So it
does not matter where a clip lies, who decoded it or what else is in the manifest: what is found is right, and what is
not found is encoded as ever.

A cache is a folder:

    cache.json             format and encoders; another encoder's results are another cache
    shards/*.safetensors   features by key; each file appears whole; `-without-` in a name: some rows could not be read
    index.safetensors      from keys to shards; written when processes finish
"""

from __future__ import annotations

from sama_mega.encoders.feature_cache.content import Content, Keys, Kind
from sama_mega.encoders.feature_cache.folder import CacheFolder
from sama_mega.encoders.feature_cache.reader import FeatureCache

__all__ = ["CacheFolder", "Content", "FeatureCache", "Keys", "Kind"]
