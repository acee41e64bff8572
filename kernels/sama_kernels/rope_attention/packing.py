"""How packed samples lie in a tensor."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Packing:
    """Samples that lie one after the other in a tensor of one row.

    Attributes:
        query_starts, key_starts: ``[n + 1]`` int32, where each sample's tokens begin, and their end. No sample is
            without keys.
        longest_query, longest_key: Tokens of the longest sample.
    """

    query_starts: Tensor
    key_starts: Tensor
    longest_query: int
    longest_key: int

    @property
    def keys_as_queries(self) -> Packing:
        """The same for a tensor of keys that is worked on by itself."""
        return Packing(self.key_starts, self.key_starts, self.longest_key, self.longest_key)
