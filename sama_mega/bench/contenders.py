"""Who takes part in the layer benchmark: this project's block in every recompute mode, and its peers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint

from sama_mega.bench.chain_block import ChainBlock
from sama_mega.bench.inputs import EPS, draw_rotation, rope_tables
from sama_mega.bench.shapes import ModelSize, Workload
from sama_mega.config import build_recipe
from sama_mega.config.schema import Recipe
from sama_mega.model import build_model
from sama_mega.model.diffusers_names import diffusers_name
from sama_mega.model.name_map import from_released, to_released
from sama_mega.model.recompute import run_with_recompute
from sama_mega.parallel.runtime import ParallelContext

Run = Callable[[Tensor, Tensor, Tensor], Tensor]
"""``x [B, S, dim]``, ``time_modulation [B, 6, dim]``, ``text [B, L, dim]`` -> ``[B, S, dim]``."""


@dataclass(frozen=True)
class Contender:
    """A block ready to run.

    Attributes:
        run: Its forward pass.
        weights: Its parameters, as it names them.
        gradients: Gradients of its weights after a backward pass, under the released names, whole.
    """

    run: Run
    weights: tuple[nn.Parameter, ...]
    gradients: Callable[[], dict[str, Tensor]]


Build = Callable[[Mapping[str, Tensor], ModelSize, Workload], Contender]
"""From a block's weights under the released names, in the benchmark's precision but for `modulation`."""


def ours(context: ParallelContext, recompute: str, attention: str, precision: str) -> Build:
    """The block that `train` runs, built by the same function.

    Args:
        context: One rank.
        recompute: `train.recompute`.
        attention: `kernels.attention`.
        precision: `train.precision`.
    """

    def build(weights: Mapping[str, Tensor], size: ModelSize, work: Workload) -> Contender:
        recipe = _recipe_of(size, precision, recompute, attention)
        (model,) = build_model(recipe, context, initialize=False)
        block = model.blocks["0"]
        parameters = dict(block.named_parameters())
        for name, tensor in from_released(weights, parameters, size.num_heads).items():
            parameters[name].data.copy_(tensor)
        rope = rope_tables(size, work, context.device)

        def run(x: Tensor, time_modulation: Tensor, text: Tensor) -> Tensor:
            hidden = run_with_recompute(
                recompute, block, x.transpose(0, 1), time_modulation, text.transpose(0, 1), rope, work.num_tokens
            )
            return hidden.transpose(0, 1)

        return Contender(run, tuple(parameters.values()), lambda: to_released(_gradients(parameters), size.num_heads))

    return build


def chain(recompute: bool = False) -> Build:
    """The unfused chain, as training from the authors' code would run it; with all of it run twice, or not."""

    def build(weights: Mapping[str, Tensor], size: ModelSize, work: Workload) -> Contender:
        held = {name: weight.clone() for name, weight in weights.items()}
        block = ChainBlock(held, size.num_heads, draw_rotation(size, work, held["modulation"].device))
        parameters = {name.removeprefix("_weights.").replace("/", "."): one for name, one in block.named_parameters()}
        return Contender(
            _twice(block) if recompute else block, tuple(parameters.values()), lambda: _gradients(parameters)
        )

    return build


def diffusers(recompute: bool = False, compiled: bool = False) -> Build:
    """The transformer block of the diffusers library, eager or as its `compile_repeated_blocks` compiles it."""

    def build(weights: Mapping[str, Tensor], size: ModelSize, work: Workload) -> Contender:
        from diffusers.models.transformers.transformer_wan import WanTransformerBlock

        block = WanTransformerBlock(
            size.dim, size.ffn_dim, size.num_heads, "rms_norm_across_heads", cross_attn_norm=True, eps=EPS
        )
        theirs = {_diffusers_name(name): tensor.clone() for name, tensor in weights.items()}
        block = block.to(weights["modulation"].device)
        block.load_state_dict(theirs, strict=True, assign=True)
        parameters = {name: block.get_parameter(_diffusers_name(name)) for name in weights}
        factors = draw_rotation(size, work, weights["modulation"].device)
        cosine, sine = (
            part.float().repeat_interleave(2, dim=1)[None, :, None] for part in (factors.real, factors.imag)
        )
        if compiled:
            # For this size alone: after the one that parity is checked at, torch would compile for any.
            torch.compiler.reset()
            block.compile(fullgraph=True, dynamic=False)

        def run(x: Tensor, time_modulation: Tensor, text: Tensor) -> Tensor:
            with cudnn_attention(x):
                output: Tensor = block(x, text, time_modulation, (cosine, sine))
            return output

        return Contender(_twice(run) if recompute else run, tuple(parameters.values()), lambda: _gradients(parameters))

    return build


def _recipe_of(size: ModelSize, precision: str, recompute: str, attention: str) -> Recipe:
    return build_recipe(
        {
            "model": {
                "dim": size.dim,
                "ffn_dim": size.ffn_dim,
                "num_heads": size.num_heads,
                "num_layers": 1,
                "text_length": size.text_length,
                "norm_eps": EPS,
            },
            "train": {
                "stage": 1,
                "steps": 1,
                "run_folder": "unused",
                "precision": precision,
                "recompute": recompute,
            },
            "kernels": {"attention": attention},
        },
        "bench layer",
    )


def _gradients(parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    gradients = {}
    for name, parameter in parameters.items():
        assert parameter.grad is not None, f"{name} has no gradient"
        gradients[name] = parameter.grad
    return gradients


def _twice(run: Run) -> Run:
    def checkpointed(*inputs: Tensor) -> Tensor:
        output: Tensor = checkpoint(run, *inputs, use_reentrant=False, preserve_rng_state=False)
        return output

    return checkpointed


def cudnn_attention(x: Tensor) -> AbstractContextManager[Any]:
    """The fastest attention in torch, for a peer that leaves the choice to torch; in float32 torch's own choice."""
    return sdpa_kernel(SDPBackend.CUDNN_ATTENTION) if x.is_cuda and x.dtype != torch.float32 else nullcontext()


def _diffusers_name(name: str) -> str:
    """Of a block's parameter, from its name in the released checkpoint."""
    theirs = diffusers_name(f"blocks.0.{name}")
    assert theirs is not None, name
    return theirs.removeprefix("blocks.0.")
