"""Degrees to a layout: the arithmetic, and one clear line for every impossible one."""

from __future__ import annotations

from itertools import product
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sama_mega.config.errors import ConfigError
from sama_mega.parallel.layout import Layout, resolve_layout


def recipe(num_heads: int = 40, ffn_dim: int = 13824, num_layers: int = 40, **parallel: Any) -> Any:
    """What the layout reads of a recipe; the model is the 14B one."""
    degrees = {"tensor": 1, "context": 1, "pipeline": 1, "data": "auto", "sequence": True} | parallel
    return SimpleNamespace(
        parallel=SimpleNamespace(**degrees),
        model=SimpleNamespace(num_heads=num_heads, ffn_dim=ffn_dim, num_layers=num_layers),
    )


def test_one_rank() -> None:
    layout = resolve_layout(recipe(), 1)
    assert layout == Layout(tensor=1, context=1, pipeline=1, data=1, sequence=False, world_size=1)
    assert layout.describe() == "1 rank: tensor 1, context 1, pipeline 1, data 1"


@pytest.mark.parametrize(("sequence", "expected"), [(True, True), (False, False)])
def test_data_takes_the_remaining_ranks(sequence: bool, expected: bool) -> None:
    layout = resolve_layout(recipe(tensor=8, sequence=sequence), 64)
    assert (layout.tensor, layout.data, layout.sequence) == (8, 8, expected)


def test_matching_data_degree_is_accepted() -> None:
    assert resolve_layout(recipe(tensor=2, data=4), 8).data == 4


@pytest.mark.parametrize(
    ("parallel", "world_size", "message"),
    [
        ({"context": 3}, 6, "parallel.context (3) must divide model.num_heads (40): use 2, 4, 5 or 8"),
        ({"tensor": 3}, 6, "parallel.tensor (3) must divide model.num_heads (40): use 2, 4, 5 or 8"),
        ({"tensor": 5}, 5, "parallel.tensor (5) must divide model.ffn_dim (13824): use 2, 3, 4, 6 or 8"),
        ({"pipeline": 3}, 3, "parallel.pipeline (3) must divide model.num_layers (40): use 2, 4, 5 or 8"),
        (
            {"tensor": 4},
            6,
            "parallel.tensor x context x pipeline (4 x 1 x 1 = 4) must divide the number of ranks (6): "
            "start 4 ranks, or use degrees whose product is 1, 2, 3 or 6",
        ),
        (
            {"tensor": 2},
            1,
            "parallel.tensor x context x pipeline (2 x 1 x 1 = 2) must divide the number of ranks (1): "
            "start 2 ranks, or use degrees whose product is 1",
        ),
        (
            {"tensor": 2, "data": 3},
            8,
            "parallel.data (3) must equal ranks / (tensor x context x pipeline) (8 / 2 = 4): use "
            "parallel.data=4 or auto, or start 6 ranks",
        ),
        ({"tensor": 0}, 1, "parallel.tensor (0) must be at least 1"),
        ({}, 0, "the number of ranks (0) must be at least 1"),
    ],
)
def test_impossible_layouts(parallel: dict[str, Any], world_size: int, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        resolve_layout(recipe(**parallel), world_size)
    assert str(error.value) == message


@pytest.mark.parametrize("axis", ["context", "pipeline"])
def test_axes_to_come_are_refused_not_ignored(axis: str) -> None:
    with pytest.raises(ConfigError, match=f"parallel.{axis} \\(2\\) is not available yet"):
        resolve_layout(recipe(**{axis: 2}), 2)


def test_suggestion_when_nothing_divides() -> None:
    with pytest.raises(ConfigError, match=r"must divide model.num_heads \(1\): use 1$"):
        resolve_layout(recipe(num_heads=1, tensor=2), 2)


degrees = st.integers(1, 4)


@given(tensor=degrees, context=degrees, pipeline=degrees, data=degrees)
def test_every_rank_has_its_own_place(tensor: int, context: int, pipeline: int, data: int) -> None:
    world_size = tensor * context * pipeline * data
    layout = Layout(tensor, context, pipeline, data, sequence=False, world_size=world_size)
    places = [layout.coordinates(rank) for rank in range(world_size)]
    found = {(place.tensor, place.context, place.pipeline, place.data) for place in places}
    assert found == set(product(range(tensor), range(context), range(pipeline), range(data)))
    # Tensor ranks are neighbours, so that they share a node.
    assert [place.tensor for place in places[:tensor]] == list(range(tensor))
    for index in range(data):
        ranks = layout.ranks_of_data_index(index)
        assert len(ranks) == layout.model_parallel_size
        assert {places[rank].data for rank in ranks} == {index}
