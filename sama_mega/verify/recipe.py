"""What `verify` changes of a recipe before it runs one step of it. Imports no torch: launching ranks needs none."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sama_mega.config import Recipe, build_recipe
from sama_mega.config.errors import ConfigError
from sama_mega.config.schema import AnchorRecipe

# With an epsilon this large AdamW's first update is proportional to the gradient. At the usual one it is the gradient's
# sign, and an element that is zero but for rounding would move by a whole learning rate either way.
SMOOTH_EPSILON = 1.0
WEIGHT_DECAY = 1e-4


def verification_recipe(
    recipe: Recipe, degrees: Mapping[str, Any], num_layers: int | None, kernels: Mapping[str, str] | None = None
) -> Recipe:
    """A recipe's model and switches for one float32 step, in a layout.

    Args:
        recipe: Its model keeps its width, its `parallel` section what is not a degree.
        degrees: `parallel` keys to set.
        num_layers: Blocks to keep; None: all.
        kernels: `kernels` keys to set; None: the recipe's.

    Raises:
        ConfigError: The result breaks a rule.
    """
    if num_layers is not None and num_layers > recipe.model.num_layers:
        raise ConfigError(f"--layers ({num_layers}) must be at most model.num_layers ({recipe.model.num_layers})")
    sections = recipe.model_dump(mode="json")
    sections["model"]["num_layers"] = num_layers or recipe.model.num_layers
    sections["parallel"] |= degrees
    if num_layers is not None:
        sections["parallel"]["stage_layers"] = None
    sections["kernels"] |= kernels or {}
    # With a zero head, or a semantic loss of no weight, most gradients would vanish and compare equal.
    sections["model"]["head_init"] = "xavier"
    sections["anchor"]["weight"] = recipe.anchor.weight or AnchorRecipe().weight
    sections["encoders"] = {}
    sections["train"] |= {"precision": "float32", "float32_matmul_precision": "highest"}
    sections["train"] |= {"skip_loss_above": None, "skip_grad_norm_above": None}
    sections["data"] |= {"micro_batch_images": 2, "micro_batch_videos": 2}
    sections["optimizer"] |= {"clip_grad_norm": 0.0, "eps": SMOOTH_EPSILON, "weight_decay": WEIGHT_DECAY}
    return build_recipe(sections, source="the recipe, as verify runs it")
