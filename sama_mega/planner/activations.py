"""What autograd and the repeated pass hold between the forward and the backward pass of a micro-batch, in bytes.

Counted from the code, tensor by tensor: nothing is fitted. `fused` operations are the Triton ones, of which each says
in `kernels/sama_kernels/<op>/autograd.py` what it keeps; the others are written out in `reference.py` and hold what
autograd needs of every step, for bfloat16 in float32 copies.

Legend: T tokens of this rank between the matrices times samples; U those inside them (of all tensor ranks under
sequence parallel); R text tokens times samples; d width, w a tensor rank's share of it, f a tensor rank's share of the
feed-forward, h a tensor rank's heads; e bytes of a value.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from sama_mega.config.schema import Recipe
from sama_mega.parallel.layout import Layout, Stage
from sama_mega.planner.rank_parameters import BYTES
from sama_mega.planner.workload import MicroBatchShape

_FLOAT = 4
_KEPT_BY = {
    "selective": frozenset({"cross_q", "cross_attention", "ffn_input"}),
    "selective_ffn": frozenset[str](),
}
"""By mode: what it keeps that `selective_ffn` runs again; see ``KEPT`` in `sama_mega/model/recompute.py`."""


@dataclass(frozen=True)
class BlockSizes:
    """One micro-batch in one block of one rank; the module's legend says T, U, R, d, w, f and h.

    Attributes:
        samples: Of the micro-batch.
        own: T.
        inside: U.
        text: R.
        dim: d.
        local_dim: w.
        ffn: f.
        heads: h.
        num_bytes: e.
        exchanging: Context ranks that exchange heads for tokens.
        gathering: Context ranks that gather keys and values.
        has_padding: Whether some rank holds padding, which attention does not see.
    """

    samples: int
    own: int
    inside: int
    text: int
    dim: int
    local_dim: int
    ffn: int
    heads: int
    num_bytes: int
    exchanging: int
    gathering: int
    has_padding: bool

    @classmethod
    def of(cls, recipe: Recipe, layout: Layout, batch: MicroBatchShape) -> BlockSizes:
        """The sizes of a micro-batch in a layout."""
        model, samples = recipe.model, batch.num_samples
        own = batch.tokens_per_shard * samples
        return cls(
            samples=samples,
            own=own,
            inside=own * (layout.tensor if layout.sequence else 1),
            text=batch.text_length * samples,
            dim=model.dim,
            local_dim=model.dim // layout.tensor,
            ffn=model.ffn_dim // layout.tensor,
            heads=model.num_heads // layout.tensor,
            num_bytes=BYTES[recipe.train.precision],
            exchanging=layout.ulysses,
            gathering=layout.context // layout.ulysses,
            has_padding=batch.num_padded_tokens > batch.num_tokens,
        )


@dataclass(frozen=True)
class Kernels:
    """What computes the operations, as far as memory goes.

    Attributes:
        fused: Whether the Triton operations run.
        written_out: Whether attention is the reference, which holds all scores.
    """

    fused: bool
    written_out: bool = False

    @classmethod
    def of(cls, recipe: Recipe, on_gpu: bool) -> Kernels:
        """What a recipe runs; see `sama_kernels/dispatch.py`."""
        ops = recipe.kernels.ops
        return cls(ops == "triton" or (ops == "auto" and on_gpu), recipe.kernels.attention == "reference")


def block_bytes(recipe: Recipe, sizes: BlockSizes, kernels: Kernels) -> int:
    """What one block holds between the passes in the recipe's mode, its input included.

    Without recompute: `whole_block_bytes`. Otherwise the input and, by mode (``KEPT`` in
    `sama_mega/model/recompute.py`): the products qkv (3 U w), attention's output and log-sum-exp (U w and 4 bytes times
    U h), its projection (T d), the text's keys and values (2 R w), the cross-attention's projection (T d), the
    feed-forward's output (T d); ``selective`` also the cross-attention's queries and output (2 U w and 4 U h bytes) and
    the feed-forward's input product (U f).
    """
    mode = recipe.train.recompute
    if mode == "none":
        return whole_block_bytes(recipe, sizes, kernels)
    own, inside, text, e = sizes.own, sizes.inside, sizes.text, sizes.num_bytes
    held = own * sizes.dim * e
    if mode == "full":
        return held
    log_sum_exp = inside * sizes.heads * _FLOAT
    held += e * (4 * inside * sizes.local_dim + 3 * own * sizes.dim + 2 * text * sizes.local_dim) + log_sum_exp
    if mode == "selective":
        held += e * inside * (2 * sizes.local_dim + sizes.ffn) + log_sum_exp
    return held


def whole_block_bytes(recipe: Recipe, sizes: BlockSizes, kernels: Kernels) -> int:
    """All that one block holds for its backward pass, its input included.

    Fused, in values: the input, the three norms' outputs and the two residual sums (6 T d, each with two float32
    numbers a token where a norm reads it), both gated branches (2 T d), qkv (3 U w), normed q and k (2 U w),
    attention's output (U w), the cross-attention's q, normed q and output (3 U w), k, v and normed k of the text (3 R
    w), the feed-forward's hidden values before and after GELU (2 U f); float32: a log-sum-exp a token and head of both
    attentions, an inverse root mean square a token of each q and k, the modulation (6 d a sample).

    Written out, besides: the modulated norms before modulation (2 T d), q and k before their weight (3 U w and R w),
    all float32; in bfloat16 the norms', gates' and q/k norms' inputs are copies in float32 of which the originals go.

    Context ranks: exchanging heads copies v and the output (2 U w); gathering holds everybody's keys and values. With
    padding the projection reads a padded copy of attention's output (U w).
    """
    own, inside, text, d, w = sizes.own, sizes.inside, sizes.text, sizes.dim, sizes.local_dim
    e = sizes.num_bytes
    held = e * (8 * own * d + 9 * inside * w + 3 * text * w + 2 * inside * sizes.ffn)
    held += _FLOAT * (3 * 2 * own + 2 * inside * sizes.heads + 3 * inside + text + 6 * sizes.samples * d)
    held += _context_bytes(sizes)
    if recipe.lora.rank:
        held += _low_rank_bytes(recipe, sizes)
    if not kernels.fused:
        held += _written_out_bytes(sizes, is_frozen=recipe.lora.rank > 0)
    if kernels.written_out:
        # The scores give the output head by head; the projection reads a copy.
        held += e * 2 * inside * w
    return held


def _context_bytes(sizes: BlockSizes) -> int:
    """`sama_mega/model/context_attention.py`: instead of q, k, v and the output it works on what was sent."""
    values = sizes.inside * sizes.local_dim * sizes.num_bytes
    held = 2 * values if sizes.exchanging > 1 else values if sizes.has_padding else 0
    if sizes.gathering > 1:
        # What q travelled with stays with it; keys alone would go.
        held += 2 * sizes.gathering * values - (0 if sizes.exchanging > 1 else values)
    return held


def _written_out_bytes(sizes: BlockSizes, is_frozen: bool) -> int:
    """What `whole_block_bytes` says; frozen, nothing is held for the gradients of gates, scales and norms' weights."""
    own, inside, text, d, w, e = sizes.own, sizes.inside, sizes.text, sizes.dim, sizes.local_dim, sizes.num_bytes
    held = -e * 2 * own * d if is_frozen else _FLOAT * (2 * own * d + 3 * inside * w + text * w + 2 * sizes.samples * d)
    if e < _FLOAT:
        # x, both residuals: norms; two branches: gates.
        held += (_FLOAT - e) * (3 if is_frozen else 5) * own * d
        # Copies of q and k; what v shares with them stays, the cross-attention's q does not.
        held += _FLOAT * (3 * inside * w + text * w) - e * inside * w
        held += _FLOAT * (4 * w + 2 * d)
    return held


def _low_rank_bytes(recipe: Recipe, sizes: BlockSizes) -> int:
    """The inner values of every changed linear (`sama_mega/model/low_rank.py`)."""
    rows = {"cross_attn.linear_kv": sizes.text}
    return sum(recipe.lora.rank * rows.get(target, sizes.inside) * sizes.num_bytes for target in recipe.lora.targets)


def embedding_bytes(recipe: Recipe, layout: Layout, batch: MicroBatchShape, stage: Stage) -> int:
    """What the embeddings hold for their backward pass: nothing where they are frozen.

    Every stage: the text as its first linear reads it, its hidden values before and after GELU and its result, whole on
    every tensor rank. The first stage: the patches (64 values a token) and the semantic tokens through their norm and
    two linears (`sama_mega/model/embeddings.py`).
    """
    model, e, samples = recipe.model, BYTES[recipe.train.precision], batch.num_samples
    text = batch.text_length * samples
    held = text * model.dim * e
    if recipe.lora.rank:
        return held
    held += text * (model.text_dim + 2 * model.dim) * e
    held += _FLOAT * samples * (model.time_features + 9 * model.dim)
    if stage.is_first:
        patch = model.in_channels * prod(model.patch_size)
        shards = 1 if e == _FLOAT else layout.sequence_shards
        held += -(-(batch.source_tokens + batch.target_tokens) // shards) * samples * patch * e
        semantic = samples * batch.num_semantic
        held += semantic * (
            _FLOAT * (model.semantic_dim + 2) + e * (model.semantic_dim + 2 * model.semantic_hidden_dim)
        )
    return held


def rotary_bytes(recipe: Recipe, layout: Layout, batch: MicroBatchShape, kernels: Kernels) -> int:
    """The rotary factors of a context rank's tokens, of which the fused operations need none."""
    return 0 if kernels.fused else batch.num_padded_tokens // layout.context * recipe.model.head_dim * _FLOAT


def head_bytes(recipe: Recipe, layout: Layout, batch: MicroBatchShape, kernels: Kernels) -> int:
    """What the last stage holds besides its blocks: head and losses.

    The last block's output, the head's norm of it (T d each), the velocity and its target, whole on every rank
    (`sama_mega/model/heads.py`, `kernels/sama_kernels/flow_matching`; written out: their difference instead).
    """
    model, e, samples = recipe.model, BYTES[recipe.train.precision], batch.num_samples
    own = batch.tokens_per_shard * samples
    velocity = batch.target_tokens * samples * model.out_channels * prod(model.patch_size) * _FLOAT
    semantic = batch.num_semantic * samples
    held = own * model.dim * e + own * 2 * _FLOAT + semantic * (2 * _FLOAT + model.dim * e)
    is_trained = not recipe.lora.rank
    if is_trained:
        held += own * model.dim * e + 2 * samples * model.dim * _FLOAT
    if kernels.fused:
        return held + 2 * velocity + semantic * model.semantic_dim
    held += velocity + semantic * model.semantic_dim * _FLOAT + (own * model.dim * _FLOAT if is_trained else 0)
    if e < _FLOAT:
        held += (_FLOAT - e) * own * model.dim + _FLOAT * semantic * model.dim
    return held


def backward_bytes(recipe: Recipe, sizes: BlockSizes, kernels: Kernels) -> int:
    """The most that a backward pass through one block holds for a while, beyond what was held before it began.

    What the repeated forward pass makes again, and at the feed-forward, where all of it is still there: the
    gradients of the stream and of the branch (2 T d), of the hidden values (U f), of the second product's weight (d f),
    and under sequence parallel the gathered gradient (U d).
    """
    own, inside, d, e = sizes.own, sizes.inside, sizes.dim, sizes.num_bytes
    again = max(0, whole_block_bytes(recipe, sizes, kernels) - block_bytes(recipe, sizes, kernels))
    gathered = inside * d if inside > own else 0
    return again + e * (2 * own * d + gathered + inside * sizes.ffn + (0 if recipe.lora.rank else d * sizes.ffn))


def attention_workspace_bytes(sizes: BlockSizes, kernels: Kernels, num_tokens: int) -> int:
    """What attention's backward pass holds beyond what `backward_bytes` counts at the feed-forward.

    The feed-forward's and the cross-attention's tensors (3 U f, 3 T d, 3 U w) are gone by then. Instead there are the
    gradients of q, k, v and of the output (4 U w; of all gathered keys and values), and fused: float32 sums of q's
    gradient (U w) and two numbers a token and head; written out: scores, their softmax and both gradients, of every
    head, and float32 copies of q, k and v.
    """
    values, e = sizes.inside * sizes.local_dim, sizes.num_bytes
    held = e * (2 + 2 * sizes.gathering) * values
    if kernels.written_out:
        keys = num_tokens * sizes.samples
        held += _FLOAT * (4 * sizes.heads * sizes.inside // max(1, sizes.samples) * keys + 3 * values)
    else:
        held += _FLOAT * (values + 2 * sizes.inside * sizes.heads)
    gone = e * (3 * sizes.inside * sizes.ffn + 3 * sizes.own * sizes.dim + 3 * values)
    return max(0, held - gone)
