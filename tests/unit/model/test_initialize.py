"""Fresh weights: the rules, and that slices of any layout are slices of the same whole."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from math import sqrt
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from sama_mega.config import Recipe, build_recipe
from sama_mega.model import SamaDiT, build_model
from sama_mega.model.initialize import initialize_weights
from sama_mega.model.name_map import to_released
from sama_mega.model.shards import my_slice
from sama_mega.parallel.runtime import ParallelContext, start_parallel, stop_parallel

DIM, NUM_HEADS, FFN_DIM, SEMANTIC_DIM, SEMANTIC_HIDDEN = 64, 4, 96, 40, 56
SIZES = {
    "dim": DIM,
    "num_layers": 2,
    "num_heads": NUM_HEADS,
    "ffn_dim": FFN_DIM,
    "text_dim": 48,
    "text_length": 5,
    "time_features": 32,
    "semantic_dim": SEMANTIC_DIM,
    "semantic_hidden_dim": SEMANTIC_HIDDEN,
}


def make_recipe(precision: str = "float32", seed: int = 0, **model: Any) -> Recipe:
    train = {"stage": 1, "steps": 1, "run_folder": "unused", "precision": precision, "seed": seed}
    return build_recipe({"model": SIZES | model, "train": train}, "test")


@pytest.fixture(scope="module")
def context() -> Iterator[ParallelContext]:
    yield start_parallel(make_recipe(), environ={})
    stop_parallel()


@pytest.fixture(scope="module")
def weights(context: ParallelContext) -> dict[str, Tensor]:
    return dict(build_model(make_recipe(), context)[0].named_parameters())


def as_rank(context: ParallelContext, rank: int, num_ranks: int) -> ParallelContext:
    """What one of several tensor-parallel ranks gets; building a model sends nothing."""
    layout = replace(context.layout, tensor=num_ranks, world_size=num_ranks, sequence=True)
    group: Any = SimpleNamespace(size=lambda: num_ranks, rank=lambda: rank)
    return replace(context, layout=layout, tensor_rank=rank, tensor_group=group)


@pytest.mark.parametrize("num_ranks", [2, 4])
def test_every_rank_holds_a_slice_of_the_same_weights(
    num_ranks: int, context: ParallelContext, weights: dict[str, Tensor]
) -> None:
    ranks = [as_rank(context, rank, num_ranks) for rank in range(num_ranks)]
    models = [dict(build_model(make_recipe(), rank)[0].named_parameters()) for rank in ranks]
    for name, whole in weights.items():
        slices = [model[name] for model in models]
        split_dim = getattr(slices[0], "partition_dim", -1)
        if split_dim < 0:
            assert all(torch.equal(part, whole) for part in slices), name
        else:
            assert torch.equal(torch.cat(slices, split_dim), whole), name
        assert all(torch.equal(my_slice(whole, part, rank), part) for part, rank in zip(slices, ranks, strict=True))


def test_what_is_split(context: ParallelContext) -> None:
    """Projections by heads or hidden features, q/k norms by heads, the large one of time, nothing else."""
    [model] = build_model(make_recipe(), as_rank(context, 1, 2))
    split = {
        name.removeprefix("blocks.0.")
        for name, parameter in model.named_parameters()
        if name.startswith("blocks.0.") and getattr(parameter, "partition_dim", -1) >= 0
    }
    column = ("self_attn.linear_qkv", "cross_attn.q", "cross_attn.linear_kv", "ffn.linear_in")
    row = ("self_attn.o", "cross_attn.o", "ffn.linear_out")
    norms = (f"{attention}_attn.norm_{which}.weight" for attention in ("self", "cross") for which in "qk")
    expected = {f"{name}.{kind}" for name in column for kind in ("weight", "bias")}
    assert split == expected | {f"{name}.weight" for name in row} | set(norms)
    outside = {
        name
        for name, parameter in model.named_parameters()
        if "blocks" not in name and getattr(parameter, "partition_dim", -1) >= 0
    }
    assert outside == {"time_embedding.projection.weight", "time_embedding.projection.bias"}


def test_what_sees_its_own_tokens_only(context: ParallelContext) -> None:
    """Under sequence parallel these gradients are partial sums; a parameter that is split or sees all is not."""
    [model] = build_model(make_recipe(), as_rank(context, 1, 2))
    tagged = {name for name, parameter in model.named_parameters() if getattr(parameter, "sequence_parallel", False)}
    whole = {
        *(f"text_embedding.linear_{end}.{kind}" for end in ("in", "out") for kind in ("weight", "bias")),
    }
    split = {name for name, parameter in model.named_parameters() if getattr(parameter, "partition_dim", -1) >= 0}
    assert tagged == {name for name, _ in model.named_parameters()} - split - whole


def test_a_rank_holds_whole_heads(context: ParallelContext, weights: dict[str, Tensor]) -> None:
    """Rank 1 of 2 has heads 2 and 3: rows of q, of k and of v in the released order."""
    rank = dict(build_model(make_recipe(), as_rank(context, 1, 2))[0].named_parameters())
    released = to_released(weights, NUM_HEADS)
    local = to_released(rank, NUM_HEADS // 2)
    for attention in ("self_attn", "cross_attn"):
        for projection in "qkv":
            name = f"blocks.1.{attention}.{projection}.weight"
            assert torch.equal(local[name], released[name][DIM // 2 :]), name
        name = f"blocks.1.{attention}.o.weight"
        assert torch.equal(local[name], released[name][:, DIM // 2 :]), name


def test_the_seed_decides_and_every_tensor_has_its_own_numbers(
    context: ParallelContext, weights: dict[str, Tensor]
) -> None:
    torch.manual_seed(12345)
    again = dict(build_model(make_recipe(), context)[0].named_parameters())
    other = dict(build_model(make_recipe(seed=1), context)[0].named_parameters())
    assert all(torch.equal(again[name], tensor) for name, tensor in weights.items())
    drawn = {name: tensor for name, tensor in weights.items() if tensor.std() > 0 and tensor.numel() > 1}
    assert not any(torch.equal(other[name], tensor) for name, tensor in drawn.items())
    assert len({round(tensor.flatten()[0].item(), 12) for tensor in drawn.values()}) == len(drawn)


def test_every_parameter_is_filled(context: ParallelContext, weights: dict[str, Tensor]) -> None:
    [model] = build_model(make_recipe(), context)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(torch.nan)
    initialize_weights(model, seed=0)
    assert all(torch.equal(parameter, weights[name]) for name, parameter in model.named_parameters())


def assert_uniform(tensor: Tensor, bound: float) -> None:
    assert 0.97 * bound < tensor.abs().max() <= bound
    assert tensor.std().item() == pytest.approx(bound / sqrt(3), rel=0.06)
    assert abs(tensor.mean().item()) < 0.06 * bound


def assert_normal(tensor: Tensor, std: float, tolerance: float = 0.06) -> None:
    assert tensor.std().item() == pytest.approx(std, rel=tolerance)
    assert tensor.abs().max() > 2 * std, "a normal draw has tails"


def xavier(fan_in: int, fan_out: int) -> float:
    return sqrt(6 / (fan_in + fan_out))


def test_new_parts_start_as_published(weights: dict[str, Tensor]) -> None:
    """As SAMA starts: type embedding zeros, semantic head Xavier with N(0, 1e-3) bias, MLP torch's default."""
    assert not weights["segment_embedding.weight"].any()
    assert_uniform(weights["semantic_head.proj.weight"], xavier(DIM, SEMANTIC_DIM))
    assert_normal(weights["semantic_head.proj.bias"], 1e-3, tolerance=0.4)
    for name, fan_in in (("fc1", SEMANTIC_DIM), ("fc2", SEMANTIC_HIDDEN)):
        assert_uniform(weights[f"siglip_feat_mlp.{name}.weight"], 1 / sqrt(fan_in))
        bias = weights[f"siglip_feat_mlp.{name}.bias"]
        assert 0.7 / sqrt(fan_in) < bias.abs().max() <= 1 / sqrt(fan_in)


def test_backbone_starts_as_wan(weights: dict[str, Tensor]) -> None:
    assert_uniform(weights["patch_embedding.weight"], xavier(16 * 4, DIM))
    assert_uniform(weights["head.head.weight"], xavier(DIM, 64))
    for name in ("text_embedding.linear_in", "text_embedding.linear_out", "time_embedding.linear_in"):
        assert_normal(weights[f"{name}.weight"], 0.02)
    assert_uniform(weights["time_embedding.projection.weight"], xavier(DIM, 6 * DIM))
    # A fused projection is three square ones: Xavier's bound of each, not of the stack.
    assert_uniform(weights["blocks.0.self_attn.linear_qkv.weight"], xavier(DIM, DIM))
    assert_uniform(weights["blocks.1.cross_attn.linear_kv.weight"], xavier(DIM, DIM))
    assert_uniform(weights["blocks.1.cross_attn.o.weight"], xavier(DIM, DIM))
    assert_uniform(weights["blocks.1.ffn.linear_in.weight"], xavier(DIM, FFN_DIM))
    assert_normal(weights["blocks.0.modulation"], 1 / sqrt(DIM), tolerance=0.15)
    for name, tensor in weights.items():
        if "norm" in name.split(".")[-2]:
            assert torch.equal(tensor, torch.full_like(tensor, float(name.endswith("weight")))), name
        elif name.endswith("bias") and "siglip" not in name and "semantic" not in name:
            assert not tensor.any(), name


def test_options_of_the_recipe(context: ParallelContext) -> None:
    def build(**options: Any) -> SamaDiT:
        return build_model(make_recipe(**options), context)[0]

    assert_normal(build(type_embedding_std=0.5).get_parameter("segment_embedding.weight"), 0.5, tolerance=0.2)
    zero = build(head_init="zero")
    for name in ("head.head.weight", "head.head.bias", "semantic_head.proj.weight", "semantic_head.proj.bias"):
        assert not zero.get_parameter(name).any(), name
    assert zero.get_parameter("blocks.0.ffn.linear_out.weight").any()


def test_bfloat16_weights_are_the_float32_ones_rounded(context: ParallelContext, weights: dict[str, Tensor]) -> None:
    [model] = build_model(make_recipe(precision="bfloat16"), context)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, weights[name].to(parameter.dtype)), name
