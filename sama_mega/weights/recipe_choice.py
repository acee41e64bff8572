"""Which recipe goes with imported weights: the user's, or the published size's, checked against the weights."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from math import prod
from typing import Any

from sama_mega.config.errors import ConfigError
from sama_mega.config.load import load_recipe
from sama_mega.config.schema import LoraRecipe, ModelRecipe, Recipe
from sama_mega.weights.fit import released_tensors
from sama_mega.weights.formats import SourceFormat
from sama_mega.weights.source import Source

PUBLISHED_RECIPES = ("recipes/wan14b_stage1.yaml", "recipes/wan1_3b_stage1.yaml")
_ALL_TARGETS = f"lora.targets=[{', '.join(LoraRecipe().targets)}]"
_BASE_MODEL = ("checkpoint.init_from=null", "lora.rank=0", "lora.alpha=null", _ALL_TARGETS)
_LAYER = re.compile(r"^blocks\.(\d+)\.")
# Keys of a config.json that say what the model computes, with the recipe's keys for the same numbers.
_CONFIG_KEYS = {
    "diffusers": {
        "num_attention_heads": "num_heads",
        "attention_head_dim": "head_dim",
        "eps": "norm_eps",
        "num_layers": "num_layers",
    },
    "wan": {
        "dim": "dim",
        "num_heads": "num_heads",
        "eps": "norm_eps",
        "text_len": "text_length",
        "num_layers": "num_layers",
    },
    "sama": {},
}
# What must be said there, where it is said: anything else is another model of the family.
_CONFIG_RULES: dict[SourceFormat, dict[str, Any]] = {
    "diffusers": {
        "_class_name": "WanTransformer3DModel",
        "cross_attn_norm": True,
        "qk_norm": "rms_norm_across_heads",
        "image_dim": None,
        "added_kv_proj_dim": None,
        "pos_embed_seq_len": None,
    },
    "wan": {"model_type": "t2v"},
    "sama": {},
}


def choose_recipe(source_format: SourceFormat, source: Source, recipe_path: str | None) -> Recipe:
    """Finds the recipe that an imported checkpoint stores.

    Args:
        source_format: Of the weights.
        source: The weights.
        recipe_path: The user's recipe; None looks the size up among the published ones.

    Returns:
        The recipe, with nothing to start from. A published one reads the encoders of the pipeline that the weights
        came with, where there is one.

    Raises:
        ConfigError: The weights are of another size than the recipe, or of none that is known; or their config says
            that they are another model.
    """
    rules = _CONFIG_RULES[source_format]
    for key, must in rules.items():
        if key in source.config and source.config[key] != must:
            raise ConfigError(
                f"{source.path}: {key} in config.json is {source.config[key]!r} and must be {must!r}: only Wan2.1's"
                " text-to-video models are read"
            )
    sizes = sizes_of(released_tensors(source_format, source.tensors))
    if recipe_path is not None:
        recipe = load_recipe(recipe_path, [*_BASE_MODEL])
        _require_sizes(recipe.model, sizes, source, recipe_path)
    else:
        recipe = _published(sizes, source)
    for key, ours in _CONFIG_KEYS[source_format].items():
        if key in source.config and source.config[key] != getattr(recipe.model, ours):
            raise ConfigError(
                f"{source.path}: {key} in config.json is {source.config[key]!r} and model.{ours} of"
                f" {recipe_path or 'the published recipe'} is {getattr(recipe.model, ours)!r}: give --recipe of this"
                " model"
            )
    return recipe


def sizes_of(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """What tensors' shapes say about the recipe's `model` section; what no tensor tells is left out.

    Args:
        shapes: By released name.
    """
    sizes: dict[str, Any] = {}
    patch = shapes.get("patch_embedding.weight", ())
    if len(patch) == 5:
        sizes |= {"dim": patch[0], "in_channels": patch[1], "patch_size": tuple(patch[2:])}
        head = shapes.get("head.head.weight", ())
        if len(head) == 2:
            sizes["out_channels"] = head[0] // prod(patch[2:])
    for key, name, axis in (
        ("ffn_dim", "blocks.0.ffn.0.weight", 0),
        ("text_dim", "text_embedding.0.weight", 1),
        ("time_features", "time_embedding.0.weight", 1),
        ("semantic_dim", "siglip_feat_mlp.fc1.weight", 1),
        ("semantic_hidden_dim", "siglip_feat_mlp.fc1.weight", 0),
    ):
        if len(shapes.get(name, ())) == 2:
            sizes[key] = shapes[name][axis]
    layers = [int(match.group(1)) for name in shapes if (match := _LAYER.match(name))]
    return sizes | ({"num_layers": max(layers) + 1} if layers else {})


def _differences(model: ModelRecipe, sizes: Mapping[str, Any]) -> list[str]:
    return [key for key, size in sizes.items() if getattr(model, key) != size]


def _require_sizes(model: ModelRecipe, sizes: Mapping[str, Any], source: Source, recipe_path: str) -> None:
    different = _differences(model, sizes)
    if different:
        listed = ", ".join(f"model.{key} is {getattr(model, key)} and {sizes[key]} there" for key in different)
        raise ConfigError(f"{recipe_path} is not the recipe of {source.path}: {listed}: give the recipe of this model")


def _published(sizes: Mapping[str, Any], source: Source) -> Recipe:
    overrides = [*_BASE_MODEL]
    if source.folder is not None and source.folder != source.path and (source.path / "text_encoder").is_dir():
        pipeline = json.dumps(str(source.path.resolve()))
        overrides += [f"encoders.{role}_path={pipeline}" for role in ("video", "text")]
    for path in PUBLISHED_RECIPES:
        recipe = load_recipe(path, overrides)
        if sizes and not _differences(recipe.model, sizes):
            return recipe
    found = ", ".join(f"{key} {sizes[key]}" for key in ("dim", "num_layers", "ffn_dim") if key in sizes)
    raise ConfigError(
        f"{source.path} is of no published size ({found or 'it holds no patch_embedding.weight'}; 14B and 1.3B are"
        " known): give --recipe, a recipe of this model"
    )
