"""Simulated scaling: what must hold whatever the rates are."""

from __future__ import annotations

import json

import pytest

from sama_mega.config import load_recipe
from sama_mega.observe.gpu_kinds import load_gpu_kinds
from sama_mega.planner.scaling import ScalingRow, scaling_assumptions, simulate_scaling
from tests.support.distributed import REPOSITORY

H200 = load_gpu_kinds(environ={})["H200"]
RECIPE = load_recipe(REPOSITORY / "recipes/wan14b_stage1.yaml", [])
COUNTS = (4, 8, 64, 1024, 8192)


@pytest.fixture(scope="module")
def rows() -> dict[tuple[str, int], ScalingRow]:
    return {(row.mode, row.num_gpus): row for row in simulate_scaling(RECIPE, H200, 8, COUNTS)}


def test_every_number_of_gpus_has_a_row(rows: dict[tuple[str, int], ScalingRow]) -> None:
    assert list(rows) == [(mode, count) for mode in ("strong", "weak") for count in COUNTS]
    json.dumps([row.as_json() for row in rows.values()])


def test_what_would_not_run_says_why(rows: dict[tuple[str, int], ScalingRow]) -> None:
    few, many = rows["strong", 4], rows["strong", 8192]
    assert few.time is None and "must divide the number of ranks (4)" in str(few.problem)
    # 1,024 data ranks, 560 samples, and gradients that travel during a backward pass.
    assert many.time is None and "560 samples for 1024 data ranks" in str(many.problem)


def test_strong_scaling_keeps_the_batch_and_weak_scaling_grows_it(rows: dict[tuple[str, int], ScalingRow]) -> None:
    assert rows["strong", 8].efficiency == rows["weak", 8].efficiency == 1
    assert rows["strong", 1024].num_samples == 560 and rows["weak", 1024].num_samples == 128 * 560
    efficiency = {key: row.efficiency for key, row in rows.items()}
    strong, weak = efficiency["strong", 1024], efficiency["weak", 1024]
    assert strong is not None and weak is not None and 0.5 < strong < weak <= 1.001


def test_assumptions_name_rates_and_what_is_left_out() -> None:
    text = "\n".join(scaling_assumptions(H200, "bfloat16"))
    assert "989 TFLOP/s" in text and "360 GB/s" in text and "40 GB/s" in text and "no jitter" in text
