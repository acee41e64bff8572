"""Micro-batches of one shape."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from sama_data.shapes import Shape, cut_by_shape

kinds = st.sampled_from(["image", "video"])
shapes = st.lists(st.builds(Shape, kinds, st.just(32), st.sampled_from([32, 48]), st.just(9), st.sampled_from([5, 9])))


@given(shapes, st.integers(1, 4), st.integers(1, 4), st.integers(0, 12))
def test_every_sample_stands_in_one_micro_batch_of_its_shape(given_shapes, images, videos, at_least):
    limits = {"image": images, "video": videos}
    cut = cut_by_shape(given_shapes, limits, at_least)
    assert sorted(place for places in cut for place in places) == list(range(len(given_shapes)))
    for places in cut:
        assert places
        assert places == sorted(places)
        assert len({given_shapes[place] for place in places}) == 1
        assert len(places) <= limits[given_shapes[places[0]].kind]
    assert len(cut) >= min(at_least, len(given_shapes))


def test_only_the_last_micro_batch_of_a_shape_is_ragged():
    wide, tall = Shape("image", 64, 32, 1, 1), Shape("image", 32, 64, 1, 1)
    cut = cut_by_shape([wide, tall] * 5, {"image": 2, "video": 1})
    assert cut == [[0, 2], [4, 6], [8], [1, 3], [5, 7], [9]]
