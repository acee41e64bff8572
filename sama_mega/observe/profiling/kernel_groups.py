"""Which of this project's operations a kernel belongs to: by its name, and by the ranges that it was started in."""

from __future__ import annotations

import re
from collections.abc import Sequence


class Group:
    """Names of the groups."""

    GEMM = "gemm"
    ATTENTION_FORWARD = "attention forward"
    ATTENTION_BACKWARD = "attention backward"
    NORMS = "norms and modulation"
    ROPE = "q/k norm and rope"
    POINTWISE = "gelu and biases"
    LOSS = "losses"
    NOISE = "noise"
    COMMUNICATION = "communication: "
    OPTIMIZER = "optimizer"
    AVERAGE = "EMA"
    GRADIENTS = "gradients"
    ENCODERS = "encoders"
    COPIES = "copies"
    DATA_WAIT = "data wait"
    HOST = "host"
    IDLE = "idle"
    OTHER = "other"


OWN_KERNELS = {
    "norm_forward": Group.NORMS,
    "norm_backward": Group.NORMS,
    "gate_forward": Group.NORMS,
    "gate_backward": Group.NORMS,
    "residual_norm_forward": Group.NORMS,
    "residual_norm_backward": Group.NORMS,
    "sum_squares_kernel": Group.ROPE,
    "normalise_kernel": Group.ROPE,
    "sum_products_kernel": Group.ROPE,
    "backward_kernel": Group.ROPE,
    "rotate_kernel": Group.ROPE,
    "forward_kernel": Group.ATTENTION_FORWARD,
    "prepare_kernel": Group.ATTENTION_BACKWARD,
    "key_value_gradient_kernel": Group.ATTENTION_BACKWARD,
    "query_gradient_kernel": Group.ATTENTION_BACKWARD,
    "add_noise_forward": Group.NOISE,
    "squared_error_forward": Group.LOSS,
    "squared_error_backward": Group.LOSS,
    "absolute_error_forward": Group.LOSS,
    "pretext_forward": Group.ENCODERS,
}
"""The kernels of `sama_kernels`."""

_OPERATIONS = {
    "adaln": Group.NORMS,
    "gate_residual": Group.NORMS,
    "qk_norm_rope": Group.ROPE,
    "qkv": Group.POINTWISE,
    "attention_output": Group.POINTWISE,
    "cross_q": Group.POINTWISE,
    "cross_kv": Group.POINTWISE,
    "cross_output": Group.POINTWISE,
    "ffn": Group.POINTWISE,
    "flow_matching": Group.LOSS,
    "semantic_loss": Group.LOSS,
    "noise": Group.NOISE,
    "optimizer": Group.OPTIMIZER,
    "gradient_norm": Group.OPTIMIZER,
    "gradients": Group.GRADIENTS,
    "EMA": Group.AVERAGE,
    "data wait": Group.DATA_WAIT,
    "embeddings": Group.POINTWISE,
    "heads": Group.POINTWISE,
    "rope tables": Group.ROPE,
}
"""By range: what is neither a product, nor attention, nor a message in there."""
_PRODUCTS = frozenset(name for name, group in _OPERATIONS.items() if group == Group.POINTWISE)
_BLOCK = "block "
"""What a block does itself, outside its operations, is adding up its modulation."""
_HOST_NAME = re.compile(r"^(host$|autograd::engine::evaluate_function|(torch::autograd::)?_?[A-Z]\w*$)")
"""Ranges and autograd's functions themselves: what they do besides the operations that they call is the host's."""
_ATTENTION = frozenset({"attention", "cross_attention", "rope_attention"})

_PAIRWISE = "send and receive"
_COLLECTIVES = (
    ("all-reduce", "allreduce"),
    ("all-gather", "allgather"),
    ("reduce-scatter", "reducescatter"),
    ("all-to-all", "alltoall"),
    ("broadcast", "broadcast"),
    (_PAIRWISE, "sendrecv|send|recv"),
    ("reduce", "reduce"),
    ("barrier", "barrier"),
)
_MESSAGE = re.compile(r"^(nccl|c10d::|gloo:|record_param_comms)", re.IGNORECASE)
_ATTENTION_NAME = re.compile(r"flash|fmha|sdpa|scaled_dot_product|compute_dot_do_o", re.IGNORECASE)
_BACKWARD_NAME = re.compile(r"bwd|bprop|backward|fmha_cutlassB|dot_do_o|convert_dq", re.IGNORECASE)
_GEMM_NAME = re.compile(
    r"gemm|gemv|nvjet|splitk|cublas|^aten::(addmm|mm|bmm|baddbmm|matmul|linear|addbmm)\b|mkldnn_linear", re.IGNORECASE
)
_COPY_NAME = re.compile(
    r"^Memcpy|^Memset|copy_kernel|CatArray|FillFunctor"
    r"|^aten::(copy_|_to_copy|to|contiguous|clone|cat|stack|fill_|zero_|zeros|empty|empty_like|empty_strided|pad)\b",
    re.IGNORECASE,
)


def group_of(name: str, ranges: Sequence[str], backward: bool) -> str:
    """The group of a kernel, or of an operation on a CPU.

    Args:
        name: As the profiler gives it.
        ranges: In which it was started, the innermost last; of a backward pass those of the forward operation.
        backward: Whether a backward pass started it.
    """
    operation = next((one for one in reversed(ranges) if one in _OPERATIONS or one in _ATTENTION), None)
    message = _message(name, ranges)
    if message is not None:
        return message
    if _HOST_NAME.match(name):
        return Group.DATA_WAIT if operation == Group.DATA_WAIT else Group.HOST
    if any(one.startswith("encode") for one in ranges):
        return Group.ENCODERS
    if name in OWN_KERNELS:
        return OWN_KERNELS[name]
    if _ATTENTION_NAME.search(name):
        return Group.ATTENTION_BACKWARD if backward or _BACKWARD_NAME.search(name) else Group.ATTENTION_FORWARD
    if operation not in _ATTENTION and operation not in ("semantic_loss", "optimizer") and _GEMM_NAME.search(name):
        return Group.GEMM
    if operation in _OPERATIONS and operation not in _PRODUCTS:
        return _OPERATIONS[operation]
    if _COPY_NAME.search(name):
        return Group.COPIES
    if operation in _ATTENTION:
        return Group.ATTENTION_BACKWARD if backward else Group.ATTENTION_FORWARD
    if operation is None:
        return Group.NORMS if any(one.startswith(_BLOCK) for one in ranges) else Group.OTHER
    return _OPERATIONS[operation]


def _message(name: str, ranges: Sequence[str]) -> str | None:
    """By the collective, where it is a message between ranks, or what the host does about one."""
    around = next((one for one in reversed(ranges) if one.startswith(Group.COMMUNICATION)), None)
    if not _MESSAGE.match(name):
        return around
    plain = name.lower().replace("_", "")
    kind = next((kind for kind, pattern in _COLLECTIVES if re.search(pattern, plain)), "other")
    if kind == _PAIRWISE and around is not None:  # NCCL makes an all-to-all of sends and receives
        return around
    return Group.COMMUNICATION + kind
