"""Buckets: nearest aspect, full cover, centred crop, 4k+1 frames."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sama_data.buckets import BUCKETS_480P, choose_bucket, cover, cut_length
from sama_data.errors import DataError


def test_the_480p_buckets_are_the_papers_with_transposes():
    assert len(BUCKETS_480P) == 13
    assert set(BUCKETS_480P) == {(height, width) for width, height in BUCKETS_480P}
    assert all(width % 32 == 0 and height % 32 == 0 for width, height in BUCKETS_480P)
    assert {(896, 448), (832, 480), (768, 512), (736, 544), (704, 576), (672, 608), (640, 640)} <= set(BUCKETS_480P)


@pytest.mark.parametrize(
    ("size", "bucket"),
    [
        ((1280, 720), (832, 480)),
        ((720, 1280), (480, 832)),
        ((1920, 1080), (832, 480)),
        ((1000, 1000), (640, 640)),
        ((4000, 1000), (896, 448)),
        ((640, 480), (736, 544)),
        # By plain difference of ratios 0.60 would be nearer to 0.577 than to 0.667 as well; by 1/ratio
        # likewise.
        ((600, 1000), (480, 832)),
    ],
)
def test_nearest_aspect(size, bucket):
    assert choose_bucket(*size, BUCKETS_480P) == bucket


def test_distance_is_of_the_logarithm_of_the_ratio():
    # 1.45 lies nearer to 1 by difference (0.45 < 0.55) and nearer to 2 by ratio (1.379 < 1.45).
    assert choose_bucket(145, 100, [(100, 100), (200, 100)]) == (200, 100)


def test_of_equals_the_first_wins():
    assert choose_bucket(10, 10, [(64, 64), (32, 32)]) == (64, 64)
    # As far to either side: no rounding may decide, which another machine does otherwise.
    for wide, tall in [((896, 448), (448, 896)), ((672, 608), (608, 672)), ((300, 100), (100, 300))]:
        assert choose_bucket(77, 77, [wide, tall]) == wide
        assert choose_bucket(77, 77, [tall, wide]) == tall


def test_no_bucket():
    with pytest.raises(DataError, match=r"data\.buckets is empty"):
        choose_bucket(10, 10, [])


sizes = st.integers(1, 5000)


@given(sizes, sizes, st.sampled_from([*BUCKETS_480P, (64, 64), (33, 17)]))
def test_cover_fills_the_bucket_and_no_more_than_needed(width, height, bucket):
    geometry = cover(width, height, bucket)
    assert (geometry.width, geometry.height) == bucket
    assert geometry.left >= 0
    assert geometry.top >= 0
    assert geometry.left + geometry.width <= geometry.scaled_width
    assert geometry.top + geometry.height <= geometry.scaled_height
    # One side fits exactly, the other keeps the aspect ratio.
    assert geometry.scaled_width == bucket[0] or geometry.scaled_height == bucket[1]
    scale = max(bucket[0] / width, bucket[1] / height)
    assert math.isclose(geometry.scaled_width, width * scale, abs_tol=0.51)
    assert math.isclose(geometry.scaled_height, height * scale, abs_tol=0.51)
    # In the middle, to a pixel.
    assert abs(2 * geometry.left + geometry.width - geometry.scaled_width) <= 1
    assert abs(2 * geometry.top + geometry.height - geometry.scaled_height) <= 1


@given(st.integers(1, 1000))
def test_cut_length(num_frames):
    cut = cut_length(num_frames)
    assert cut % 4 == 1
    assert num_frames - 3 <= cut <= num_frames


def test_no_frames_cannot_be_cut():
    with pytest.raises(ValueError, match="at least one frame"):
        cut_length(0)
