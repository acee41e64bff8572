"""Which of several findings is first, and how they are told."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch

from sama_mega.train.numerics.finding import Finding, earliest
from sama_mega.train.numerics.measures import count_not_finite, is_finite, largest, max_abs, rows_not_finite
from sama_mega.train.numerics.tracer import part_of_model


def finding(order: tuple[int, int, int, int], rank: int = 0, **changes: Any) -> Finding:
    values: dict[str, Any] = {
        "order": order,
        "phase": "forward",
        "module": "blocks.3.ffn.linear_in",
        "tensor": "output",
        "shape": (4, 1, 8),
        "dtype": "float32",
        "num_elements": 32,
        "num_not_finite": 2,
        "micro_batch": order[0],
        "sample_ids": ("clip",),
        "ranks": (rank,),
        "places": ({"tensor": rank, "data": 0},),
    }
    return Finding(**values | changes)


def test_the_earliest_micro_batch_then_forward_then_the_earliest_part() -> None:
    orders = [(0, 0, 7, 1), (0, 0, 7, 2), (0, 0, 9, 0), (0, 1, -9, 0), (0, 1, -7, 0), (1, 0, 0, 0)]
    found = [finding(order, rank) for rank, order in enumerate(reversed(orders))]
    for order in orders:
        (first,) = earliest(found)
        assert first.order == order
        found.remove(first)
    assert earliest(found) == []


def test_ranks_that_meet_at_one_place_are_all_named() -> None:
    alike, other = [finding((0, 0, 7, 1), rank) for rank in (2, 1)], finding((0, 0, 7, 1), 3, sample_ids=("other",))
    first, second = earliest([*alike, other, finding((0, 0, 8, 0), 0)])
    assert first.ranks == (1, 2) and [place["tensor"] for place in first.places] == [1, 2]
    assert second.ranks == (3,) and second.sample_ids == ("other",)
    assert "on ranks 1, 2; micro-batch 0, sample clip" in first.describe()
    assert "on rank 3 (tensor 3, data 0); micro-batch 0, sample other" in second.describe()


def test_a_finding_is_strict_json() -> None:
    told = finding((0, 0, 7, 1), input_max_abs=math.inf, weights_max_abs=0.5, before=("input of blocks.3", 3.0))
    values = json.loads(json.dumps(told.as_json(), allow_nan=False))
    assert values["input_max_abs"] == "inf" and values["weights_max_abs"] == 0.5
    assert values["before"] == {"name": "input of blocks.3", "max_abs": 3.0}


def test_parts_are_in_the_order_in_which_they_run() -> None:
    names = ["patch_embedding", "text_embedding.linear_in", "time_embedding", "blocks.0", "blocks.11.ffn", "head.head"]
    parts = [part_of_model(name, 12) for name in [*names, "semantic_head", "model"]]
    assert parts == sorted(parts) and len(set(parts)) == len(parts)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_measures_see_what_is_not_finite(dtype: torch.dtype, bad: float) -> None:
    tensor = torch.full((3, 2, 5), -2.0, dtype=dtype)
    assert is_finite(tensor) and max_abs(tensor).item() == 2.0 and largest([tensor, 3 * tensor]) == 6.0
    assert count_not_finite(tensor) == 0 and rows_not_finite(tensor, 1) == []
    tensor[2, 1, 4] = bad
    assert not is_finite(tensor) and count_not_finite(tensor) == 1
    assert rows_not_finite(tensor, 1) == [1] and rows_not_finite(tensor, 0) == [2]
    assert not math.isfinite(largest([torch.ones(2), tensor]) or 0.0)


def test_nothing_is_finite_and_has_no_size() -> None:
    assert is_finite(torch.empty(0, 4)) and count_not_finite(torch.empty(0)) == 0 and largest([]) is None
