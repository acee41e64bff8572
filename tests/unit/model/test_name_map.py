"""Names and shapes against the released checkpoint's, both ways, strictly."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from sama_mega.config import CheckpointError, Recipe, build_recipe
from sama_mega.model import SamaDiT, build_model
from sama_mega.model.config import transformer_config
from sama_mega.model.name_map import from_released, fuse, to_released, unfuse
from sama_mega.model.shards import load_whole
from sama_mega.parallel.layout import resolve_layout
from sama_mega.parallel.runtime import ParallelContext, start_parallel, stop_parallel
from sama_mega.parameters import shapes as whole_shapes
from sama_mega.parameters.names import released_names

TINY = {
    "dim": 24,
    "num_layers": 2,
    "num_heads": 2,
    "ffn_dim": 20,
    "text_dim": 14,
    "text_length": 5,
    "time_features": 8,
    "semantic_dim": 9,
    "semantic_hidden_dim": 11,
}
PUBLISHED = {
    "14B": {"dim": 5120, "num_layers": 40, "num_heads": 40, "ffn_dim": 13824},
    "1.3B": {"dim": 1536, "num_layers": 30, "num_heads": 12, "ffn_dim": 8960},
}


def make_recipe(model: dict[str, Any], precision: str = "float32") -> Recipe:
    train = {"stage": 1, "steps": 1, "run_folder": "unused", "precision": precision}
    return build_recipe({"model": model, "train": train}, "test")


@pytest.fixture(scope="module")
def context() -> Iterator[ParallelContext]:
    yield start_parallel(make_recipe(TINY), environ={})
    stop_parallel()


def released_shapes(dim: int, num_layers: int, ffn_dim: int, text: int, time: int, semantic: int, hidden: int) -> dict:
    """The released checkpoint's names and shapes, from its description and Wan2.1's modules."""

    def linear(name: str, fan_in: int, fan_out: int) -> dict[str, tuple[int, ...]]:
        return {f"{name}.weight": (fan_out, fan_in), f"{name}.bias": (fan_out,)}

    def norm(name: str, width: int) -> dict[str, tuple[int, ...]]:
        return {f"{name}.weight": (width,), f"{name}.bias": (width,)}

    shapes = {"patch_embedding.weight": (dim, 16, 1, 2, 2), "patch_embedding.bias": (dim,)}
    shapes |= linear("text_embedding.0", text, dim) | linear("text_embedding.2", dim, dim)
    shapes |= linear("time_embedding.0", time, dim) | linear("time_embedding.2", dim, dim)
    shapes |= linear("time_projection.1", dim, 6 * dim)
    for i in range(num_layers):
        block = f"blocks.{i}"
        shapes[f"{block}.modulation"] = (1, 6, dim)
        for attention in ("self_attn", "cross_attn"):
            for projection in "qkvo":
                shapes |= linear(f"{block}.{attention}.{projection}", dim, dim)
            shapes[f"{block}.{attention}.norm_q.weight"] = (dim,)
            shapes[f"{block}.{attention}.norm_k.weight"] = (dim,)
        shapes |= norm(f"{block}.norm3", dim)
        shapes |= linear(f"{block}.ffn.0", dim, ffn_dim) | linear(f"{block}.ffn.2", ffn_dim, dim)
    shapes |= linear("head.head", dim, 64) | {"head.modulation": (1, 2, dim), "segment_embedding.weight": (3, dim)}
    shapes |= norm("siglip_feat_mlp.norm", semantic)
    shapes |= linear("siglip_feat_mlp.fc1", semantic, hidden) | linear("siglip_feat_mlp.fc2", hidden, dim)
    return shapes | norm("semantic_head.norm", dim) | linear("semantic_head.proj", dim, semantic)


def build_on_meta(recipe: Recipe, context: ParallelContext, monkeypatch: pytest.MonkeyPatch) -> SamaDiT:
    """The model without memory; megatron's linears ask `torch.cuda.current_device` where to live."""
    meta = torch.device("meta")
    monkeypatch.setattr(torch.cuda, "current_device", lambda: meta)
    layout = resolve_layout(recipe, 1)
    on_meta = replace(context, device=meta, layout=layout)
    return SamaDiT(recipe, transformer_config(recipe, layout), on_meta, layout.stage(0))


@pytest.mark.parametrize("size", sorted(PUBLISHED))
def test_published_sizes_have_the_released_names_and_shapes(
    size: str, context: ParallelContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = make_recipe(PUBLISHED[size], "bfloat16")
    model = build_on_meta(recipe, context, monkeypatch)
    released = to_released(dict(model.named_parameters()), recipe.model.num_heads)
    published = PUBLISHED[size]
    expected = released_shapes(published["dim"], published["num_layers"], published["ffn_dim"], 4096, 256, 1152, 1024)
    assert {name: tuple(tensor.shape) for name, tensor in released.items()} == expected
    ours = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    back = from_released(released, ours, recipe.model.num_heads)
    assert {name: tuple(tensor.shape) for name, tensor in back.items()} == ours
    # What import and export go by knows neither a model nor its ranks.
    assert whole_shapes.released_shapes(recipe.model) == expected
    assert whole_shapes.our_shapes(recipe.model) == ours


def test_the_14b_model_fills_the_released_file(context: ParallelContext, monkeypatch: pytest.MonkeyPatch) -> None:
    """28.6 GB of bfloat16."""
    model = build_on_meta(make_recipe(PUBLISHED["14B"], "bfloat16"), context, monkeypatch)
    assert 2 * sum(parameter.numel() for parameter in model.parameters()) == pytest.approx(28.6e9, rel=1e-3)


def random_released() -> dict[str, Tensor]:
    shapes = released_shapes(24, 2, 20, 14, 8, 9, 11)
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def test_weights_go_in_and_come_out_unchanged(context: ParallelContext) -> None:
    released = random_released()
    [model] = build_model(make_recipe(TINY), context)
    load_whole(model, from_released(released, [name for name, _ in model.named_parameters()], 2), context)
    out = to_released(dict(model.named_parameters()), 2)
    assert out.keys() == released.keys()
    for name, tensor in released.items():
        assert torch.equal(out[name], tensor), name


def test_ours_go_out_and_come_back_unchanged(context: ParallelContext) -> None:
    ours = dict(build_model(make_recipe(TINY), context)[0].named_parameters())
    back = from_released(to_released(ours, 2), ours, 2)
    assert all(torch.equal(back[name], tensor) for name, tensor in ours.items())


def test_fused_rows_go_head_by_head() -> None:
    """q, k, v of head 0, then of head 1: a tensor-parallel slice is a plain range of rows."""
    q, k, v = (torch.arange(6).view(6, 1) + hundred for hundred in (100, 200, 300))
    fused = fuse([q, k, v], num_heads=2)
    assert fused.flatten().tolist() == [
        *(100, 101, 102, 200, 201, 202, 300, 301, 302),
        *(103, 104, 105, 203, 204, 205, 303, 304, 305),
    ]
    assert all(torch.equal(part, whole) for part, whole in zip(unfuse(fused, 3, 2), (q, k, v), strict=True))


@pytest.mark.parametrize(
    ("ours", "released"),
    [
        ("blocks.11.self_attn.linear_qkv.bias", tuple(f"blocks.11.self_attn.{part}.bias" for part in "qkv")),
        ("blocks.0.cross_attn.linear_kv.weight", tuple(f"blocks.0.cross_attn.{part}.weight" for part in "kv")),
        ("blocks.0.cross_attn.q.weight", ("blocks.0.cross_attn.q.weight",)),
        ("blocks.0.modulation", ("blocks.0.modulation",)),
        ("time_embedding.projection.weight", ("time_projection.1.weight",)),
        ("blocks.7.ffn.linear_out.bias", ("blocks.7.ffn.2.bias",)),
    ],
)
def test_single_names(ours: str, released: tuple[str, ...]) -> None:
    assert released_names(ours) == released


def test_missing_and_unused_tensors_are_listed(context: ParallelContext) -> None:
    names = [name for name, _ in build_model(make_recipe(TINY), context)[0].named_parameters()]
    released = random_released()
    del released["blocks.1.self_attn.k.bias"]
    released["blocks.2.modulation"] = torch.zeros(1, 6, 24)
    with pytest.raises(CheckpointError) as caught:
        from_released(released, names, 2)
    assert "missing ['blocks.1.self_attn.k.bias']" in str(caught.value)
    assert "unused ['blocks.2.modulation']" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_ablation_does_not_swallow_the_type_embedding(context: ParallelContext) -> None:
    """A model without type embedding must not load the released weights and say nothing."""
    [model] = build_model(make_recipe(TINY | {"roles": "shifted_rope"}), context)
    with pytest.raises(CheckpointError, match=r"missing none, unused \['segment_embedding.weight'\]"):
        from_released(random_released(), [name for name, _ in model.named_parameters()], 2)


def test_a_wrong_shape_is_named(context: ParallelContext) -> None:
    [model] = build_model(make_recipe(TINY), context)
    tensors = dict(model.named_parameters()) | {"segment_embedding.weight": torch.zeros(2, 24)}
    with pytest.raises(CheckpointError, match=r"segment_embedding\.weight: shape \(2, 24\).*wants \(3, 24\)"):
        load_whole(model, tensors, context)
