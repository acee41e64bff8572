"""Where each token of a [source | semantic | target] sequence lives: global segments and one rank's shard."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

Grid = tuple[int, int, int]

SOURCE, SEMANTIC, TARGET = 0, 1, 2
"""Row of each segment in the type embedding (`segment_embedding.weight`)."""


@dataclass(frozen=True)
class TokenRange:
    """A run of one segment's tokens.

    Attributes:
        segment: SOURCE, SEMANTIC or TARGET.
        start: First token, counted within the segment.
        stop: One past the last token, counted within the segment.
    """

    segment: int
    start: int
    stop: int


@dataclass(frozen=True)
class TokenLayout:
    """The sequence of one sample and how it is cut into equal contiguous shards.

    The sequence is padded at its end to a multiple of ``num_shards``; padding never reaches attention's keys or a
    loss.

    Attributes:
        source_grid: Patch grid (t, h, w) of the source, or None for text-to-video.
        num_semantic: Semantic tokens.
        target_grid: Patch grid (t, h, w) of the target.
        num_shards: Ranks that share the sequence (1 without sequence parallel).
    """

    source_grid: Grid | None
    num_semantic: int
    target_grid: Grid
    num_shards: int = 1

    @property
    def segment_lengths(self) -> tuple[int, int, int]:
        """Tokens of source, semantic and target."""
        num_source = prod(self.source_grid) if self.source_grid else 0
        return num_source, self.num_semantic, prod(self.target_grid)

    @property
    def num_tokens(self) -> int:
        """Tokens of the whole sequence, without padding."""
        return sum(self.segment_lengths)

    @property
    def tokens_per_shard(self) -> int:
        """Tokens of one shard, padding included."""
        return -(-self.num_tokens // self.num_shards)

    @property
    def num_padded_tokens(self) -> int:
        """Tokens of the whole sequence, with padding."""
        return self.tokens_per_shard * self.num_shards

    @property
    def target_start(self) -> int:
        """Position of the first target token in the sequence."""
        return self.num_tokens - self.segment_lengths[TARGET]

    def shard_ranges(self, shard: int) -> list[TokenRange]:
        """The part of every present segment inside one shard, in sequence order; padding is not listed.

        A part may be empty: its modules still run, so that every rank has every gradient.
        """
        first = shard * self.tokens_per_shard
        last = first + self.tokens_per_shard
        ranges, segment_start = [], 0
        for segment, length in enumerate(self.segment_lengths):
            if length:
                start = min(max(first - segment_start, 0), length)
                stop = min(max(last - segment_start, start), length)
                ranges.append(TokenRange(segment, start, stop))
            segment_start += length
        return ranges

    def shard_segment(self, shard: int, segment: int) -> tuple[TokenRange, int]:
        """The part of one present segment inside one shard.

        Returns:
            Its range (empty when the shard holds none of it) and the position within the shard where it begins.

        Raises:
            ValueError: The sequence has no such segment.
        """
        position = 0
        for token_range in self.shard_ranges(shard):
            if token_range.segment == segment:
                return token_range, position
            position += token_range.stop - token_range.start
        raise ValueError(f"the sequence has no segment {segment}")
