"""Operations of the model: one block by hand, the whole model against torch's own count."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from sama_mega.model import ModelInput, build_model
from sama_mega.observe.flops import block_flops, model_flops, step_flops
from tests.support.tiny_recipe import alone, tiny_recipe

UNUSED = Path("unused")


def test_a_14b_block_by_hand() -> None:
    flops = block_flops(5120, 13824, 65_585, 512)
    per_token = 4 * 5120**2 + 2 * 5120**2 + 2 * 5120 * 13824
    assert flops.gemm == 2 * 65_585 * per_token + 2 * 512 * 2 * 5120**2
    assert flops.attention == 4 * 65_585 * 65_585 * 5120 + 4 * 65_585 * 512 * 5120
    assert flops.total == 3 * flops.gemm + 3.5 * flops.attention


def test_the_whole_model_against_what_torch_counts() -> None:
    recipe = tiny_recipe(1, UNUSED, UNUSED, changes={"kernels.attention": "reference", "kernels.ops": "reference"})
    model, frames, height, width = recipe.model, 2, 4, 6
    semantic = torch.randn(1, recipe.anchor.num_tokens, model.semantic_dim)
    given = ModelInput(
        noisy_latents=torch.randn(1, 16, frames, height, width),
        timesteps=torch.tensor([500.0]),
        text=torch.randn(1, model.text_length, model.text_dim),
        source_latents=torch.randn(1, 16, frames, height, width),
        noisy_semantic=semantic,
        semantic_target=semantic,
    )
    with alone(recipe) as context, FlopCounterMode(display=False) as counter:
        dit = build_model(recipe, context)[0]
        dit(given)
    num_tokens = frames * height * width // 4 * 2 + recipe.anchor.num_tokens
    flops = model_flops(recipe, num_tokens)
    assert flops.gemm + flops.attention == counter.get_total_flops()


@pytest.mark.parametrize("images", [0, 3])
def test_a_step_is_the_sum_of_its_samples(images: int) -> None:
    recipe = tiny_recipe(1, UNUSED, UNUSED)
    assert (
        step_flops(recipe, [50] * images + [90])
        == images * model_flops(recipe, 50).total + model_flops(recipe, 90).total
    )
