"""Runs of flattened elements as boxes, and where a parameter's pieces lie in the whole."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from sama_mega.parallel.sharded_state import shard_flat_run, shard_parameters, split_flat_run


def context(tensor: int = 1, tensor_rank: int = 0, data_rank: int = 0) -> Any:
    """A rank's place, without process groups."""
    return SimpleNamespace(
        layout=SimpleNamespace(tensor=tensor),
        tensor_rank=tensor_rank,
        groups=SimpleNamespace(dp_cp=SimpleNamespace(rank=lambda: data_rank)),
    )


def split_parameter(shape: tuple[int, ...], axis: int) -> nn.Parameter:
    parameter = nn.Parameter(torch.zeros(shape))
    parameter.tensor_model_parallel, parameter.partition_dim, parameter.partition_stride = True, axis, 1
    return parameter


@st.composite
def runs(draw: st.DrawFn) -> tuple[tuple[int, ...], int, int]:
    shape = tuple(draw(st.lists(st.integers(1, 5), max_size=4)))
    start = draw(st.integers(0, math.prod(shape)))
    return shape, start, draw(st.integers(start, math.prod(shape)))


@given(runs())
def test_boxes_hold_exactly_the_run_in_order(run: tuple[tuple[int, ...], int, int]) -> None:
    shape, start, end = run
    indices = torch.arange(math.prod(shape)).view(shape)
    boxes = split_flat_run(shape, start, end)
    found = [
        indices[tuple(slice(first, first + extent) for first, extent in zip(box.offset, box.shape, strict=True))]
        for box in boxes
    ]
    assert [int(index) for part in found for index in part.reshape(-1)] == list(range(start, end))
    assert len(boxes) <= max(1, 2 * len(shape) - 1)


@pytest.mark.parametrize("axis", [0, 1])
def test_runs_of_all_ranks_assemble_the_whole(axis: int) -> None:
    """Two tensor ranks and three uneven data ranks; every element of the whole is written once."""
    whole = torch.arange(6 * 8, dtype=torch.float32).view(6, 8)
    assembled = torch.full_like(whole, -1.0)
    for tensor_rank, part in enumerate(whole.chunk(2, axis)):
        parameter = split_parameter(tuple(part.shape), axis)
        flat = part.reshape(-1)
        for start, end in ((0, 5), (5, 17), (17, 24)):
            place = context(tensor=2, tensor_rank=tensor_rank)
            state = shard_flat_run("optimizer.exp_avg.w", parameter, flat[start:end], start, place)
            for piece in state.values():
                assert piece.key == "optimizer.exp_avg.w"
                assert tuple(piece.global_shape) == (6, 8)
                assert piece.replica_id == (0, 0, 0)
                assert torch.all(assembled[piece.global_slice()] == -1)
                assembled[piece.global_slice()] = piece.data
    assert torch.equal(assembled, whole)


def test_pieces_alias_the_run() -> None:
    run = torch.zeros(7)
    state = shard_flat_run("key", nn.Parameter(torch.zeros(4, 3)), run, 2, context())
    for piece in state.values():
        piece.data.fill_(1.0)
    assert torch.all(run == 1)


def test_whole_parameters_have_one_main_replica() -> None:
    module = nn.LayerNorm(4)
    for tensor_rank, data_rank in ((0, 0), (1, 0), (0, 1)):
        state = shard_parameters(module, context(2, tensor_rank, data_rank), "model.")
        assert state.keys() == {"model.weight", "model.bias"}
        piece = state["model.weight"]
        assert piece.replica_id == (0, tensor_rank, data_rank)
        assert tuple(piece.global_shape) == (4,)


def test_split_parameters_and_replaced_values() -> None:
    module = nn.Module()
    module.register_parameter("weight", split_parameter((3, 4), 0))
    average = torch.ones(3, 4, dtype=torch.float64)
    piece = shard_parameters(module, context(2, 1, 1), "ema.", {"weight": average})["ema.weight"]
    assert piece.data.data_ptr() == average.data_ptr()
    assert (tuple(piece.global_shape), tuple(piece.global_offset)) == ((6, 4), (3, 0))
    assert piece.replica_id == (0, 0, 1)


def test_wrapped_names_are_stripped() -> None:
    wrapper = nn.Module()
    wrapper.module = nn.Module()
    wrapper.module.module = nn.Linear(2, 2)
    assert shard_parameters(wrapper, context(), "model.").keys() == {"model.weight", "model.bias"}


def test_values_must_match_the_parameters() -> None:
    with pytest.raises(AssertionError):
        shard_parameters(nn.Linear(2, 2), context(), "ema.", {"weight": torch.zeros(2, 2)})


def test_buffers_that_would_be_lost_are_refused() -> None:
    module = nn.Module()
    module.register_buffer("statistics", torch.zeros(2))
    with pytest.raises(AssertionError):
        shard_parameters(module, context(), "model.")
    module.register_buffer("statistics", torch.zeros(2), persistent=False)
    assert shard_parameters(module, context(), "model.") == {}
