"""What every rank sends in a training step: the tables of docs/parallelism.md as code.

A test holds these rows equal to the document's, and `tests/distributed/test_traffic.py` holds the document's to what
ranks really send.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from sama_mega.config.schema import Recipe
from sama_mega.parallel.layout import Layout
from sama_mega.planner.workload import MicroBatchShape

ELEMENT_BYTES = {"float32": 4, "bfloat16": 2}
"""Of an activation, by `train.precision`."""
Collective = Literal["all-gather", "reduce-scatter", "all-reduce", "all-to-all", "send", "broadcast"]
Group = Literal[
    "tensor", "exchange", "gather", "sequence", "pipeline", "copy", "data", "world", "host"
]  # as the document names them


@dataclass(frozen=True)
class Message:
    """Equal messages of one rank.

    Attributes:
        what: What travels, in the document's words.
        collective: How.
        group: Among whom.
        count: How many.
        num_bytes: What this rank hands over, of each.
    """

    what: str
    collective: Collective
    group: Group
    count: int
    num_bytes: float


@dataclass(frozen=True)
class Names:
    """What the document's formulas are made of: of one rank and one micro-batch.

    Attributes:
        tp: Tensor degree.
        cp: Context degree.
        pp: Pipeline degree.
        dp: Data degree.
        sp: Sequence parallel.
        u: Context ranks that exchange heads.
        v: Stages of a pipeline rank.
        before: Of the rank's stages, those that have a stage before them.
        after: Those that have one after them.
        last: The rank has the last stage.
        mode: `train.recompute`.
        dim: Width.
        features_of_velocity: Of one token, the document's `P`.
        element_bytes: Of an activation, `e`.
        samples: Of the micro-batch, `B`.
        tokens: Of one sample, `N`.
        source_tokens: Of one sample, `X`.
        target_tokens: Of one sample, `Y`.
        semantic_tokens: Of one sample, `M`.
        text_tokens: Of one sample, `L`.
        text_width: `text`.
        semantic_width: `features`.
    """

    tp: int
    cp: int
    pp: int
    dp: int
    sp: bool
    u: int
    v: int
    before: int
    after: int
    last: bool
    mode: str
    dim: int
    features_of_velocity: int
    element_bytes: int
    samples: int
    tokens: int
    source_tokens: int
    target_tokens: int
    semantic_tokens: int
    text_tokens: int
    text_width: int
    semantic_width: int

    @property
    def g(self) -> int:
        """Context ranks that gather keys and values."""
        return self.cp // self.u

    @property
    def own_tokens(self) -> int:
        """Of a rank between the matrices, `s`."""
        return math.ceil(self.tokens / (self.cp * self.tp if self.sp else self.cp))

    @property
    def context_tokens(self) -> int:
        """Of a context rank, `S`."""
        return self.own_tokens * self.tp if self.sp else self.own_tokens

    @property
    def crossed(self) -> bool:
        """Whether megatron-core sends this rank's tensors through the world group."""
        return self.v > 1 and self.pp == 2 and self.last

    @property
    def own_hidden(self) -> int:
        """Bytes of the hidden state between the matrices."""
        return self.own_tokens * self.samples * self.dim * self.element_bytes

    @property
    def hidden(self) -> int:
        """Bytes of the hidden state of a context rank's tokens."""
        return self.context_tokens * self.samples * self.dim * self.element_bytes

    @property
    def heads(self) -> float:
        """Bytes of one of q, k and v on a rank."""
        return self.hidden / self.tp

    @property
    def statistics(self) -> int:
        """Bytes of the sums of squares of q and k."""
        return 2 * self.context_tokens * self.samples * 4

    @property
    def text_statistics(self) -> int:
        """Bytes of the sums of squares of q and text's k."""
        return (self.context_tokens + self.text_tokens) * self.samples * 4

    @property
    def alone(self) -> bool:
        """Whether a model copy is on one rank."""
        return self.tp * self.cp * self.pp == 1

    @property
    def ranks(self) -> int:
        """All of them."""
        return self.tp * self.cp * self.pp * self.dp


_Row = tuple[bool, Message]


def _sent(rows: Iterable[_Row]) -> list[Message]:
    return [message for when, message in rows if when and message.count]


def block_forward(n: Names) -> list[Message]:
    """Of one block's forward pass."""
    enter, leave = "tokens, to enter qkv, cross-attention's q, feed-forward", "products, to leave self-attention"
    return _sent(
        [
            (n.sp, Message(enter, "all-gather", "tensor", 3, n.own_hidden)),
            (n.sp, Message(f"{leave}, cross-attention, feed-forward", "reduce-scatter", "tensor", 3, n.hidden)),
            (_sums_whole(n), Message("the same without sequence parallel", "all-reduce", "tensor", 3, n.hidden)),
            *_attention(n, again=True),
        ]
    )


def block_again(n: Names) -> list[Message]:
    """Of what one block's backward pass repeats of the forward pass."""
    enter, leave = "tokens, to enter qkv, cross-attention's q, feed-forward", "products, to leave self-attention"
    full, ffn = n.mode == "full", n.mode == "selective_ffn"
    inner = "tokens, to enter cross-attention's q, feed-forward"
    return _sent(
        [
            (n.sp and full, Message(enter, "all-gather", "tensor", 3, n.own_hidden)),
            (n.sp and ffn, Message(inner, "all-gather", "tensor", 2, n.own_hidden)),
            (
                n.sp and full,
                Message(f"{leave}, cross-attention, feed-forward", "reduce-scatter", "tensor", 3, n.hidden),
            ),
            (
                _sums_whole(n) and full,
                Message("the same without sequence parallel", "all-reduce", "tensor", 3, n.hidden),
            ),
            *_attention(n, again=n.mode != "none"),
        ]
    )


def _attention(n: Names, again: bool) -> list[_Row]:
    parallel, exchanged, gathered = n.tp > 1 and again, n.u > 1 and again, n.g > 1 and again
    back = "what attention gives: tokens for heads"
    return [
        (parallel, Message("sums of squares of q and k", "all-reduce", "tensor", 1, n.statistics)),
        (parallel, Message("sums of squares of q and text's k", "all-reduce", "tensor", 1, n.text_statistics)),
        (exchanged, Message("q, k, v: heads for tokens", "all-to-all", "exchange", 1, 3 * n.heads)),
        (gathered, Message("keys and values", "all-gather", "gather", 1, 2 * n.heads)),
        (exchanged, Message(back, "all-to-all", "exchange", 1, n.heads)),
    ]


TOKENS_AGAIN = "tokens again, for the gradients of weights"
"""They travel while the gradient of what the weights were multiplied with is computed."""
TOKEN_GRADIENTS = ("gradients of the tokens", "the same without sequence parallel")
"""They travel while the gradients of the weights are computed."""


def block_backward(n: Names) -> list[Message]:
    """Of one block's backward pass."""
    parallel, keys = n.tp > 1, "gradients of everybody's keys and values"
    squares = "gradients of the sums of squares"
    with_sequence, without_sequence = TOKEN_GRADIENTS
    return _sent(
        [
            (n.sp, Message("gradients of the products", "all-gather", "tensor", 3, n.own_hidden)),
            (n.sp, Message(TOKENS_AGAIN, "all-gather", "tensor", 3, n.own_hidden)),
            (n.sp, Message(with_sequence, "reduce-scatter", "tensor", 3, n.hidden)),
            (_sums_whole(n), Message(without_sequence, "all-reduce", "tensor", 3, n.hidden)),
            (parallel, Message(squares, "all-reduce", "tensor", 1, n.statistics)),
            (parallel, Message(f"{squares}, with text", "all-reduce", "tensor", 1, n.text_statistics)),
            (n.u > 1, Message("gradient of what attention gives", "all-to-all", "exchange", 1, n.heads)),
            (n.g > 1, Message(keys, "reduce-scatter", "gather", 1, n.g * 2 * n.heads)),
            (n.u > 1, Message("gradients of q, k, v", "all-to-all", "exchange", 1, 3 * n.heads)),
        ]
    )


def micro_batch_forward(n: Names) -> list[Message]:
    """Of a micro-batch's forward pass outside the blocks, and between stages both ways."""
    modulation = n.samples * 6 * n.dim / n.tp * 4
    velocity = n.own_tokens * n.samples * n.features_of_velocity * 4
    steps, hand_over = n.before + n.after, "tokens to the stage after, gradients to the stage before"
    crossing = "the same where megatron-core crosses"
    return _sent(
        [
            (
                n.tp > 1,
                Message("modulation, float32, from the projection's parts", "all-gather", "tensor", n.v, modulation),
            ),
            (
                n.last and (n.cp > 1 or n.sp),
                Message("velocity, float32, for the loss", "all-gather", "sequence", 1, velocity),
            ),
            (n.pp > 1 and not n.crossed, Message(hand_over, "send", "pipeline", steps, n.own_hidden)),
            (n.crossed, Message(crossing, "send", "world", steps, n.own_hidden)),
        ]
    )


def micro_batch_backward(n: Names) -> list[Message]:
    """Of a micro-batch's backward pass outside the blocks."""
    text = n.text_tokens * n.samples * n.dim * n.element_bytes
    modulation, vector = n.samples * 6 * n.dim * 4, n.samples * n.dim * 4
    return _sent(
        [
            (n.sp, Message("gradient of the modulation", "reduce-scatter", "tensor", n.v, modulation)),
            (_sums_whole(n), Message("gradient of the time vector", "all-reduce", "tensor", n.v, vector)),
            (
                n.tp > 1,
                Message("gradient of the text, from all blocks of a stage", "all-reduce", "tensor", n.v, text),
            ),
        ]
    )


def encoding(n: Names) -> list[Message]:
    """Of a micro-batch's encoding, which the ranks of a model copy share."""
    widths = {
        "target latents, float32": n.target_tokens * n.features_of_velocity,
        "source latents, float32": n.source_tokens * n.features_of_velocity,
        "semantic features, float32": n.semantic_tokens * n.semantic_width,
        "text embeddings, float32": n.text_tokens * n.text_width,
    }
    return _sent(
        (not n.alone, Message(what, "broadcast", "copy", 1, n.samples * width * 4)) for what, width in widths.items()
    )


def optimizer_step(n: Names, tensor_copies: int, stage_copies: int, num_slots: int) -> list[Message]:
    """Of an optimizer step; only the layout is read of the names.

    Args:
        n: The names.
        tensor_copies: Elements that the rank updates and tensor ranks have copies of, under `sp`; `Q`.
        stage_copies: Those that stages have copies of, `C`.
        num_slots: Samples of the step.
    """
    several, agree = n.ranks > 1, "do all ranks have their samples, and the same ones?"
    tensor = Message("gradients with copies on tensor ranks", "all-reduce", "tensor", 1, tensor_copies * 4)
    return _sent(
        [
            (several, Message(agree, "all-reduce", "host", 1, (n.dp + 1) * 2 * 8)),
            (n.sp, tensor),
            (n.pp > 1, Message("gradients with copies on stages", "all-reduce", "pipeline", 1, stage_copies * 4)),
            (several, Message("table of losses", "all-reduce", "world", 1, 7 * num_slots * 8)),
            (several, Message("gradient norm", "all-reduce", "world", 1, 8)),
        ]
    )


def bucket(n: Names, num_elements: int, parameter_bytes: int) -> list[Message]:
    """Of one bucket of gradients in an optimizer step.

    Args:
        n: The names; only the layout is read.
        num_elements: Of the bucket, padding included; `G`.
        parameter_bytes: Of an element of its parameters, `p`.
    """
    shares = n.dp * n.cp
    parameters = num_elements * parameter_bytes / shares
    return _sent(
        [
            (shares > 1, Message("gradients, float32", "reduce-scatter", "data", 1, num_elements * 4)),
            (shares > 1, Message("parameters", "all-gather", "data", 1, parameters)),
        ]
    )


def _sums_whole(n: Names) -> bool:
    """Tensor ranks without sequence parallelism add up whole hidden states."""
    return n.tp > 1 and not n.sp


def names_of(recipe: Recipe, layout: Layout, pipeline_rank: int, batch: MicroBatchShape) -> Names:
    """The numbers of a rank's micro-batch."""
    model, stages = recipe.model, [layout.stage(index) for index in layout.stages_of(pipeline_rank)]
    return Names(
        tp=layout.tensor,
        cp=layout.context,
        pp=layout.pipeline,
        dp=layout.data,
        sp=layout.sequence,
        u=layout.ulysses,
        v=layout.interleave,
        before=sum(not stage.is_first for stage in stages),
        after=sum(not stage.is_last for stage in stages),
        last=any(stage.is_last for stage in stages),
        mode=recipe.train.recompute,
        dim=model.dim,
        features_of_velocity=model.out_channels * math.prod(model.patch_size),
        element_bytes=ELEMENT_BYTES[recipe.train.precision],
        samples=batch.num_samples,
        tokens=batch.num_tokens,
        source_tokens=batch.source_tokens,
        target_tokens=batch.target_tokens,
        semantic_tokens=batch.num_semantic,
        text_tokens=batch.text_length,
        text_width=model.text_dim,
        semantic_width=model.semantic_dim,
    )
