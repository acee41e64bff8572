"""Keys: digests of what a feature was encoded from and by whom."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from sama_mega.encoders.interface import Identity

Kind = Literal["latents", "semantic", "text"]
"""Of a clip, of anchor frames, of a prompt."""
Content = NDArray[np.uint8] | str
"""Frames ``[T, H, W, 3]`` as the encoder sees them, not perturbed; or a prompt."""
ENCODER_OF: dict[Kind, str] = {"latents": "video", "semantic": "semantic", "text": "text"}
_KEY_BYTES = 16


class Keys:
    """Makes the keys of a set of encoders.

    Args:
        identity: Of the encoders, by what they encode; see `Encoders.identity`.
    """

    def __init__(self, identity: Mapping[str, Identity]) -> None:
        self._salts = {
            kind: _digest(json.dumps(identity[encoder], sort_keys=True).encode()).digest()
            for kind, encoder in ENCODER_OF.items()
        }

    def key(self, kind: Kind, content: Content) -> bytes:
        """Digests 16 bytes of a content, its shape, and the encoder that reads it."""
        state = hashlib.blake2b(self._salts[kind], digest_size=_KEY_BYTES)
        if isinstance(content, str):
            state.update(content.encode())
        else:
            state.update(repr(content.shape).encode())
            state.update(np.ascontiguousarray(content).data)
        return state.digest()


def _digest(text: bytes) -> hashlib.blake2b:
    return hashlib.blake2b(text, digest_size=_KEY_BYTES)
