"""Fresh weights that are the same in every layout.

Each parameter is drawn whole from a generator keyed by the seed and its own name, then cut to this rank's slice; no
rank's draw depends on another parameter or on how the model is spread.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from math import sqrt
from typing import Any

import torch
from torch import Tensor, nn

from sama_mega.config.schema import Recipe
from sama_mega.model.low_rank import LOW_RANK
from sama_mega.model.sama_dit import SamaDiT

Draw = Callable[[Tensor, torch.Generator], Any]


@torch.no_grad()
def initialize_weights(model: SamaDiT, seed: int, low_rank_only: bool = False) -> None:
    """Fills every parameter in place; low-rank changes so that they change nothing yet.

    Args:
        model: This rank's shard.
        seed: The run's seed.
        low_rank_only: Leave everything but low-rank changes as it is.

    Source: ``WanModel.init_weights`` for the backbone; SAMA (arXiv 2603.19228) and its released code for its own parts
        (Cynthiazxy123/SAMA@5c6bb5b).
    """
    for name, parameter in model.named_parameters():
        if not low_rank_only or LOW_RANK in name:
            parameter.copy_(_draw_slice(name, parameter, model, seed, _draw_for(name, model.recipe)))


@torch.no_grad()
def draw_whole(name: str, shape: Sequence[int], recipe: Recipe) -> Tensor:
    """One fresh parameter, whole: what `initialize_weights` cuts its slices from.

    Args:
        name: Ours.
        shape: Of the whole tensor.
        recipe: Its `model` section says how parts start, `train.seed` what is drawn.

    Returns:
        Float32, on the CPU.
    """
    whole = torch.empty(tuple(shape), dtype=torch.float32)
    _draw_for(name, recipe)(whole, _generator(recipe.train.seed, name))
    return whole


@torch.no_grad()
def perturb_weights(model: SamaDiT, seed: int) -> None:
    """Moves fresh weights to where nothing hides a mistake; the same in every layout.

    Fresh biases are zeros and norms ones: one added twice, or a wrong slice of it, would not show. Fresh text
    embeddings are so small that all keys look alike, and the gradients of cross-attention are what a cancellation
    leaves. Fresh low-rank changes are zero, and so are half of their gradients.

    Args:
        model: This rank's shard of fresh weights; mutated.
        seed: The run's seed.
    """
    for name, parameter in model.named_parameters():
        if (
            parameter.dim() == 1
            or "modulation" in name
            or name == "segment_embedding.weight"
            or name.endswith(f"{LOW_RANK}up")
        ):
            parameter.add_(_draw_slice(name, parameter, model, seed + 1, _normal(0.2)))
        elif name.startswith("text_embedding."):
            parameter.mul_(10)


def _draw_slice(name: str, parameter: Tensor, model: SamaDiT, seed: int, draw: Draw) -> Tensor:
    """Draws a parameter whole and cuts this rank's slice; float32."""
    split_dim = getattr(parameter, "partition_dim", -1)
    num_slices = model.context.layout.tensor if split_dim >= 0 else 1
    shape = list(parameter.shape)
    if num_slices > 1:
        shape[split_dim] *= num_slices
    whole = torch.empty(shape, dtype=torch.float32)
    draw(whole, _generator(seed, name))
    return whole if num_slices == 1 else whole.chunk(num_slices, split_dim)[model.context.tensor_rank]


def _generator(seed: int, name: str) -> torch.Generator:
    digest = hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)


def _draw_for(name: str, recipe: Recipe) -> Draw:
    """The initializer of one parameter, by the module it belongs to."""
    model = recipe.model
    module, _, kind = name.rpartition(".")
    if name.endswith(f"{LOW_RANK}up"):
        return _constant(0.0)
    if name.endswith(f"{LOW_RANK}down"):
        return lambda whole, generator: _uniform(1 / sqrt(whole.shape[1]))(whole, generator)
    if name == "segment_embedding.weight":
        return _normal(model.type_embedding_std)
    if name.endswith("modulation"):
        return _normal(1 / sqrt(model.dim))
    if "norm" in module.rpartition(".")[2]:
        return _constant(1.0 if kind == "weight" else 0.0)
    if module in ("head.head", "semantic_head.proj"):
        return _head(module, kind, model.head_init == "zero")
    if module.startswith("siglip_feat_mlp."):
        fan_in = model.semantic_dim if module.endswith("fc1") else model.semantic_hidden_dim
        return _uniform(1 / sqrt(fan_in))
    if kind == "bias":
        return _constant(0.0)
    if module.startswith(("text_embedding.", "time_embedding.linear")):
        return _normal(0.02)
    return _xavier(module)


def _head(module: str, kind: str, zero: bool) -> Draw:
    if zero or (kind == "bias" and module == "head.head"):
        return _constant(0.0)
    return _normal(1e-3) if kind == "bias" else _xavier(module)


def _xavier(module: str) -> Draw:
    # A fused projection is several square matrices side by side: each keeps its own fan-out.
    num_fused = {"linear_qkv": 3, "linear_kv": 2}.get(module.rpartition(".")[2], 1)

    def draw(whole: Tensor, generator: torch.Generator) -> Tensor:
        fan_out, fan_in = whole.shape[0] // num_fused, whole[0].numel()
        bound = sqrt(6 / (fan_in + fan_out))
        return whole.uniform_(-bound, bound, generator=generator)

    return draw


def _uniform(bound: float) -> Draw:
    return lambda whole, generator: whole.uniform_(-bound, bound, generator=generator)


def _normal(std: float) -> Draw:
    return lambda whole, generator: whole.normal_(0.0, std, generator=generator) if std else whole.zero_()


def _constant(value: float) -> Draw:
    return lambda whole, _: nn.init.constant_(whole, value)
