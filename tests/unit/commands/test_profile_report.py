"""What a profile says of a traced run as a whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sama_mega.bench.roof import Roof
from sama_mega.commands.profile_report import _facts, _report
from sama_mega.config import load_recipe
from sama_mega.observe.flops import model_flops
from sama_mega.observe.profiling.kernel_table import StepTable
from sama_mega.observe.profiling.step_work import RankShare, SeenBatch
from sama_mega.train.hooks.profile import Profiled
from tests.support.tiny_recipe import recipe_path, tiny_overrides

TOKENS, PEAK = 48, 4e12
ARITHMETIC = ("model_tflops", "share_of_roof", "share_of_peak")


def report_of(lora_rank: int) -> dict[str, Any]:
    """Of one step of two samples that took 20 ms."""
    recipe = load_recipe(recipe_path(1), tiny_overrides(Path("run"), Path("m"), changes={"lora.rank": lora_rank}))
    told = Profiled(batches=[SeenBatch(2, TOKENS, 1)], share=RankShare(recipe.model.num_layers, 1.0, 1, 1))
    table, roof = StepTable(20.0, [], []), Roof(copy_bytes_per_second=1e10, matmul_flops_per_second=2e12)
    return _report(recipe, told, 1, table, roof, PEAK, on_device=False, nsys=[])


def test_what_the_model_reached_is_held_against_the_roof_and_the_peak() -> None:
    report = report_of(lora_rank=0)
    recipe = load_recipe(recipe_path(1), tiny_overrides(Path("run"), Path("m")))
    reached = 2 * model_flops(recipe, TOKENS).total / 0.02
    assert [report[key] for key in ARITHMETIC] == pytest.approx([reached / 1e12, reached / 2e12, reached / PEAK])
    assert "tokens/s; the model's arithmetic " in _facts(report)[1] and "of the data sheet's 4" in _facts(report)[1]


def test_low_rank_training_has_no_formula_and_is_held_against_nothing() -> None:
    report = report_of(lora_rank=2)
    assert [report[key] for key in ARITHMETIC] == [None] * 3
    assert _facts(report)[1] == "4,800 tokens/s"
