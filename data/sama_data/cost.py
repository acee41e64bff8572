"""How long a sample will take to train on, from what is known of it before it is read."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sama_data.buckets import FRAMES_PER_LATENT

PIXELS_PER_TOKEN_SIDE = 16  # 8 in the video encoder, 2 in the patch
_NANOSECONDS = 1e9
_MATMUL_FLOPS_PER_SECOND = 680e12
_ATTENTION_FLOPS_PER_SECOND = 534e12
# Forward and backward: 6 operations a weight and token; 4 + 10 a pair of tokens and channel, where the backward
# pass multiplies queries and keys once more.
_FLOPS_PER_WEIGHT = 6
_ATTENTION_FLOPS = 14
# Norms, modulation, rotary embedding: bound by memory, so by the width.
_ELEMENTWISE_SECONDS_PER_CHANNEL = 1.746e-10
# Of a text of 512 tokens, in tokens of the sequence: its keys and values, and what else every sample costs.
_TOKENS_OF_A_TEXT_TOKEN = 288 / 512
# What a micro-batch costs beside its samples, in tokens: launches and the latency of collectives, about 0.2 ms at
# the 14B model's width. An estimate, not a measurement.
_TOKENS_OF_A_CALL = 64


@dataclass(frozen=True)
class CostModel:
    """Predicts the time of one block's forward and backward pass over one sample on an H200, in nanoseconds.

    With n = source + semantic + target tokens and d = `dim`::

        seconds(n) = linear * (n + 0.5625 * text_length) + 14 * d * n**2 / 534e12
        linear     = 6 * (6 * d**2 + 2 * d * ffn_dim) / 680e12 + 1.746e-10 * d

    Times weigh samples against each other: blocks, recomputation and model-parallel ranks scale all of them alike,
    and encoders are left out. They are whole numbers, so that sums of them are exact and every rank deals alike.

    Fitted to three measurements of the 14B block: 65,585 tokens 0.810 s, 40,625 tokens 0.366 s, 8 samples of 3,185
    tokens 0.109 s; the error is 0.01 %, as three coefficients must have it. What was not fitted: attention alone
    takes 0.577 s of the first (measured: 0.566 s), matrix products 0.173 s (measured: 0.173 s). An 81-frame pair
    takes 59.5 times an image pair's time. Other widths follow from the formula; none was measured.

    Attributes:
        dim: The model's width.
        ffn_dim: The width inside its feed-forward layers.
        semantic_tokens: Semantic tokens of a sample.
        text_length: Text tokens of a sample.
        ranks_per_sample: Tensor times context parallel ranks. They share a sample's time, not a call's latency.
    """

    dim: int = 5120
    ffn_dim: int = 13824
    semantic_tokens: int = 65
    text_length: int = 512
    ranks_per_sample: int = 1

    @property
    def linear_seconds_per_token(self) -> float:
        """Everything but attention, for one token."""
        weights = 6 * self.dim**2 + 2 * self.dim * self.ffn_dim
        matmuls = _FLOPS_PER_WEIGHT * weights / _MATMUL_FLOPS_PER_SECOND
        return matmuls + _ELEMENTWISE_SECONDS_PER_CHANNEL * self.dim

    @property
    def call_nanoseconds(self) -> int:
        """What one more micro-batch costs, whatever is in it."""
        return round(_TOKENS_OF_A_CALL * self.ranks_per_sample * self.linear_seconds_per_token * _NANOSECONDS)

    def nanoseconds(self, tokens: NDArray[np.int64]) -> NDArray[np.int64]:
        """Returns the predicted time of samples by their tokens, both int64 of any shape; at least 1."""
        text = _TOKENS_OF_A_TEXT_TOKEN * self.text_length
        linear = self.linear_seconds_per_token * (tokens + text)
        attention = _ATTENTION_FLOPS * self.dim / _ATTENTION_FLOPS_PER_SECOND * np.square(tokens.astype(np.float64))
        return np.maximum(1, np.rint((linear + attention) * _NANOSECONDS)).astype(np.int64)

    def tokens(
        self,
        width: NDArray[np.int64],
        height: NDArray[np.int64],
        num_frames: NDArray[np.int64],
        source_frames: NDArray[np.int64],
    ) -> NDArray[np.int64]:
        """Returns the sequence's tokens of samples: source, semantic and target.

        Args:
            width: Pixels of the bucket, like `height`; int64 of one shape, like the others.
            height: Lines.
            num_frames: Frames of the target, 4k+1.
            source_frames: Frames of the source, 4k+1.
        """
        per_latent = np.maximum(1, width // PIXELS_PER_TOKEN_SIDE) * np.maximum(1, height // PIXELS_PER_TOKEN_SIDE)
        latents = 2 + (num_frames - 1) // FRAMES_PER_LATENT + (source_frames - 1) // FRAMES_PER_LATENT
        return per_latent * latents + self.semantic_tokens
