"""Floating-point operations that the mathematics of the model needs, whatever the hardware repeats.

A backward pass counts 2 times the products and 2.5 times the attention of its forward pass: five products of matrices
instead of two, since the scores are made once more. What recompute repeats is not counted.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from sama_mega.config.schema import Recipe

BACKWARD_GEMM, BACKWARD_ATTENTION = 2.0, 2.5
FORMULA = (
    "gemms 2 B (S (6 d^2 + 2 d f) + 2 L d^2), attention 4 B S d (S + L); "
    "backward 2 times the gemms and 2.5 times the attention; what recompute repeats is not counted"
)
"""Of one block: B samples of S tokens and L text tokens, width d, f inside the feed-forward."""
# As torch's FlopCounterMode counts them: for a pixel of 17 frames of 832x480, a token of 512, a frame.
ENCODER_OPERATIONS_PER_PIXEL = 5.1e6
"""Of Wan2.1's VAE."""
ENCODER_OPERATIONS_PER_TOKEN = 9.5e9
"""Of UMT5-xxl."""
ENCODER_OPERATIONS_PER_ANCHOR = 6.7e11
"""Of SigLIP so400m, for one frame."""


@dataclass(frozen=True)
class Flops:
    """Operations of a forward pass.

    Attributes:
        gemm: Products with weights.
        attention: Scores and weighted sums.
    """

    gemm: float
    attention: float

    @property
    def backward(self) -> float:
        """Of the backward pass that belongs to it."""
        return BACKWARD_GEMM * self.gemm + BACKWARD_ATTENTION * self.attention

    @property
    def total(self) -> float:
        """Forward and backward."""
        return self.gemm + self.attention + self.backward

    def __add__(self, other: Flops) -> Flops:
        return Flops(self.gemm + other.gemm, self.attention + other.attention)

    def __mul__(self, times: float) -> Flops:
        return Flops(self.gemm * times, self.attention * times)


def block_flops(dim: int, ffn_dim: int, num_tokens: int, text_length: int) -> Flops:
    """One block on one sample: self-attention, cross-attention to the text, feed-forward."""
    per_token = 6 * dim**2 + 2 * dim * ffn_dim
    return Flops(
        gemm=2 * (num_tokens * per_token + 2 * text_length * dim**2),
        attention=4 * num_tokens * dim * (num_tokens + text_length),
    )


def ends_flops(recipe: Recipe, num_tokens: int, num_semantic: int) -> Flops:
    """What embeds one sample and what reads its tokens out; text, time and semantic features included."""
    model = recipe.model
    patch = math.prod(model.patch_size)
    patches = (num_tokens - num_semantic) * model.dim * patch * model.in_channels
    head = num_tokens * model.dim * patch * model.out_channels
    text = model.text_length * (model.text_dim + model.dim) * model.dim
    time = (model.time_features + 7 * model.dim) * model.dim
    into_semantic = model.semantic_dim * model.semantic_hidden_dim + model.semantic_hidden_dim * model.dim
    semantic = num_semantic * (into_semantic + model.dim * model.semantic_dim)
    return Flops(2.0 * (patches + head + text + time + semantic), 0.0)


def model_flops(recipe: Recipe, num_tokens: int) -> Flops:
    """The whole model on one sample.

    Args:
        recipe: The whole recipe.
        num_tokens: Source, semantic and target tokens together, without padding.
    """
    model = recipe.model
    blocks = block_flops(model.dim, model.ffn_dim, num_tokens, model.text_length) * model.num_layers
    return blocks + ends_flops(recipe, num_tokens, recipe.anchor.num_tokens)


def step_flops(recipe: Recipe, sample_tokens: Iterable[int]) -> float:
    """Forward and backward of one optimizer step over the global batch; the frozen encoders are not counted.

    Args:
        recipe: The whole recipe.
        sample_tokens: Tokens of each sample's sequence.
    """
    # A batch of hundreds has a few lengths.
    return sum(count * model_flops(recipe, length).total for length, count in Counter(sample_tokens).items())
