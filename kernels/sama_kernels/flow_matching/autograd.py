"""Noising and the velocity's error with Triton; the error is differentiable, the noising is data."""

from __future__ import annotations

from typing import Any

import torch
import triton
from torch import Tensor

from sama_kernels.flow_matching.kernel import (
    add_noise_forward,
    squared_error_backward,
    squared_error_forward,
)
from sama_kernels.philox import Address, counter_words

_ELEMENTS_PER_PROGRAM = 2048
_ELEMENTS_PER_BLOCK = 4
_MOST_PROGRAMS_PER_SAMPLE = 512


def add_noise_triton(x: Tensor, noise: Tensor | Address, sigma: Tensor) -> tuple[Tensor, Tensor]:
    """See `sama_kernels.flow_matching.add_noise`."""
    x = x.contiguous()
    noisy, velocity = torch.empty_like(x), torch.empty_like(x, dtype=torch.float32)
    if x.numel():
        drawn = isinstance(noise, Address)
        add_noise_forward[_programs(x)](
            x,
            None if isinstance(noise, Address) else noise.contiguous(),
            counter_words(noise, x.device) if isinstance(noise, Address) else None,
            sigma.float().contiguous(),
            noisy,
            velocity,
            x[0].numel(),
            DRAWN=drawn,
            BLOCKS=_ELEMENTS_PER_PROGRAM // _ELEMENTS_PER_BLOCK,
        )
    return noisy, velocity


def weighted_mse_triton(velocity: Tensor, target: Tensor, weight: Tensor | None) -> Tensor:
    """See `sama_kernels.flow_matching.weighted_mse`."""
    error: Tensor = _MeanSquaredError.apply(velocity, target)
    return error if weight is None else error * weight.float()


class _MeanSquaredError(torch.autograd.Function):
    """Per sample mean((velocity - target)^2); reads both again in backward, which is less than keeping a difference."""

    @staticmethod
    def forward(ctx: Any, velocity: Tensor, target: Tensor) -> Tensor:
        velocity, target = velocity.contiguous(), target.contiguous()
        ctx.save_for_backward(velocity, target)
        num_programs, batch = _programs(velocity)
        num_programs = min(num_programs, _MOST_PROGRAMS_PER_SAMPLE)
        partial_sums = velocity.new_empty(batch, num_programs, dtype=torch.float32)
        squared_error_forward[(num_programs, batch)](
            velocity, target, partial_sums, velocity[0].numel(), BLOCK=_ELEMENTS_PER_PROGRAM, STAGES=3
        )
        return partial_sums.sum(1) / velocity[0].numel()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor | None]:
        velocity, target = ctx.saved_tensors
        d_velocity = torch.empty_like(velocity)
        d_target = torch.empty_like(target) if ctx.needs_input_grad[1] else None
        squared_error_backward[_programs(velocity)](
            velocity,
            target,
            gradients[0] * (2 / velocity[0].numel()),
            d_velocity,
            d_target,
            velocity[0].numel(),
            WITH_TARGET=d_target is not None,
            BLOCK=_ELEMENTS_PER_PROGRAM,
        )
        return d_velocity, d_target


def _programs(x: Tensor) -> tuple[int, int]:
    return triton.cdiv(x[0].numel(), _ELEMENTS_PER_PROGRAM), x.shape[0]
