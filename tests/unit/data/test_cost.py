"""Predicted costs: the design's token counts, more than linear in them, and defaults where a manifest is silent."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sama_data.buckets import BUCKETS_480P
from sama_data.columns import check_batch
from sama_data.cost import ATTENTION_EQUALS_LINEAR_TOKENS, predicted_cost, row_costs
from sama_data.places import Places
from sama_data.traits import Traits, traits_of


@pytest.mark.parametrize(
    ("num_frames", "size", "tokens"),
    [(81, (832, 480), 65_520), (1, (832, 480), 3_120), (83, (1280, 720), 65_520), (49, (480, 832), 40_560)],
)
def test_cost_counts_the_pairs_tokens_and_their_attention(num_frames, size, tokens):
    cost = predicted_cost(num_frames, *size, BUCKETS_480P)
    assert cost == pytest.approx(tokens + tokens**2 / ATTENTION_EQUALS_LINEAR_TOKENS)


def traits(*rows: dict[str, object]) -> Traits:
    records = [{"video": "a", "caption": "text"} | row for row in rows]
    return traits_of(check_batch(records, Places(Path("m.jsonl"), "line"), 0))


def test_what_a_manifest_does_not_say_is_taken_from_the_kind():
    def cost(kind: str, **known: object) -> float:
        return float(row_costs(traits({"kind": kind} | known), np.array([0]), ((64, 64),), max_frames=17)[0])

    assert cost("video") == cost("video", num_frames=17) == cost("video", num_frames=400, width=640, height=480)
    assert cost("video", frame_start=3, frame_end=12) == cost("video", num_frames=9) < cost("video")
    assert cost("video", frame_start=30, num_frames=20) == cost("video", num_frames=1)
    assert cost("image") == cost("video", num_frames=1) < cost("video", num_frames=5)
    assert cost("image", num_frames=17) == cost("image")


@given(
    st.lists(
        st.fixed_dictionaries(
            {"kind": st.sampled_from(["image", "video"])},
            optional={name: st.integers(1, 2**33) for name in ("num_frames", "width", "height")},
        ),
        min_size=1,
        max_size=9,
    ),
    st.integers(1, 121),
)
def test_rows_cost_the_same_together_and_alone(rows, max_frames):
    together = row_costs(traits(*rows), np.arange(len(rows))[::-1], BUCKETS_480P, max_frames)
    alone = []
    for row in rows:
        num_frames = 1 if row["kind"] == "image" else min(max_frames, row.get("num_frames", max_frames))
        width, height = (min(row[side], 2**31 - 1) if side in row else None for side in ("width", "height"))
        alone.append(predicted_cost(num_frames, width, height, BUCKETS_480P))
    assert together[::-1].tolist() == alone
