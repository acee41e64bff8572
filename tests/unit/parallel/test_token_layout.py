"""Cutting [source | semantic | target] into shards: every token once, in order, padding only at the end."""

from __future__ import annotations

from math import prod

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sama_mega.parallel.token_layout import SEMANTIC, SOURCE, TARGET, TokenLayout

grids = st.tuples(st.integers(1, 4), st.integers(1, 5), st.integers(1, 5))
layouts = st.builds(
    TokenLayout,
    source_grid=st.none() | grids,
    num_semantic=st.just(0) | st.integers(1, 70),
    target_grid=grids,
    num_shards=st.integers(1, 11),
)


def expected_sequence(layout: TokenLayout) -> list[tuple[int, int]]:
    """(segment, index) of every token, in order."""
    lengths = {
        SOURCE: prod(layout.source_grid) if layout.source_grid else 0,
        SEMANTIC: layout.num_semantic,
        TARGET: prod(layout.target_grid),
    }
    return [(segment, index) for segment, length in lengths.items() for index in range(length)]


def shard_tokens(layout: TokenLayout, shard: int) -> list[tuple[int, int]]:
    return [(part.segment, index) for part in layout.shard_ranges(shard) for index in range(part.start, part.stop)]


@given(layouts)
def test_shards_hold_every_token_once_in_order(layout: TokenLayout) -> None:
    sequence = [token for shard in range(layout.num_shards) for token in shard_tokens(layout, shard)]
    assert sequence == expected_sequence(layout)
    assert layout.num_tokens == len(sequence)


@given(layouts)
def test_padding_is_at_the_end_and_less_than_a_token_a_shard(layout: TokenLayout) -> None:
    counts = [len(shard_tokens(layout, shard)) for shard in range(layout.num_shards)]
    assert layout.num_padded_tokens == layout.tokens_per_shard * layout.num_shards
    assert 0 <= layout.num_padded_tokens - layout.num_tokens < layout.num_shards
    assert max(counts) <= layout.tokens_per_shard
    # Once a shard is not full, nothing but padding follows.
    first_short = next((i for i, count in enumerate(counts) if count < layout.tokens_per_shard), len(counts))
    assert not any(counts[first_short + 1 :])


@given(layouts)
def test_every_shard_lists_every_present_segment(layout: TokenLayout) -> None:
    """Also with an empty range: a rank that skipped a module would leave its gradient out of a collective."""
    present = [SOURCE] * bool(layout.source_grid) + [SEMANTIC] * bool(layout.num_semantic) + [TARGET]
    for shard in range(layout.num_shards):
        ranges = layout.shard_ranges(shard)
        assert [part.segment for part in ranges] == present
        lengths = layout.segment_lengths
        assert all(0 <= part.start <= part.stop <= lengths[part.segment] for part in ranges)


@given(layouts)
def test_positions_of_a_segment_within_its_shard(layout: TokenLayout) -> None:
    sequence = expected_sequence(layout)
    assert sequence[layout.target_start] == (TARGET, 0)
    for shard in range(layout.num_shards):
        first = shard * layout.tokens_per_shard
        mine = sequence[first : first + layout.tokens_per_shard]
        for segment in {segment for segment, _ in sequence}:
            part, position = layout.shard_segment(shard, segment)
            expected = [(segment, index) for index in range(part.start, part.stop)]
            assert mine[position : position + len(expected)] == expected
            assert len(expected) == sum(other == segment for other, _ in mine)


def test_a_segment_that_is_not_there() -> None:
    layout = TokenLayout(source_grid=None, num_semantic=0, target_grid=(1, 2, 2))
    with pytest.raises(ValueError, match="no segment 1"):
        layout.shard_segment(0, SEMANTIC)
    with pytest.raises(ValueError, match="no segment 0"):
        layout.shard_segment(0, SOURCE)


def test_the_published_lengths() -> None:
    """81 frames at 480x832 with 65 semantic tokens, and an image pair."""
    video = TokenLayout(source_grid=(21, 30, 52), num_semantic=65, target_grid=(21, 30, 52), num_shards=8)
    assert (video.num_tokens, video.target_start, video.tokens_per_shard) == (65_585, 32_825, 8_199)
    assert TokenLayout((1, 30, 52), 65, (1, 30, 52)).num_tokens == 3_185
