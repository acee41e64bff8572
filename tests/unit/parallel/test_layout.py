"""Degrees to a layout: the arithmetic, and one clear line for every impossible one."""

from __future__ import annotations

from itertools import product
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sama_mega.config.errors import ConfigError
from sama_mega.config.schema import ParallelRecipe
from sama_mega.parallel.layout import Layout, resolve_layout, samples_needed_per_rank, too_few_samples


def recipe(num_heads: int = 40, ffn_dim: int = 13824, num_layers: int = 40, **parallel: Any) -> Any:
    """What the layout reads of a recipe; the model is the 14B one."""
    return SimpleNamespace(
        parallel=ParallelRecipe.model_construct(**ParallelRecipe().model_dump() | parallel),
        model=SimpleNamespace(num_heads=num_heads, ffn_dim=ffn_dim, num_layers=num_layers),
    )


def test_one_rank() -> None:
    layout = resolve_layout(recipe(), 1)
    assert layout == Layout(1, 1, 1, 1, sequence=False, world_size=1, stage_layers=(40,))
    assert layout.describe() == "1 rank: tensor 1, context 1, pipeline 1, data 1"


def test_a_layout_describes_itself() -> None:
    layout = resolve_layout(recipe(tensor=4, context=4, pipeline=3), 96)
    assert layout.describe() == (
        "96 ranks: tensor 4 + sequence, context 4 (exchanging heads over 2, gathering keys and values over 2), "
        "pipeline 3 (layers 14+13+13), data 2"
    )


@pytest.mark.parametrize(("sequence", "expected"), [(True, True), (False, False)])
def test_data_takes_the_remaining_ranks(sequence: bool, expected: bool) -> None:
    layout = resolve_layout(recipe(tensor=8, sequence=sequence), 64)
    assert (layout.tensor, layout.data, layout.sequence) == (8, 8, expected)


def test_matching_data_degree_is_accepted() -> None:
    assert resolve_layout(recipe(tensor=2, data=4), 8).data == 4


@pytest.mark.parametrize(
    ("parallel", "world_size", "message"),
    [
        ({"tensor": 3}, 6, "parallel.tensor (3) must divide model.num_heads (40): use 2, 4 or 8"),
        ({"tensor": 5}, 5, "parallel.tensor (5) must divide model.ffn_dim (13824): use 2, 4 or 8"),
        (
            {"pipeline": 41},
            41,
            "parallel.pipeline x interleave (41 x 1 = 41) must be at most model.num_layers (40), a block for every "
            "stage: use parallel.pipeline=40 or fewer, or a smaller interleave",
        ),
        (
            {"pipeline": 16, "interleave": 3},
            16,
            "parallel.pipeline x interleave (16 x 3 = 48) must be at most model.num_layers (40), a block for every "
            "stage: use parallel.pipeline=13 or fewer, or a smaller interleave",
        ),
        (
            {"interleave": 2},
            1,
            "parallel.interleave (2) needs parallel.pipeline above 1: use parallel.interleave=1",
        ),
        (
            {"pipeline": 2, "stage_layers": (10, 20, 10)},
            2,
            "parallel.stage_layers ([10, 20, 10]) has 3 entries and must have one a stage, parallel.pipeline x "
            "interleave (2 x 1 = 2)",
        ),
        (
            {"pipeline": 2, "stage_layers": (21, 20)},
            2,
            "parallel.stage_layers ([21, 20]) sums to 41 and must sum to model.num_layers (40)",
        ),
        (
            {"context": 4, "ulysses": 3},
            4,
            "parallel.ulysses (3) must divide parallel.context (4) and the heads of a tensor rank (model.num_heads / "
            "parallel.tensor = 40): use 1, 2 or 4 or auto",
        ),
        (
            {"tensor": 8, "context": 2, "ulysses": 2},
            16,
            "parallel.ulysses (2) must divide parallel.context (2) and the heads of a tensor rank (model.num_heads / "
            "parallel.tensor = 5): use 1 or auto",
        ),
        ({"pipeline": 0}, 1, "parallel.pipeline (0) must be at least 1"),
        (
            {"tensor": 2, "context": 3, "pipeline": 2},
            16,
            "parallel.tensor x context x pipeline (2 x 3 x 2 = 12) must divide the number of ranks (16): start 12 "
            "ranks, or use degrees whose product is 1, 2, 4, 8 or 16",
        ),
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


@pytest.mark.parametrize(
    ("tensor", "context", "ulysses"), [(1, 2, 2), (8, 2, 1), (8, 5, 5), (8, 10, 5), (1, 3, 1), (2, 8, 4), (1, 1, 1)]
)
def test_heads_are_exchanged_as_far_as_they_go(tensor: int, context: int, ulysses: int) -> None:
    """Of 40 heads; the rest of the context ranks gather keys and values."""
    layout = resolve_layout(recipe(tensor=tensor, context=context), tensor * context)
    assert layout.ulysses == ulysses
    exchanging, gathering = layout.split_context_ranks()
    assert {len(ranks) for ranks in exchanging} == {ulysses}
    assert {len(ranks) for ranks in gathering} == {context // ulysses}
    for groups in (exchanging, gathering):
        assert sorted(rank for ranks in groups for rank in ranks) == list(range(layout.world_size))


@pytest.mark.parametrize(
    ("parallel", "stage_layers"),
    [
        ({"pipeline": 4}, (10, 10, 10, 10)),
        ({"pipeline": 3}, (14, 13, 13)),
        ({"pipeline": 2, "interleave": 3}, (7, 7, 7, 7, 6, 6)),
        ({"pipeline": 2, "stage_layers": (22, 18)}, (22, 18)),
    ],
)
def test_layers_are_split_evenly_or_as_listed(parallel: dict[str, Any], stage_layers: tuple[int, ...]) -> None:
    layout = resolve_layout(recipe(**parallel), parallel["pipeline"])
    assert layout.stage_layers == stage_layers
    stages = [layout.stage(index) for index in range(layout.num_stages)]
    assert [layer for stage in stages for layer in stage.layers] == list(range(40))
    assert [stage.is_first for stage in stages] == [True] + [False] * (len(stages) - 1)
    assert [stage.is_last for stage in stages] == [False] * (len(stages) - 1) + [True]
    owned = [list(layout.stages_of(rank)) for rank in range(layout.pipeline)]
    assert sorted(index for stages in owned for index in stages) == list(range(layout.num_stages))
    assert all(len(stages) == layout.interleave for stages in owned)


def test_suggestion_when_nothing_divides() -> None:
    with pytest.raises(ConfigError, match=r"must divide model.num_heads \(1\): use 1$"):
        resolve_layout(recipe(num_heads=1, tensor=2), 2)


degrees = st.integers(1, 4)


@given(tensor=degrees, context=degrees, pipeline=degrees, data=degrees)
def test_every_rank_has_its_own_place(tensor: int, context: int, pipeline: int, data: int) -> None:
    world_size = tensor * context * pipeline * data
    layers = (1,) * pipeline
    layout = Layout(tensor, context, pipeline, data, sequence=False, world_size=world_size, stage_layers=layers)
    places = [layout.coordinates(rank) for rank in range(world_size)]
    found = {(place.tensor, place.context, place.pipeline, place.data) for place in places}
    assert found == set(product(range(tensor), range(context), range(pipeline), range(data)))
    # Tensor ranks are neighbours, so that they share a node.
    assert [place.tensor for place in places[:tensor]] == list(range(tensor))
    for index in range(data):
        ranks = layout.ranks_of_data_index(index)
        assert len(ranks) == tensor * context * pipeline
        assert {places[rank].data for rank in ranks} == {index}


@pytest.mark.parametrize(
    ("parallel", "needed"),
    [
        ({}, 0),
        ({"overlap_grad_reduce": True}, 1),
        ({"overlap_param_gather": True, "pipeline": 4}, 1),
        ({"pipeline": 4, "interleave": 2}, 4),
        ({"pipeline": 4, "interleave": 2, "overlap_grad_reduce": True}, 4),
    ],
)
def test_samples_that_every_data_rank_needs(parallel: dict[str, Any], needed: int) -> None:
    assert samples_needed_per_rank(ParallelRecipe(**parallel)) == needed


def test_too_few_samples_are_said_with_what_needs_them() -> None:
    interleaved = ParallelRecipe(pipeline=4, interleave=2)
    assert too_few_samples(interleaved, 6, 2) == (
        "a step has 6 samples for 2 data ranks: with parallel.interleave every rank needs parallel.pipeline (4): raise "
        "data.images_per_step or data.videos_per_step"
    )
    assert "every rank needs one: raise" in too_few_samples(ParallelRecipe(overlap_grad_reduce=True), 1, 2)
