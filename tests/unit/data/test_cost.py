"""Predicted costs: the design's token counts, more than linear in them, and defaults where a manifest is silent."""

from __future__ import annotations

import pytest

from sama_data.buckets import BUCKETS_480P
from sama_data.cost import ATTENTION_EQUALS_LINEAR_TOKENS, predicted_cost
from sama_data.media import Media
from sama_data.rows import Row
from sama_data.streams import row_cost


@pytest.mark.parametrize(
    ("num_frames", "size", "tokens"),
    [(81, (832, 480), 65_520), (1, (832, 480), 3_120), (83, (1280, 720), 65_520), (49, (480, 832), 40_560)],
)
def test_cost_counts_the_pairs_tokens_and_their_attention(num_frames, size, tokens):
    cost = predicted_cost(num_frames, *size, BUCKETS_480P)
    assert cost == pytest.approx(tokens + tokens**2 / ATTENTION_EQUALS_LINEAR_TOKENS)


def row(kind: str, **known: object) -> Row:
    return Row(0, "a", kind, None, Media("a"), "text", **known)


def test_what_a_manifest_does_not_say_is_taken_from_the_kind():
    def cost(kind: str, **known: object) -> float:
        return row_cost(row(kind, **known), ((64, 64),), max_frames=17)

    assert cost("video") == cost("video", num_frames=17) == cost("video", num_frames=400, width=640, height=480)
    assert cost("video", frame_start=3, frame_end=12) == cost("video", num_frames=9) < cost("video")
    assert cost("image") == cost("video", num_frames=1) < cost("video", num_frames=5)
    assert cost("image", num_frames=17) == cost("image")
