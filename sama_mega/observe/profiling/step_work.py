"""What a step has to compute and to move on one rank, by group of operations: what the measured times are held against.

Operations are those of `sama_mega.observe.flops` and what recompute repeats, since a device does both. Bytes are what
must be read and written once; a cache or an unfused operation changes what really travels.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from sama_mega.config.schema import Recipe
from sama_mega.observe.flops import BACKWARD_ATTENTION, BACKWARD_GEMM, Flops, block_flops, ends_flops
from sama_mega.observe.profiling.kernel_groups import Group

_NORM_FORWARD, _NORM_BACKWARD = 13, 16
"""Tensors ``[S, B, width]`` that a block's fused norms, gates and residuals read and write."""
_LOSS_TENSORS, _NOISE_TENSORS = 5, 4
_UPDATE_BYTES, _AVERAGE_BYTES, _GRADIENT_BYTES = 28, 12, 8
"""Of float32 AdamW: weight, gradient and two moments read, three written. Of the average: two read, one written. Of the
gradient besides: cleared, and read for its norm."""


@dataclass(frozen=True)
class SeenBatch:
    """A micro-batch that went through the model.

    Attributes:
        samples: In it.
        num_tokens: Of each sample's sequence, without padding.
        num_values: Of all its target latents.
    """

    samples: int
    num_tokens: int
    num_values: int


@dataclass(frozen=True)
class RankShare:
    """Which part of the model a rank computes.

    Attributes:
        layers: Its blocks.
        ends: Its part of what embeds tokens and reads them out.
        split: Ranks that share the products and the attention of those blocks.
        parameters: Whose masters and moments it owns.
    """

    layers: int
    ends: float
    split: int
    parameters: int


@dataclass(frozen=True)
class Work:
    """Of one group in one step; None where nobody has counted.

    Attributes:
        flops: Operations.
        num_bytes: Read and written.
    """

    flops: float | None = None
    num_bytes: float | None = None


def step_work(recipe: Recipe, batches: Iterable[SeenBatch], steps: int, share: RankShare) -> dict[str, Work]:
    """The work of an average step.

    Args:
        recipe: The whole recipe.
        batches: Micro-batches of all the steps.
        steps: How many.
        share: The rank's.

    Returns:
        By group; groups without figures are left out.
    """
    flops = {Group.GEMM: 0.0, Group.ATTENTION_FORWARD: 0.0, Group.ATTENTION_BACKWARD: 0.0}
    moved = {Group.NORMS: 0.0, Group.ROPE: 0.0, Group.LOSS: 0.0, Group.NOISE: 0.0}
    for batch in batches:
        for group, count in _flops(recipe, batch, share).items():
            flops[group] += count / steps
        for group, count in _bytes(recipe, batch, share).items():
            moved[group] += count / steps
    copied = 6 if recipe.train.precision == "bfloat16" else 0
    moved[Group.OPTIMIZER] = (_UPDATE_BYTES + _GRADIENT_BYTES + copied) * share.parameters
    if recipe.optimizer.ema_device == "device":
        moved[Group.AVERAGE] = _AVERAGE_BYTES * share.parameters
    if recipe.lora.rank:  # most weights have no gradient: the formulas do not hold
        flops = {}
    known = {group: Work(flops=count) for group, count in flops.items()}
    return known | {group: Work(num_bytes=count) for group, count in moved.items()}


def _flops(recipe: Recipe, batch: SeenBatch, share: RankShare) -> dict[str, float]:
    model = recipe.model
    block = block_flops(model.dim, model.ffn_dim, batch.num_tokens, model.text_length)
    repeated = _repeated(recipe, batch.num_tokens)
    ends = ends_flops(recipe, batch.num_tokens, recipe.anchor.num_tokens).gemm * share.ends
    factor = batch.samples * share.layers / share.split
    per_sample_ends = batch.samples * ends / share.split
    return {
        Group.GEMM: factor * (block.gemm * (1 + BACKWARD_GEMM) + repeated.gemm) + 3 * per_sample_ends,
        Group.ATTENTION_FORWARD: factor * (block.attention + repeated.attention),
        Group.ATTENTION_BACKWARD: factor * block.attention * BACKWARD_ATTENTION,
    }


def _repeated(recipe: Recipe, num_tokens: int) -> Flops:
    """What a block computes again in its backward pass: see `sama_mega.model.recompute.KEPT`."""
    model, mode = recipe.model, recipe.train.recompute
    if mode == "full":
        return block_flops(model.dim, model.ffn_dim, num_tokens, model.text_length)
    if mode == "selective_ffn":
        products = 2 * num_tokens * (model.dim**2 + model.dim * model.ffn_dim)
        return Flops(products, 4 * num_tokens * model.dim * model.text_length)
    return Flops(0.0, 0.0)


def _bytes(recipe: Recipe, batch: SeenBatch, share: RankShare) -> dict[str, float]:
    model, train = recipe.model, recipe.train
    item = 2 if train.precision == "bfloat16" else 4
    passes = 1 if train.recompute == "none" else 2
    row = batch.samples * share.layers * model.dim * item / share.split
    own, text = batch.num_tokens, model.text_length
    rotated, turned_back = 6 * own + 2 * text, 9 * own + 3 * text
    return {
        Group.NORMS: row * own * (passes * _NORM_FORWARD + _NORM_BACKWARD),
        Group.ROPE: row * (passes * rotated + turned_back),
        Group.LOSS: 4.0 * _LOSS_TENSORS * batch.num_values,
        Group.NOISE: 4.0 * _NOISE_TENSORS * batch.num_values,
    }
