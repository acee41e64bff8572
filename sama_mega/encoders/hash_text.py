"""The embedded text encoder: fixed pseudo-random vectors of words, their places and their neighbours."""

from __future__ import annotations

import hashlib
import math
import re
from functools import lru_cache

import torch
from torch import Tensor

from sama_mega.encoders.interface import Identity
from sama_mega.parallel.transfer import to_device

_WORD = re.compile(r"[a-z0-9]+")
_POSITION_WEIGHT = 0.5
_PAIR_WEIGHT = 0.7
_REMEMBERED_WORDS = 65536


def split_words(prompt: str) -> list[str]:
    """Splits a prompt into lower-case words of letters and digits; brackets and punctuation vanish."""
    return _WORD.findall(prompt.lower())


@lru_cache(maxsize=65536)
def hashed_unit_vector(text: str, dim: int) -> Tensor:
    """Returns a direction [dim] float32 that depends on `text` alone, the same on every machine.

    The digest's 16-bit words, four to a number, are summed: near enough to a normal draw, exact in integers.
    """
    digest = hashlib.shake_256(text.encode()).digest(8 * dim)
    words = [int.from_bytes(digest[2 * i : 2 * i + 2], "little") for i in range(4 * dim)]
    values = torch.tensor([sum(words[4 * i : 4 * i + 4]) - 2 * 65535 for i in range(dim)], dtype=torch.float64)
    return (values / values.norm()).float()


class HashTextEncoder:
    """Word hashing behind the TextEncoder interface: unit(word + 0.5 place + 0.7 neighbours) * sqrt(dim) a word."""

    def __init__(self, text_length: int, text_dim: int, device: torch.device | str = "cpu") -> None:
        """Encodes to [B, text_length, text_dim] on `device`."""
        self.max_tokens = text_length
        self.text_dim = text_dim
        self._device = device
        # Words repeat: of a million prompts a few thousand triples are new.
        self._embed = lru_cache(_REMEMBERED_WORDS)(self._embed_anew)

    def count_tokens(self, prompt: str) -> int:
        """Counts a prompt's words, before any truncation."""
        return len(split_words(prompt))

    def encode(self, prompts: list[str]) -> Tensor:
        """Encodes prompts to [B,text_length,text_dim] float32; longer prompts are cut, the rest of a row is zero."""
        out = torch.zeros(len(prompts), self.max_tokens, self.text_dim)
        for row, prompt in zip(out, prompts, strict=True):
            before = "<start>"
            for place, word in enumerate(split_words(prompt)[: self.max_tokens]):
                row[place] = self._embed(word, place, before)
                before = word
        return to_device(out, self._device)

    def identity(self) -> Identity:
        """Its sizes: the rest is in the name."""
        return {"encoder": "hash", "tokens": self.max_tokens, "width": self.text_dim}

    def _embed_anew(self, word: str, place: int, before: str) -> Tensor:
        """Embeds one word of a prompt."""
        vector = hashed_unit_vector(f"word:{word}", self.text_dim).clone()
        vector += _POSITION_WEIGHT * hashed_unit_vector(f"place:{place}", self.text_dim)
        vector += _PAIR_WEIGHT * hashed_unit_vector(f"pair:{before} {word}", self.text_dim)
        return vector / vector.norm() * math.sqrt(self.text_dim)
