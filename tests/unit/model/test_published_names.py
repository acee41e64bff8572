"""All names and shapes of the published sizes, in both directions, on tensors without memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from sama_mega.config import Recipe, build_recipe
from sama_mega.model.diffusers_names import diffusers_name, released_name_of_diffusers
from sama_mega.model.name_map import fuse, unfuse
from sama_mega.parameters.names import our_place, released_names
from sama_mega.parameters.shapes import our_shapes, released_shapes, sama_shapes
from sama_mega.weights.export_diffusers import wan_config
from sama_mega.weights.fit import require_fit
from sama_mega.weights.source import StoredTensor

PUBLISHED = {
    "14B": {"dim": 5120, "num_layers": 40, "num_heads": 40, "ffn_dim": 13824},
    "1.3B": {"dim": 1536, "num_layers": 30, "num_heads": 12, "ffn_dim": 8960},
}
# Wan2.1's own configs in diffusers, as published.
PUBLISHED_DIFFUSERS = {
    "14B": {},
    "1.3B": {"num_attention_heads": 12, "ffn_dim": 8960, "num_layers": 30},
}


def make_recipe(size: str) -> Recipe:
    train = {"stage": 1, "steps": 1, "run_folder": "unused"}
    return build_recipe({"model": PUBLISHED[size], "train": train}, "test")


def on_meta(shapes: dict[str, tuple[int, ...]]) -> dict[str, StoredTensor]:
    return {
        name: StoredTensor("float32", shape, lambda shape=shape: torch.empty(shape, device="meta"))
        for name, shape in shapes.items()
    }


@pytest.fixture(scope="module", params=sorted(PUBLISHED))
def size(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def theirs(size: str) -> Any:
    """diffusers' own model, without memory."""
    from diffusers import WanTransformer3DModel

    with torch.device("meta"):
        return WanTransformer3DModel(**PUBLISHED_DIFFUSERS[size])


def test_diffusers_own_model_goes_in_and_comes_out(size: str, theirs: Any) -> None:
    recipe = make_recipe(size)
    stored = {name: tuple(tensor.shape) for name, tensor in theirs.state_dict().items()}
    fit = require_fit("diffusers", on_meta(stored), recipe, "diffusers' own model")
    wanted = our_shapes(recipe.model)
    assert fit.read.keys().isdisjoint(fit.fresh)
    assert {*fit.read, *fit.fresh} == wanted.keys()
    assert sorted(name for parts in fit.read.values() for name in parts) == sorted(stored)
    back = {}
    for ours, parts in fit.read.items():
        whole = fuse([torch.empty(stored[part], device="meta") for part in parts], recipe.model.num_heads)
        assert tuple(whole.shape) == wanted[ours], ours
        released = released_names(ours)
        for name, tensor in zip(released, unfuse(whole, len(released), recipe.model.num_heads), strict=True):
            back[diffusers_name(name)] = tuple(tensor.shape)
    assert back == stored


def test_what_is_fresh_are_samas_own_parts(size: str, theirs: Any) -> None:
    recipe = make_recipe(size)
    stored = {name: tuple(tensor.shape) for name, tensor in theirs.state_dict().items()}
    fresh = require_fit("diffusers", on_meta(stored), recipe, "diffusers' own model").fresh
    assert set(fresh) == {
        "segment_embedding.weight",
        *(f"siglip_feat_mlp.{part}.{kind}" for part in ("norm", "fc1", "fc2") for kind in ("weight", "bias")),
        *(f"semantic_head.{part}.{kind}" for part in ("norm", "proj") for kind in ("weight", "bias")),
    }


def test_the_exported_config_builds_the_same_model(size: str, theirs: Any) -> None:
    from diffusers import WanTransformer3DModel

    config = wan_config(make_recipe(size))
    with torch.device("meta"):
        built = WanTransformer3DModel.from_config(config)
    shapes, expected = ({name: one.shape for name, one in model.state_dict().items()} for model in (built, theirs))
    assert shapes == expected
    own = {key: value for key, value in theirs.config.items() if not key.startswith("_")}
    assert {key: config[key] for key in own} == own | {"patch_size": [1, 2, 2]}


def test_samas_release_and_plain_wan_go_in(size: str) -> None:
    recipe = make_recipe(size)
    released = released_shapes(recipe.model)
    whole = require_fit("sama", on_meta(released), recipe, "SAMA")
    assert whole.read.keys() == our_shapes(recipe.model).keys() and whole.fresh == []
    plain = {name: shape for name, shape in released.items() if name not in sama_shapes(recipe.model)}
    fit = require_fit("wan", on_meta(plain), recipe, "Wan")
    assert sorted(name for parts in fit.read.values() for name in parts) == sorted(plain)


def test_names_translate_back(size: str) -> None:
    recipe = make_recipe(size)
    own_parts = sama_shapes(recipe.model)
    for released in released_shapes(recipe.model):
        ours, index, num_parts = our_place(released)
        assert released_names(ours)[index] == released and len(released_names(ours)) == num_parts
        name = diffusers_name(released)
        assert (name is None) == (released in own_parts)
        assert name is None or released_name_of_diffusers(name) == released


@pytest.mark.parametrize("name", ["blocks.0.norm3.weight", "blocks.0.attn1.to_x.weight", "rope.freqs", "proj_in.bias"])
def test_a_name_that_diffusers_does_not_have_has_no_counterpart(name: str) -> None:
    assert released_name_of_diffusers(name) is None
