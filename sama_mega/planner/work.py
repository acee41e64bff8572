"""The work of one rank on one micro-batch: products, attention, bytes of element-wise operations.

What is padded is computed by the products, and left out by attention.
"""

from __future__ import annotations

import math
from dataclasses import astuple, dataclass

from sama_mega.config.schema import Recipe
from sama_mega.observe.flops import BACKWARD_ATTENTION
from sama_mega.parallel.layout import Layout, Stage
from sama_mega.planner.messages import ELEMENT_BYTES
from sama_mega.planner.rates import Rates
from sama_mega.planner.workload import MicroBatchShape


@dataclass(frozen=True)
class Work:
    """What one rank computes.

    Attributes:
        gemm: Operations in products of matrices.
        attention_forward: Operations in attention's forward pass.
        attention_backward: Operations in its backward pass.
        attention_backward_per_key: The same, divided by the keys.
        moved_bytes: Read and written by element-wise operations.
        block_passes: Passes through a block.
    """

    gemm: float = 0.0
    attention_forward: float = 0.0
    attention_backward: float = 0.0
    attention_backward_per_key: float = 0.0
    moved_bytes: float = 0.0
    block_passes: float = 0.0

    def __add__(self, other: Work) -> Work:
        return Work(*(own + its for own, its in zip(astuple(self), astuple(other), strict=True)))

    def __mul__(self, times: float) -> Work:
        return Work(*(own * times for own in astuple(self)))

    def gemm_seconds(self, rates: Rates) -> float:
        """Of the products."""
        return self.gemm / rates.gemm_flops

    def attention_seconds(self, rates: Rates) -> float:
        """Of attention."""
        backward = self.attention_backward + rates.attention_half_keys * self.attention_backward_per_key
        return self.attention_forward / rates.attention_forward_flops + backward / rates.attention_backward_flops

    def moved_seconds(self, rates: Rates) -> float:
        """Of element-wise operations."""
        return self.moved_bytes / rates.memory_bytes

    def launch_seconds(self, rates: Rates) -> float:
        """Of launches."""
        return self.block_passes * rates.block_pass_seconds

    def seconds(self, rates: Rates) -> float:
        """All of it."""
        parts = self.gemm_seconds, self.attention_seconds, self.moved_seconds, self.launch_seconds
        return sum(part(rates) for part in parts)


@dataclass(frozen=True)
class Passes:
    """The work of a forward pass, of what a backward pass repeats of it, and of the backward pass."""

    forward: Work
    again: Work
    backward: Work

    def __add__(self, other: Passes) -> Passes:
        return Passes(self.forward + other.forward, self.again + other.again, self.backward + other.backward)

    def __mul__(self, times: float) -> Passes:
        return Passes(self.forward * times, self.again * times, self.backward * times)


@dataclass(frozen=True)
class BlockSizes:
    """What a block's work follows from, on one rank.

    Attributes:
        tokens: Samples times the tokens of a context rank, padding included.
        own_tokens: Those between the matrices.
        text_tokens: Samples times text tokens.
        pairs: Of queries and keys in self-attention, without padding; of all samples, over the ranks that share them.
        text_pairs: The same in cross-attention.
        keys: Of self-attention.
        text_keys: Of cross-attention.
        dim: Width.
        ffn_dim: Inside the feed-forward.
        tensor: Degree.
        element_bytes: Of an activation.
    """

    tokens: float
    own_tokens: float
    text_tokens: float
    pairs: float
    text_pairs: float
    keys: int
    text_keys: int
    dim: int
    ffn_dim: int
    tensor: int
    element_bytes: int


def block_sizes(recipe: Recipe, layout: Layout, batch: MicroBatchShape) -> BlockSizes:
    """Sizes of a rank's blocks for a micro-batch."""
    model, samples = recipe.model, batch.num_samples
    queries = samples * batch.num_tokens / (layout.context * layout.tensor)
    own = batch.tokens_per_shard
    return BlockSizes(
        tokens=samples * own * (layout.tensor if layout.sequence else 1),
        own_tokens=samples * own,
        text_tokens=samples * batch.text_length,
        pairs=queries * batch.num_tokens,
        text_pairs=queries * batch.text_length,
        keys=batch.num_tokens,
        text_keys=batch.text_length,
        dim=model.dim,
        ffn_dim=model.ffn_dim,
        tensor=layout.tensor,
        element_bytes=ELEMENT_BYTES[recipe.train.precision],
    )


def block_passes(sizes: BlockSizes, mode: str, trains_weights: bool = True) -> Passes:
    """One block.

    Args:
        sizes: On this rank.
        mode: `train.recompute`.
        trains_weights: False where only low-rank changes are trained: the gradients of weights are not computed.
    """
    gemm = _product(sizes, 4 * sizes.dim + 2 * sizes.ffn_dim + 2 * sizes.dim) + _text_product(sizes)
    attention = 4 * sizes.dim * (sizes.pairs + sizes.text_pairs)
    forward = Work(gemm, attention, moved_bytes=_forward_bytes(sizes), block_passes=1)
    backward = Work(
        gemm=gemm * (2 if trains_weights else 1),
        attention_backward=BACKWARD_ATTENTION * attention,
        attention_backward_per_key=BACKWARD_ATTENTION
        * 4
        * sizes.dim
        * (sizes.pairs / sizes.keys + sizes.text_pairs / sizes.text_keys),
        moved_bytes=_backward_bytes(sizes),
        block_passes=1,
    )
    return Passes(forward, _again(sizes, mode, forward), backward)


def input_gradient_gemm(sizes: BlockSizes) -> float:
    """Operations beside which tokens are gathered again: gradients of what enters qkv, cross-attention's q and ffn."""
    return _product(sizes, 4 * sizes.dim + sizes.ffn_dim)


def _again(sizes: BlockSizes, mode: str, forward: Work) -> Work:
    if mode == "none":
        return Work()
    if mode == "full":
        return forward
    moved = Work(moved_bytes=forward.moved_bytes - _bias_bytes(sizes), block_passes=1)
    if mode == "selective":
        return moved
    repeated = _product(sizes, sizes.dim + sizes.ffn_dim)
    return moved + Work(gemm=repeated, attention_forward=4 * sizes.dim * sizes.text_pairs)


def _product(sizes: BlockSizes, width: int) -> float:
    """Operations of all tokens with matrices of `dim` by so many features together."""
    return 2 * sizes.tokens * sizes.dim * width / sizes.tensor


def _text_product(sizes: BlockSizes) -> float:
    """Operations of the text's keys and values."""
    return 2 * sizes.text_tokens * sizes.dim * 2 * sizes.dim / sizes.tensor


def _forward_bytes(sizes: BlockSizes) -> float:
    """As the kernels' READMEs count them: tensors read and written, each once.

    Of a rank's own tokens: norms and residual sums. Of those of its tensor ranks: norm and rotation of q and k (the
    sums of squares need a pass of their own where ranks add them up), GELU, biases.
    """
    residual = (2 + 4 + 4 + 3) * sizes.own_tokens * sizes.dim
    read_and_written = 2 if sizes.tensor == 1 else 3
    normed = read_and_written * (3 * sizes.tokens + sizes.text_tokens) * sizes.dim / sizes.tensor
    gelu = 2 * sizes.tokens * sizes.ffn_dim / sizes.tensor
    return (residual + normed + gelu) * sizes.element_bytes + _bias_bytes(sizes)


def _bias_bytes(sizes: BlockSizes) -> float:
    split = (4 * sizes.dim + sizes.ffn_dim) / sizes.tensor * sizes.tokens
    return 2 * (split + 3 * sizes.own_tokens * sizes.dim) * sizes.element_bytes


def _backward_bytes(sizes: BlockSizes) -> float:
    residual = (3 + 6 + 4 + 3) * sizes.own_tokens * sizes.dim
    read_and_written = 3 if sizes.tensor == 1 else 5
    normed = read_and_written * (3 * sizes.tokens + sizes.text_tokens) * sizes.dim / sizes.tensor
    gelu = 3 * sizes.tokens * sizes.ffn_dim / sizes.tensor
    # A bias's gradient reads what its sum is of.
    return (residual + normed + gelu) * sizes.element_bytes + _bias_bytes(sizes) / 2


def ends_passes(recipe: Recipe, layout: Layout, batch: MicroBatchShape, stage: Stage) -> Passes:
    """What one stage does beside its blocks: embeddings of text and time, of tokens on the first, heads on the last.

    Tokens are shared by the ranks of the sequence; text is not, and of time's products the projection is.
    """
    model, samples = recipe.model, batch.num_samples
    patch, shards = math.prod(model.patch_size), batch.num_shards
    per_sample: float = model.text_length * (model.text_dim + model.dim) * model.dim
    per_sample += (model.time_features + model.dim + 6 * model.dim / layout.tensor) * model.dim
    moved_tokens = 0.0
    if stage.is_first:
        patches = (batch.source_tokens + batch.target_tokens) * model.dim * patch * model.in_channels
        mlp = model.semantic_hidden_dim * (model.semantic_dim + model.dim)
        per_sample += (patches + batch.num_semantic * mlp) / shards
        moved_tokens += 4 * batch.num_tokens / shards
    if stage.is_last:
        head = batch.num_tokens * model.dim * patch * model.out_channels
        per_sample += (head + batch.num_semantic * model.dim * model.semantic_dim) / shards
        moved_tokens += 2 * batch.num_tokens / shards
    forward = Work(
        gemm=2 * samples * per_sample,
        moved_bytes=samples * moved_tokens * model.dim * ELEMENT_BYTES[recipe.train.precision],
    )
    return Passes(forward, Work(), forward * 2)
