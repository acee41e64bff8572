"""What one rank holds of the model's parameters, and how megatron-core lays the trained ones out in buffers.

Names and shapes: `sama_mega/parameters/shapes.py`; who holds what: `sama_mega/model/sama_dit.py` (stages),
`sama_mega/model/parallel_layers.py` (tensor ranks), `sama_mega/model/low_rank.py`; dtypes: `sama_mega/model/block.py`,
`embeddings.py` and `heads.py`, where modulation and time embedding are float32 whatever the run's precision.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from math import lcm, prod

from sama_mega.config.schema import LoraRecipe, ModelRecipe, Recipe
from sama_mega.parallel.layout import Layout, Stage
from sama_mega.parameters.shapes import low_rank_shapes, our_shapes

BYTES = {"float32": 4, "bfloat16": 2}

_FLOAT32 = re.compile(r"(^|\.)modulation$|^time_embedding\.")
_ON_EVERY_STAGE = ("text_embedding", "time_embedding")
_ON_LAST_STAGE = ("head", "semantic_head")
_COLUMN = re.compile(r"(linear_qkv|cross_attn\.q|linear_kv|ffn\.linear_in|time_embedding\.projection)\.(weight|bias)$")
_ROW = re.compile(r"(attn\.o|ffn\.linear_out)\.weight$")
_BLOCKS = re.compile(r"^blocks\.(\d+)\.")
_PARAMETER_ALIGNMENT, _BUCKET_ALIGNMENT = 64, 128
_SMALLEST_BUCKET, _BUCKET_PER_DATA_RANK = 40_000_000, 1_000_000


@dataclass(frozen=True)
class RankParameter:
    """One parameter as a rank holds it.

    Attributes:
        name: Ours.
        numel: Elements of this rank's slice.
        num_bytes: Of an element.
        is_trained: Whether it has a gradient.
        is_copied: Whether every pipeline stage has a copy of it, in a bucket of its own.
        is_split: Whether tensor ranks hold slices; else each holds all of it.
    """

    name: str
    numel: int
    num_bytes: int
    is_trained: bool
    is_copied: bool
    is_split: bool


@dataclass(frozen=True)
class Buffer:
    """One of megatron's buffers: parameters of one dtype, one after the other, with padding.

    Attributes:
        numel: Elements, padding included.
        num_bytes: Of an element as a weight; of a gradient it is 4.
        owned: Elements that the data rank with most of them updates.
    """

    numel: int
    num_bytes: int
    owned: int


def stage_parameters(recipe: Recipe, layout: Layout, stage: Stage) -> list[RankParameter]:
    """What a rank holds of one pipeline stage, in the order of a forward pass.

    Args:
        recipe: The whole recipe.
        layout: Resolved degrees; tensor ranks hold equal slices.
        stage: One of the layout's.
    """
    return list(
        _stage_parameters(
            recipe.model,
            recipe.lora,
            bool(recipe.anchor.num_frames),
            recipe.train.precision,
            layout.tensor,
            layout.num_stages > 1,
            stage,
        )
    )


@lru_cache(maxsize=256)
def _stage_parameters(
    model: ModelRecipe,
    lora: LoraRecipe,
    has_semantic: bool,
    precision: str,
    tensor: int,
    has_copies: bool,
    stage: Stage,
) -> tuple[RankParameter, ...]:
    """Remembered: a search over layouts asks for the same stages many times."""
    low_rank = low_rank_shapes(model, lora)
    shapes = our_shapes(model, has_semantic=has_semantic) | low_rank
    # As they are registered: what lies behind a stage's copies starts a bucket of its own.
    in_order = sorted(shapes, key=lambda name: name.startswith("semantic_head"))
    return tuple(
        RankParameter(
            name=name,
            numel=prod(shapes[name]) // (tensor if _is_split(name) else 1),
            num_bytes=4 if _FLOAT32.search(name) else BYTES[precision],
            is_trained=name in low_rank or not lora.rank,
            is_copied=has_copies and name.startswith(_ON_EVERY_STAGE),
            is_split=_is_split(name),
        )
        for name in in_order
        if _is_on(name, stage)
    )


def pack_buffers(
    parameters: Iterable[RankParameter], num_owners: int, overlap_grad_reduce: bool, pipeline_rank: int
) -> list[Buffer]:
    """Lays out what is trained of one stage.

    A parameter starts at a multiple of 64 elements and a bucket at one of 128 and of the owners, who share every
    bucket equally. Buckets are cut where gradients travel during the backward pass, on the first pipeline rank only;
    else there is one, but that a stage's copies have buckets of their own.

    Args:
        parameters: From `stage_parameters`.
        num_owners: Data times context ranks.
        overlap_grad_reduce: Of the recipe.
        pipeline_rank: Where the stage runs.

    Source: megatron-core 0.16.1, ``_ParamAndGradBuffer`` and ``DistributedDataParallel``, as
    `sama_mega/parallel/data_parallel.py` calls them.
    """
    limit = max(_SMALLEST_BUCKET, _BUCKET_PER_DATA_RANK * num_owners)
    bucket_size = limit if overlap_grad_reduce and pipeline_rank == 0 else None
    trained = [parameter for parameter in parameters if parameter.is_trained][::-1]
    buffers = []
    for num_bytes in sorted({parameter.num_bytes for parameter in trained}):
        buckets = _fill_buckets([one for one in trained if one.num_bytes == num_bytes], bucket_size)
        sizes = [_round_up(size, lcm(num_owners, _BUCKET_ALIGNMENT)) for size, _ in buckets]
        owned = sum(min(size // num_owners, filled) for size, (_, filled) in zip(sizes, buckets, strict=True))
        buffers.append(Buffer(sum(sizes), num_bytes, owned))
    return buffers


def _fill_buckets(parameters: list[RankParameter], bucket_size: int | None) -> list[tuple[int, int]]:
    """Of each bucket: elements up to the end of its last parameter, and those that are no padding."""
    buckets, size, filled = [], 0, 0
    for parameter in parameters:
        if parameter.is_copied and filled:
            buckets.append((size, filled))
            size, filled = 0, 0
        size = _round_up(size, _PARAMETER_ALIGNMENT) + parameter.numel
        filled += parameter.numel
        if parameter.is_copied or (bucket_size is not None and size >= bucket_size):
            buckets.append((size, filled))
            size, filled = 0, 0
    return [*buckets, (size, filled)] if filled else buckets


def _is_on(name: str, stage: Stage) -> bool:
    block = _BLOCKS.match(name)
    if block:
        return int(block.group(1)) in stage.layers
    module = name.partition(".")[0]
    if module in _ON_EVERY_STAGE:
        return True
    return stage.is_last if module in _ON_LAST_STAGE else stage.is_first


def _is_split(name: str) -> bool:
    """Whether tensor ranks hold slices; of a low-rank change, the factor on the linear's split side is split."""
    if ".low_rank." in name:
        linear, _, factor = name.partition(".low_rank.")
        return (factor == "up") == bool(_COLUMN.search(f"{linear}.weight"))
    return bool(_COLUMN.search(name) or _ROW.search(name) or re.search(r"norm_[qk]\.weight$", name))


def _round_up(number: int, divisor: int) -> int:
    return -(-number // divisor) * divisor
