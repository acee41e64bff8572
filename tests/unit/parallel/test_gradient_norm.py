"""The gradient's norm where there is much of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from sama_mega.model.config import transformer_config
from sama_mega.parallel.data_parallel import wrap_data_parallel
from sama_mega.parallel.optimizer import build_optimizer
from sama_mega.parallel.runtime import ParallelContext
from tests.support.tiny_recipe import alone, tiny_recipe

NUM_ELEMENTS = 1 << 23
RECIPE = tiny_recipe(0, Path("unused"), Path("unused.jsonl"))


@pytest.fixture(scope="module")
def context() -> Iterator[ParallelContext]:
    with alone(RECIPE) as context:
        yield context


def test_millions_of_elements_are_added_up_exactly(context: ParallelContext) -> None:
    """In float32, one after the other, they would be off by 3e-4: layouts would clip differently."""
    module = nn.Module()
    module.register_parameter("weight", nn.Parameter(torch.zeros(NUM_ELEMENTS)))
    stage = wrap_data_parallel(RECIPE, module, transformer_config(RECIPE, context.layout), context)
    optimizer = build_optimizer(RECIPE, [stage], context)
    optimizer.zero_grad()
    gradient = torch.randn(NUM_ELEMENTS, generator=torch.Generator().manual_seed(0)) / 1000
    stage.module.weight.main_grad.copy_(gradient)
    stage.finish_grad_sync()
    assert optimizer.gradient_norm() == pytest.approx(gradient.double().norm().item(), rel=1e-9)
