"""What a step has to compute and move."""

from __future__ import annotations

import pytest

from sama_mega.config import load_recipe
from sama_mega.observe.flops import model_flops
from sama_mega.observe.profiling.kernel_groups import Group
from sama_mega.observe.profiling.step_work import RankShare, SeenBatch, Work, step_work
from tests.support.tiny_recipe import recipe_path

LAYERS = 8
BATCHES = [SeenBatch(2, 100, 4000), SeenBatch(3, 40, 900)]
WHOLE = RankShare(layers=LAYERS, ends=1.0, split=1, parameters=1000)


def work(share: RankShare = WHOLE, steps: int = 1, *overrides: str) -> dict[str, Work]:
    recipe = load_recipe(recipe_path(1), [f"model.num_layers={LAYERS}", *overrides])
    return step_work(recipe, BATCHES, steps, share)


def test_one_rank_does_all_the_model_needs() -> None:
    recipe = load_recipe(recipe_path(1), [f"model.num_layers={LAYERS}"])
    needed = sum(batch.samples * model_flops(recipe, batch.num_tokens).total for batch in BATCHES)
    groups = (Group.GEMM, Group.ATTENTION_FORWARD, Group.ATTENTION_BACKWARD)
    assert sum(work()[group].flops or 0 for group in groups) == pytest.approx(needed)


def test_ranks_and_steps_divide_it() -> None:
    quarter, half = work(RankShare(LAYERS // 2, 0.5, 2, 1000)), work(steps=2)
    for group in (Group.GEMM, Group.ATTENTION_FORWARD):
        assert quarter[group].flops == pytest.approx((work()[group].flops or 0) / 4)
        assert half[group].flops == pytest.approx((work()[group].flops or 0) / 2)


def test_full_recompute_makes_the_forward_pass_twice() -> None:
    kept, repeated = work(), work(WHOLE, 1, "train.recompute=full")
    assert repeated[Group.ATTENTION_FORWARD].flops == pytest.approx(2 * (kept[Group.ATTENTION_FORWARD].flops or 0))
    assert repeated[Group.ATTENTION_BACKWARD] == kept[Group.ATTENTION_BACKWARD]
    some = work(WHOLE, 1, "train.recompute=selective_ffn")[Group.GEMM].flops or 0
    assert (kept[Group.GEMM].flops or 0) < some < (repeated[Group.GEMM].flops or 0)


def test_bytes_of_the_update_are_those_of_own_parameters() -> None:
    assert work()[Group.OPTIMIZER].num_bytes == 36 * 1000
    assert work()[Group.AVERAGE].num_bytes == 12 * 1000
    assert Group.AVERAGE not in work(WHOLE, 1, "optimizer.ema_device=host")


def test_low_rank_training_has_no_figure_for_products() -> None:
    assert Group.GEMM not in work(WHOLE, 1, "lora.rank=4")
