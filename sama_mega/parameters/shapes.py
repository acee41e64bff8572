"""Names and shapes of a model's whole tensors, from the recipe alone: no weights, no ranks, no memory."""

from __future__ import annotations

from math import prod

from sama_mega.config.schema import LoraRecipe, ModelRecipe
from sama_mega.parameters.names import our_place

Shape = tuple[int, ...]


def released_shapes(model: ModelRecipe, anchors: bool = True) -> dict[str, Shape]:
    """Every tensor of a model under the released checkpoint's names, in the order of a forward pass.

    Args:
        model: A recipe's section.
        anchors: Whether it has anchor frames, as released models have: `anchor.num_frames` is not 0.

    Source: the released checkpoint; ``WanModel`` in Cynthiazxy123/SAMA@5c6bb5b.
    """
    dim = model.dim
    shapes = {"patch_embedding.weight": (dim, model.in_channels, *model.patch_size), "patch_embedding.bias": (dim,)}
    shapes |= sama_shapes(model, anchors)
    shapes |= _linear("text_embedding.0", model.text_dim, dim) | _linear("text_embedding.2", dim, dim)
    shapes |= _linear("time_embedding.0", model.time_features, dim) | _linear("time_embedding.2", dim, dim)
    shapes |= _linear("time_projection.1", dim, 6 * dim)
    for layer in range(model.num_layers):
        shapes |= {f"blocks.{layer}.{name}": shape for name, shape in _block_shapes(dim, model.ffn_dim).items()}
    shapes["head.modulation"] = (1, 2, dim)
    return shapes | _linear("head.head", dim, model.out_channels * prod(model.patch_size))


def sama_shapes(model: ModelRecipe, anchors: bool = True) -> dict[str, Shape]:
    """The part of `released_shapes` that plain Wan weights lack."""
    dim = model.dim
    shapes: dict[str, Shape] = {"segment_embedding.weight": (3, dim)} if model.roles == "segment" else {}
    if not anchors:
        return shapes
    shapes |= _norm("siglip_feat_mlp.norm", model.semantic_dim)
    shapes |= _linear("siglip_feat_mlp.fc1", model.semantic_dim, model.semantic_hidden_dim)
    shapes |= _linear("siglip_feat_mlp.fc2", model.semantic_hidden_dim, dim)
    return shapes | _norm("semantic_head.norm", dim) | _linear("semantic_head.proj", dim, model.semantic_dim)


def our_shapes(model: ModelRecipe, anchors: bool = True) -> dict[str, Shape]:
    """Every parameter under our names, whole: what a checkpoint of this model holds."""
    shapes: dict[str, Shape] = {}
    for released, shape in released_shapes(model, anchors).items():
        name, _, num_parts = our_place(released)
        shapes[name] = (num_parts * shape[0], *shape[1:])
    return shapes


def low_rank_modules(model: ModelRecipe, lora: LoraRecipe) -> list[str]:
    """The linears, by our names, that a model has low-rank changes of; none at rank 0."""
    if lora.rank == 0:
        return []
    return [f"blocks.{layer}.{target}" for layer in range(model.num_layers) for target in lora.targets]


def low_rank_shapes(model: ModelRecipe, lora: LoraRecipe) -> dict[str, Shape]:
    """What a checkpoint of low-rank training holds besides `our_shapes`, whole."""
    shapes: dict[str, Shape] = {}
    weights = our_shapes(model)
    for module in low_rank_modules(model, lora):
        num_out, num_in = weights[f"{module}.weight"]
        shapes |= {f"{module}.low_rank.down": (lora.rank, num_in), f"{module}.low_rank.up": (num_out, lora.rank)}
    return shapes


def _block_shapes(dim: int, ffn_dim: int) -> dict[str, Shape]:
    shapes: dict[str, Shape] = {"modulation": (1, 6, dim)}
    for attention in ("self_attn", "cross_attn"):
        for projection in "qkvo":
            shapes |= _linear(f"{attention}.{projection}", dim, dim)
        shapes |= {f"{attention}.norm_{projection}.weight": (dim,) for projection in "qk"}
    return shapes | _norm("norm3", dim) | _linear("ffn.0", dim, ffn_dim) | _linear("ffn.2", ffn_dim, dim)


def _linear(name: str, fan_in: int, fan_out: int) -> dict[str, Shape]:
    return {f"{name}.weight": (fan_out, fan_in), f"{name}.bias": (fan_out,)}


def _norm(name: str, width: int) -> dict[str, Shape]:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}
