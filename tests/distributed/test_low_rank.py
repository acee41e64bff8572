"""Low-rank training takes the same step in every layout: losses, every gradient, every update of what is trained."""

from __future__ import annotations

from typing import Any

import pytest

from tests.distributed.test_layouts import INTERLEAVED, MODEL, NO_SEQUENCE, OVERLAP
from tests.support.distributed import run_distributed

pytestmark = pytest.mark.distributed

TIMEOUT_SECONDS = 120.0
LORA = {"rank": 3, "alpha": 5.0}
CASES: list[tuple[dict[str, Any], str]] = [
    ({"tensor": 2}, "none"),
    ({"tensor": 2}, "selective"),
    ({"tensor": 2}, "full"),
    ({"tensor": 2} | NO_SEQUENCE, "none"),
    ({"context": 2}, "none"),
    ({"pipeline": 2}, "none"),
    (INTERLEAVED, "selective_ffn"),
    ({"data": 2} | OVERLAP, "none"),
]
NUM_TRAINED = 4 * 7 * 2


def label(case: tuple[dict[str, Any], str]) -> str:
    return " ".join([*(f"{name}={value}" for name, value in case[0].items()), case[1]])


def make_recipe(degrees: dict[str, Any], recompute: str, lora: dict[str, Any]) -> Any:
    from sama_mega.config import build_recipe
    from sama_mega.verify.recipe import verification_recipe

    train = {"stage": 0, "steps": 1, "run_folder": "unused", "recompute": recompute, "cpu_threads": 1}
    sections = {"model": MODEL, "anchor": {"local_grid": 2}, "train": train, "lora": lora}
    return verification_recipe(build_recipe(sections, "test"), degrees, None)


def run_cases() -> dict[str, Any]:
    """Every case's checks, by label, on the first rank; the one-rank step is taken once."""
    import gc

    import torch

    from sama_mega.parallel.layout import resolve_layout
    from sama_mega.parallel.runtime import form_groups, leave_groups, solo_context, start_parallel, stop_parallel
    from sama_mega.verify.layouts import compare_steps, run_step
    from sama_mega.verify.samples import global_batch

    torch.set_num_threads(1)
    context = start_parallel(make_recipe({"data": 2}, "none", LORA), timeout_seconds=60)
    truth = run_step(make_recipe({}, "none", LORA), solo_context(context), global_batch(0))
    reports: dict[str, Any] = {}
    for case in CASES:
        recipe, device = make_recipe(*case, LORA), context.device
        leave_groups(context)
        del context
        gc.collect()
        context = form_groups(resolve_layout(recipe, 2), device, seed=0)
        result = run_step(recipe, context, global_batch(0))
        if context.is_first_rank:
            reports[label(case)] = compare_steps(result, truth)
    stop_parallel()
    return reports


@pytest.fixture(scope="module")
def reports() -> dict[str, Any]:
    return run_distributed(run_cases, 2, TIMEOUT_SECONDS)[0]


@pytest.mark.parametrize("name", [label(case) for case in CASES])
def test_a_layout_takes_the_step_of_one_rank(name: str, reports: Any) -> None:
    checks = reports[name]
    wrong = [(check.tensor, check.error) for check in checks if not check.passed]
    assert not wrong, wrong[:5]
    assert len(checks) == 2 * 6 + 2 * NUM_TRAINED
    assert all(".low_rank." in check.tensor for check in checks if check.tensor.startswith(("grad ", "update ")))
