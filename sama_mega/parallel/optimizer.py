"""AdamW on megatron-core's distributed optimizer: float32 masters, each data rank updating its share.

The distributed optimizer runs in every layout, one data rank included, so that a resumed run, a different
number of ranks and a test all take the same path. Steps are split in two: the caller sees the gradient norm
before it decides whether the step is taken.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from megatron.core.distributed import DistributedDataParallel
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer
from megatron.core.optimizer.optimizer_config import OptimizerConfig
from torch import nn

from sama_mega.parallel.cpu_shim import cuda_literals_on_cpu
from sama_mega.parallel.data_parallel import strip_wrappers, synchronize_parameters
from sama_mega.parallel.sharded_state import ShardedState, partition_axis, shard_flat_run, stage_copy

if TYPE_CHECKING:
    from sama_mega.config import Recipe
    from sama_mega.parallel.runtime import ParallelContext

MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class OwnedSlice:
    """The part of one parameter that this data rank updates.

    Attributes:
        name: The parameter's name without wrappers' `module.`.
        parameter: This rank's (tensor-parallel slice of the) parameter.
        start, end: The part, as flat indices into it.
        master: float32, 1-D, [end - start]; in a float32 model it is the parameter's own memory.
    """

    name: str
    parameter: nn.Parameter
    start: int
    end: int
    master: torch.Tensor

    @property
    def stage_copy(self) -> int | None:
        """Number of this copy of a parameter that every pipeline stage holds, None for all others."""
        return stage_copy(self.parameter)

    @property
    def gradient(self) -> torch.Tensor:
        """float32 gradient of the part, [end - start]; there between the norm and the next `zero_grad`."""
        assert self.master.grad is not None, self.name
        return self.master.grad

    @property
    def main_grad(self) -> torch.Tensor:
        """The part of the parameter's gradient where backward passes add it up: float32, 1-D, a view."""
        parameter: Any = self.parameter
        return self.view_in(parameter.main_grad)

    def view_in(self, whole: torch.Tensor) -> torch.Tensor:
        """The same part of another tensor of the parameter's shape, as a 1-D view."""
        return whole.detach().view(-1)[self.start : self.end]


def build_optimizer(
    recipe: Recipe, stages: Sequence[DistributedDataParallel], context: ParallelContext
) -> MegatronAdamW:
    """Creates the optimizer of a rank's wrapped pipeline stages.

    Weight decay is decoupled and applies to every parameter, biases and norms included: the released training
    code uses plain AdamW over all parameters, and megatron's habit of exempting one-dimensional ones is not
    followed.

    Args:
        recipe: `optimizer` is read.
        stages: From `wrap_data_parallel`; bfloat16 parameters get float32 masters, float32 ones are their own.
        context: The running layout.
    """
    settings = recipe.optimizer
    parameters = [parameter for stage in stages for parameter in stage.parameters() if parameter.requires_grad]
    # Built here and not by megatron's factory: that one takes Transformer Engine's Adam wherever it is
    # installed, whose state differs, and a checkpoint must not depend on what else a machine has.
    adam = torch.optim.AdamW(
        # megatron looks groups up by these keys.
        [{"params": parameters, "wd_mult": 1.0, "lr_mult": 1.0, "is_expert_parallel": False}],
        lr=settings.learning_rate,
        betas=(settings.beta1, settings.beta2),
        eps=settings.eps,
        weight_decay=settings.weight_decay,
        fused=True,
    )
    config = OptimizerConfig(
        optimizer="adam",
        lr=settings.learning_rate,
        weight_decay=settings.weight_decay,
        bf16=any(parameter.dtype == torch.bfloat16 for parameter in parameters),
        use_distributed_optimizer=True,
        clip_grad=0.0,
    )
    # The constructor sorts parameters by `"torch.cuda.FloatTensor"` and allocates on `"cuda"`.
    with cuda_literals_on_cpu():
        distributed = DistributedOptimizer(
            adam,
            config,
            grad_scaler=None,
            init_state_fn=None,
            model_chunks=list(stages),
            per_model_buffers={index: stage.buffers for index, stage in enumerate(stages)},
            data_parallel_group=context.groups.dp_cp,
            data_parallel_group_gloo=None,
            data_parallel_group_idx=context.groups.mp.rank(),
            distributed_optimizer_instance_id=0,
        )
    _detach_float32_masters(distributed)
    return MegatronAdamW(distributed, stages, context)


class MegatronAdamW:
    """One optimizer step, split so that it can be refused.

        optimizer.zero_grad()
        ... forward and backward of every micro-batch, finalize_gradients ...
        norm = optimizer.gradient_norm_tensor(), read on the host
        if norm is acceptable: optimizer.step(learning_rate, clip_norm, norm)

    Attributes:
        owned: What this rank updates, in a fixed order.
    """

    def __init__(
        self, distributed: DistributedOptimizer, stages: Sequence[DistributedDataParallel], context: ParallelContext
    ) -> None:
        """Used by `build_optimizer`."""
        self._distributed = distributed
        self._stages = stages
        self._context = context
        self._norm: torch.Tensor | None = None
        self.owned = tuple(_find_owned(distributed, stages))

    @property
    def steps_taken(self) -> int:
        """Updates so far; AdamW's bias correction counts them. Skipped steps do not count."""
        states = self._adam.state
        return next((int(states[owned.master]["step"]) for owned in self.owned if owned.master in states), 0)

    def zero_grad(self) -> None:
        """Clears the gradient buffers; call before the first backward of a step."""
        self._norm = None
        for stage in self._stages:
            stage.zero_grad_buffer()
        # The buffers alone are not enough: masters would keep last step's gradient views.
        self._distributed.zero_grad()

    @torch.no_grad()
    def gradient_norm_tensor(self) -> torch.Tensor:
        """Euclidean norm of the global batch's gradient over all parameters; does not wait for the device.

        Call after `finalize_gradients`. Whole copies on several tensor ranks, and the pipeline stages' copies, count
        once. Not finite when any gradient is not.

        Returns:
            float64 scalar on the device, the same on every rank.
        """
        if self._norm is None:
            self._distributed.prepare_grads()
            gradients = [owned.gradient for owned in self.owned if self.counts(owned)]
            total = torch.zeros((), dtype=torch.float64, device=self._context.device)
            if gradients:
                # Ten million squares added up in float32 are off by 5e-4 on a CPU, in each layout by another amount.
                total += torch.stack(torch._foreach_norm(gradients, dtype=torch.float64)).square().sum()
            dist.all_reduce(total, group=self._context.world_group)
            self._norm = total.sqrt()
        return self._norm

    def gradient_norm(self) -> float:
        """`gradient_norm_tensor` as a number; waits for the device."""
        return self.gradient_norm_tensor().item()

    @torch.no_grad()
    def step(self, learning_rate: float, clip_norm: float | None, gradient_norm: float | None = None) -> None:
        """Updates the parameters of all ranks.

        Args:
            learning_rate: Of this step.
            clip_norm: Gradients are scaled down to this norm when theirs is larger; None or 0: never.
            gradient_norm: What the caller read from `gradient_norm_tensor`; None: read here, waiting for the device.
        """
        norm = self.gradient_norm() if gradient_norm is None else gradient_norm
        assert self._norm is not None, "gradient_norm_tensor() hands the gradients to the masters: call it first"
        if clip_norm and norm > clip_norm:
            torch._foreach_mul_([owned.gradient for owned in self.owned], clip_norm / (norm + 1e-6))
        for group in self._adam.param_groups:
            group["lr"] = learning_rate
        self._distributed.step_with_ready_grads()
        self._norm = None

    def last_update(self, owned: OwnedSlice) -> torch.Tensor:
        """What the last step took away from a slice's master, from the moments that it left; float32, 1-D.

        Weight decay is reckoned from the master as it is now, which is off by ``learning rate * decay`` of the update.
        """
        group, moments = self._adam.param_groups[0], self._moments(owned)
        beta1, beta2 = group["betas"]
        steps = self.steps_taken
        deviation = (moments["exp_avg_sq"] / (1 - beta2**steps)).sqrt_().add_(group["eps"])
        update = (moments["exp_avg"] / (1 - beta1**steps)).div_(deviation)
        return update.add_(owned.master.detach(), alpha=group["weight_decay"]).mul_(group["lr"])

    def sharded_state(self, prefix: str = "optimizer.") -> ShardedState:
        """Describes moments and masters for a checkpoint, keyed by parameter name; nothing is gathered.

        Saving writes these tensors, loading fills them in place (then call `finish_loading`). In a float32
        model the parameters themselves are the masters, so no masters are saved.
        """
        state: ShardedState = {}
        for owned in self.owned:
            moments = self._moments(owned)
            for key in MOMENTS:
                state |= self._describe(f"{prefix}{key}.", owned, moments[key])
            if not _is_own_master(owned):
                state |= self._describe(f"{prefix}master.", owned, owned.master)
        return state

    def sharded_masters(self, prefix: str, values: Sequence[torch.Tensor] | None = None) -> ShardedState:
        """Describes the float32 masters, or other values for the same slices, under the parameters' names.

        Loading `prefix="ema."` into the masters starts a run from averaged weights without rounding them to
        bfloat16 first (then call `masters_to_model`); `values` can be the moving average itself.

        Args:
            prefix: Put before the parameter's name.
            values: Aligned with `owned`, same sizes; the masters by default.
        """
        state: ShardedState = {}
        tensors = [owned.master for owned in self.owned] if values is None else values
        for owned, tensor in zip(self.owned, tensors, strict=True):
            state |= self._describe(prefix, owned, tensor)
        return state

    def finish_loading(self, steps_taken: int) -> None:
        """Takes up the loaded state: sets the step count and sends the masters to all ranks' parameters."""
        for owned in self.owned:
            # Each parameter gets its own tensor: AdamW counts in place, and a shared one would count for all.
            self._moments(owned)["step"].fill_(steps_taken)
        self.masters_to_model()

    @torch.no_grad()
    def masters_to_model(self) -> None:
        """Rounds the masters into the parameters and gathers them on every data rank."""
        self._publish([owned.master for owned in self.owned])

    @contextmanager
    def temporary_weights(self, values: Sequence[torch.Tensor]) -> Iterator[None]:
        """Puts other weights (a moving average) into the model for the length of a block.

        Args:
            values: Aligned with `owned`, 1-D float32. Not changed.
        """
        # In a float32 model the parameters are the masters, so the block would overwrite them.
        backup = [owned.master.detach().clone() for owned in self.owned if _is_own_master(owned)]
        with torch.no_grad():
            self._publish(values)
        try:
            yield
        finally:
            with torch.no_grad():
                kept = iter(backup)
                self._publish([next(kept) if _is_own_master(owned) else owned.master for owned in self.owned])

    @property
    def _adam(self) -> torch.optim.AdamW:
        return self._distributed.optimizer

    def _publish(self, values: Sequence[torch.Tensor]) -> None:
        for owned, value in zip(self.owned, values, strict=True):
            target = owned.view_in(owned.parameter)
            if target.data_ptr() != value.data_ptr():
                target.copy_(value)
        for stage in self._stages:
            synchronize_parameters(stage)

    def counts(self, owned: OwnedSlice) -> bool:
        """Whether a sum over all ranks' slices takes this one: each number of the model is then taken once."""
        is_slice = partition_axis(owned.parameter) is not None
        return not owned.stage_copy and (is_slice or self._context.tensor_rank == 0)

    def _moments(self, owned: OwnedSlice) -> dict[str, torch.Tensor]:
        """AdamW's state of one slice, created as AdamW itself would at the first step."""
        state = self._adam.state[owned.master]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32, device=owned.master.device)
            for key in MOMENTS:
                state[key] = torch.zeros_like(owned.master, memory_format=torch.preserve_format)
        return state

    def _describe(self, prefix: str, owned: OwnedSlice, tensor: torch.Tensor) -> ShardedState:
        return shard_flat_run(prefix + owned.name, owned.parameter, tensor, owned.start, self._context)


def _detach_float32_masters(distributed: DistributedOptimizer) -> None:
    """Replaces the masters of float32 parameters by plain views of them.

    megatron makes those masters inside the autograd graph; torch then warns at every access of their
    gradients.
    """
    replaced = {}
    for masters in distributed.shard_fp32_groups:
        for index, master in enumerate(masters):
            masters[index] = replaced[master] = master.detach()
    for group in distributed.optimizer.param_groups:
        group["params"] = [replaced.get(master, master) for master in group["params"]]


def _find_owned(distributed: DistributedOptimizer, stages: Sequence[DistributedDataParallel]) -> Iterator[OwnedSlice]:
    """Pairs every parameter with its master.

    By megatron's own aligned lists: its index map finds the wrong master when a group mixes float32 and
    bfloat16 parameters and the first one is bfloat16.
    """
    names = {parameter: strip_wrappers(name) for stage in stages for name, parameter in stage.named_parameters()}
    pairs = (
        (distributed.model_fp32_groups, distributed.shard_fp32_groups),
        (distributed.model_float16_groups, distributed.shard_fp32_from_float16_groups),
    )
    for model_groups, master_groups in pairs:
        for parameters, masters in zip(model_groups, master_groups, strict=True):
            for parameter, master in zip(parameters, masters, strict=True):
                span = distributed._get_model_param_range_map(parameter)["param"]
                yield OwnedSlice(names[parameter], parameter, span.start, span.end, master)


def _is_own_master(owned: OwnedSlice) -> bool:
    return owned.parameter.dtype == torch.float32
