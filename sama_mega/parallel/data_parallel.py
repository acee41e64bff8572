"""Data parallelism: megatron-core's DDP with gradient sums in float32.

Losses are already weighted over the global batch, so data ranks add their gradients. Nothing is averaged:
ranks may hold different numbers and kinds of samples, and a mean over ranks would weight their samples
unequally.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig
from megatron.core.distributed.param_and_grad_buffer import _ParamAndGradBucketGroup
from torch import nn

if TYPE_CHECKING:
    from megatron.core.transformer.transformer_config import TransformerConfig

    from sama_mega.config import Recipe
    from sama_mega.parallel.runtime import ParallelContext

ParameterBuckets = _ParamAndGradBucketGroup
"""megatron's groups of parameters that travel together; a forward pass waits in their `finish_param_sync`."""


def wrap_data_parallel(
    recipe: Recipe, module: nn.Module, config: TransformerConfig, context: ParallelContext
) -> DistributedDataParallel:
    """Moves a module's parameters into contiguous buffers whose gradients are summed over the data ranks.

    Afterwards a backward pass adds into `parameter.main_grad` (float32) and leaves `parameter.grad` None.

    Args:
        recipe: `parallel.overlap_grad_reduce` and `parallel.overlap_param_gather` are read. With overlap, run
            all micro-batches of a step but the last under `model.no_sync()`, and at least one on every rank.
        module: On `context.device`; **mutated**: its parameters become views of the buffers.
        config: Its `calculate_per_token_loss` must be True, which is how megatron spells "sum, do not
            average".
        context: The running layout.

    Returns:
        The wrapper; calling it calls the module.
    """
    assert config.calculate_per_token_loss, "DDP would divide gradients by the number of data ranks"
    ddp_config = DistributedDataParallelConfig(
        grad_reduce_in_fp32=True,
        use_distributed_optimizer=True,
        overlap_grad_reduce=recipe.parallel.overlap_grad_reduce,
        overlap_param_gather=recipe.parallel.overlap_param_gather,
        average_in_collective=False,
    )
    return DistributedDataParallel(config, ddp_config, module, pg_collection=context.groups)


@torch.no_grad()
def synchronize_parameters(model: DistributedDataParallel) -> None:
    """Makes every data rank hold all parameters, now.

    With `overlap_param_gather` they otherwise arrive during the next forward pass; call this before reading
    parameters elsewhere (saving, averaging, comparing).
    """
    model.start_param_sync(force_sync=True)


def parameter_names(module: nn.Module) -> dict[str, nn.Parameter]:
    """Trainable and frozen parameters by name, without the `module.` that wrappers put in front."""
    return {strip_wrappers(name): parameter for name, parameter in module.named_parameters()}


def strip_wrappers(name: str) -> str:
    """`module.module.blocks.0.weight` -> `blocks.0.weight`."""
    while name.startswith("module."):
        name = name.removeprefix("module.")
    return name
