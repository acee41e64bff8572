"""The functions through which ranks talk and gradients flow, for those who watch a run from outside."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from megatron.core.pipeline_parallel import schedules

COLLECTIVES = {
    "all_reduce": "all-reduce",
    "all_gather_into_tensor": "all-gather",
    "all_gather": "all-gather",
    "reduce_scatter_tensor": "reduce-scatter",
    "all_to_all_single": "all-to-all",
    "broadcast": "broadcast",
    "send": "send and receive",
    "recv": "send and receive",
    "batch_isend_irecv": "send and receive",
    "barrier": "barrier",
    "all_gather_object": "objects",
    "gather_object": "objects",
    "broadcast_object_list": "objects",
}
"""By the name of the function in `torch.distributed`: what kind of message it sends."""


def collective_functions() -> list[tuple[Any, str, str]]:
    """Owner, attribute and kind of message of every function that sends one, and of the wait for those under way."""
    return [*((dist, function, kind) for function, kind in COLLECTIVES.items()), (dist.Work, "wait", "waiting")]


def backward_functions() -> list[tuple[Any, str]]:
    """Owner and attribute of every function that starts a backward pass, with and without pipeline stages."""
    return [(torch.autograd, "backward"), (schedules, "backward_step")]
