"""Pieces put together, copy by copy, and the worst copy reported."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from megatron.core.dist_checkpointing.mapping import ShardedTensor
from torch import Tensor

from sama_mega.parallel.data_parallel import parameter_names
from sama_mega.train.state import build_train_state
from sama_mega.verify import whole_tensors
from sama_mega.verify.whole_tensors import compare_copies, compare_whole, owned_gradients, put_together
from tests.support.tiny_recipe import alone, tiny_recipe

LIMIT = 1e-3


@pytest.fixture
def context() -> Iterator[Any]:
    with alone(tiny_recipe(0, Path("unused"), Path("unused.jsonl"))) as context:
        yield context


def piece(key: str, data: Tensor, offset: tuple[int, ...], shape: tuple[int, ...], copy: int = 0) -> ShardedTensor:
    return ShardedTensor(
        key=key,
        data=data,
        dtype=data.dtype,
        local_shape=tuple(data.shape),
        global_shape=shape,
        global_offset=offset,
        axis_fragmentations=None,
        replica_id=(copy, 0, 0),
    )


def two_copies_in_pieces(first: Tensor, second: Tensor) -> dict[str, ShardedTensor]:
    """Each copy as an upper and a lower part, out of order, and a scalar."""
    state = {}
    for copy, whole in enumerate((first, second)):
        shape = tuple(whole.shape)
        state[f"w#1@{copy}"] = piece("w", whole[2:].clone(), (2, 0), shape, copy)
        state[f"w#0@{copy}"] = piece("w", whole[:2].clone(), (0, 0), shape, copy)
    return state | {"s": piece("s", torch.tensor(3.0, dtype=torch.bfloat16), (), ())}


@pytest.mark.parametrize("elements_per_message", [1, 1 << 26])
def test_every_copy_is_put_together_apart(
    elements_per_message: int, context: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(whole_tensors, "ELEMENTS_PER_MESSAGE", elements_per_message)
    first = torch.arange(12.0).view(4, 3)
    whole = put_together(two_copies_in_pieces(first, first + 100), context)
    assert whole.keys() == {"w", "s"}
    assert [copy.tolist() for copy in whole["w"]] == [first.tolist(), (first + 100).tolist()]
    (scalar,) = whole["s"]
    assert (scalar.item(), scalar.dtype, scalar.shape) == (3.0, torch.float32, ())


def test_what_the_optimizer_owns_makes_whole_gradients(context: Any) -> None:
    recipe = tiny_recipe(0, Path("unused"), Path("unused.jsonl"))
    state = build_train_state(recipe, context, initialize=True)
    parameters: dict[str, Any] = {}
    for stage in state.stages:
        parameters |= parameter_names(stage)
    for number, parameter in enumerate(parameters.values()):
        parameter.main_grad.copy_(torch.arange(float(parameter.numel())).view_as(parameter) + number)
    whole = put_together(owned_gradients(state), context)
    assert whole.keys() == parameters.keys()
    for name, parameter in parameters.items():
        (gradient,) = whole[name]
        assert torch.equal(gradient, parameter.main_grad)


# --- comparing copies -----------------------------------------------------------------------------


def test_the_worst_copy_is_the_one_reported() -> None:
    expected = torch.tensor([3.0, 4.0])
    copies = [expected, expected * 1.5, expected * 1.1]
    for order in (copies, copies[::-1]):
        check = compare_copies("w", order, expected, LIMIT)
        assert (check.tensor, check.limit, check.passed) == ("w", LIMIT, False)
        assert check.error == pytest.approx(0.5)
    assert compare_copies("w", [expected, expected], expected, LIMIT).passed


@pytest.mark.parametrize("worse", [1.0, 1e30, float("inf")])
@pytest.mark.parametrize("nan_first", [True, False])
def test_a_copy_that_is_no_number_is_the_worst_of_all(worse: float, nan_first: bool) -> None:
    expected = torch.ones(2, dtype=torch.float64)
    copies = [torch.full((2,), float("nan")), torch.full((2,), worse, dtype=torch.float64)]
    check = compare_copies("w", copies if nan_first else copies[::-1], expected, LIMIT)
    assert not check.passed
    assert not math.isfinite(check.error)
    assert math.isnan(check.error) or worse == float("inf")


def test_every_name_and_every_copy_is_compared() -> None:
    truth = {"b": [torch.ones(2)], "a": [torch.ones(3)]}
    ours = {"a": [torch.ones(3), torch.ones(3)], "b": [torch.ones(2), torch.full((2,), 1.5)]}
    checks = compare_whole("grad ", ours, truth, LIMIT)
    assert [(check.tensor, check.passed) for check in checks] == [("grad a", True), ("grad b", False)]


@pytest.mark.parametrize("lost", ["ours", "truth"])
def test_another_models_names_are_no_result(lost: str) -> None:
    both = {name: {"a": [torch.ones(1)], "b": [torch.ones(1)]} for name in ("ours", "truth")}
    del both[lost]["b"]
    with pytest.raises(AssertionError, match="b"):
        compare_whole("", both["ours"], both["truth"], LIMIT)
