"""Which activations a block keeps for its backward pass."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

import sama_kernels.attention.operation  # noqa: F401  registers it

_aten = torch.ops.aten
_KEPT_OPERATIONS = frozenset(
    {
        _aten.mm.default,
        _aten.bmm.default,
        _aten.addmm.default,
        _aten._scaled_dot_product_flash_attention.default,
        _aten._scaled_dot_product_flash_attention_for_cpu.default,
        _aten._scaled_dot_product_efficient_attention.default,
        _aten._scaled_dot_product_cudnn_attention.default,
        torch.ops.sama_kernels.flash_attention.default,
    }
)
"""Matrix products and attention: three quarters of the FLOPs; element-wise chains are cheap to run again."""


def _keep_matrix_products(_: Any, operation: Any, *__: Any, **___: Any) -> CheckpointPolicy:
    kept = operation in _KEPT_OPERATIONS
    return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE


def run_with_recompute(mode: str, function: Callable[..., Tensor], *inputs: Any) -> Tensor:
    """Runs a block, keeping as many of its activations as the mode says.

    Args:
        mode: ``none`` keeps all; ``selective`` keeps the outputs of matrix products and attention and runs norms,
            modulation, rotation and GELU again; ``full`` keeps the block's input only.
        function: The block.
        *inputs: Its arguments.

    Returns:
        What the function returns.
    """
    if mode == "none" or not torch.is_grad_enabled():
        return function(*inputs)
    options: dict[str, Any] = {"use_reentrant": False, "preserve_rng_state": False}
    if mode == "selective":
        options["context_fn"] = partial(create_selective_checkpoint_contexts, _keep_matrix_products)
    return checkpoint(function, *inputs, **options)
