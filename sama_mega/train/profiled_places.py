"""Which functions of a training step get a named range while it is profiled, and under which name."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from sama_mega.model import attention as model_attention
from sama_mega.model import block as model_block
from sama_mega.model import context_attention as model_context_attention
from sama_mega.model import heads as model_heads
from sama_mega.model import sama_dit as model_sama_dit
from sama_mega.model.block import SamaBlock
from sama_mega.model.recompute import KeptActivations
from sama_mega.model.sama_dit import SamaDiT
from sama_mega.observe.profiling.ranges import Place
from sama_mega.parallel.message_functions import backward_functions, collective_functions
from sama_mega.parallel.optimizer import MegatronAdamW
from sama_mega.train import encode as train_encode
from sama_mega.train import forward as train_forward
from sama_mega.train import shared_encoding
from sama_mega.train import step as train_step
from sama_mega.train.batch import Batcher
from sama_mega.train.ema import WeightAverage
from sama_mega.train.encode import FrameEncoders
from sama_mega.train.forward import NoisedBatch
from sama_mega.train.pace import Pace
from sama_mega.train.state import TrainState

_OF_STEP = (
    (Batcher, "encode", "encode"),
    (shared_encoding, "run_shared", "encode"),
    (FrameEncoders, "clips", "encode video"),
    (FrameEncoders, "anchors", "encode anchors"),
    (FrameEncoders, "prompts", "encode text"),
    (train_encode, "pretext", "pretext"),
    (train_forward, "flow_matching_error", "flow_matching"),
    (train_step, "finalize_gradients", "gradients"),
    (MegatronAdamW, "zero_grad", "optimizer"),
    (MegatronAdamW, "gradient_norm_tensor", "gradient_norm"),
    (MegatronAdamW, "step", "optimizer"),
    (WeightAverage, "update", "EMA"),
)
_OF_MODEL = (
    (model_block, "adaln", "adaln"),
    (model_heads, "adaln", "adaln"),
    (model_block, "gate_residual", "gate_residual"),
    (model_block, "gate_residual_norm", "gate_residual"),
    (model_block, "residual_adaln", "gate_residual"),
    (model_attention, "qk_norm_rope", "qk_norm_rope"),
    (model_context_attention, "attention", "attention"),
    (model_attention, "attention", "cross_attention"),
    (model_heads, "semantic_loss", "semantic_loss"),
    (model_sama_dit, "build_rope_tables", "rope tables"),
)
_ENDS = {
    "patch_embedding": "embeddings",
    "siglip_feat_mlp": "embeddings",
    "text_embedding": "embeddings",
    "time_embedding": "embeddings",
    "head": "heads",
}


def places_of_step(state: TrainState, device: torch.device, seen: Callable[[NoisedBatch], None]) -> list[Place]:
    """Every place of a run's steps.

    Args:
        state: Its model's blocks are numbered.
        device: Where it computes.
        seen: Told of every micro-batch before the model reads it.
    """
    places = [Place(*place) for place in (*_OF_STEP, *_OF_MODEL)]
    places += [
        Place(Pace, "reading", "data wait", is_context=True),
        Place(KeptActivations, "repeating", "recompute", is_context=True),
        Place(train_step, "noise_micro_batch", "noise", seen=seen),
    ]
    places += [Place(*function, "backward") for function in backward_functions()]
    places += [Place(owner, name, f"communication: {kind}") for owner, name, kind in collective_functions()]
    for stage in state.stages:
        places += _of_stage(stage.module)
    if device.type == "cuda":
        places += _of_rope_attention()
    return places


def _of_stage(stage: SamaDiT) -> Iterator[Place]:
    yield Place(stage, "forward", "forward")
    for attribute, module in stage.named_children():
        if attribute in _ENDS:
            yield Place(module, "forward", _ENDS[attribute])
    for number, block in stage.blocks.items():
        assert isinstance(block, SamaBlock)
        yield from _of_block(number, block)


def _of_block(number: str, block: SamaBlock) -> Iterator[Place]:
    own, cross = block.self_attn, block.cross_attn
    parts = {
        f"block {number}": block,
        "qkv": own.linear_qkv,
        "attention_output": own.o,
        "cross_q": cross.q,
        "cross_kv": cross.linear_kv,
        "cross_output": cross.o,
        "ffn": block.ffn,
    }
    for name, module in parts.items():
        yield Place(module, "forward", name)


def _of_rope_attention() -> Iterator[Place]:
    """What `kernels.attention: triton` launches."""
    from sama_kernels.rope_attention import launch

    for function in ("attention_forward", "attention_backward"):
        yield Place(launch, function, "rope_attention")
