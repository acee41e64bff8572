"""Residual sums with Triton, alone or with the layer norm that follows, differentiable."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sama_kernels.gate_residual.kernel import (
    gate_backward,
    gate_forward,
    residual_norm_backward,
    residual_norm_forward,
)
from sama_kernels.row_tiles import add_up, plan_rows, sample_stride, with_dense_rows


def gate_residual_triton(x: Tensor, branch: Tensor, gate: Tensor) -> Tensor:
    """See `sama_kernels.gate_residual.gate_residual`."""
    summed: Tensor = _GateResidual.apply(x, branch, gate)
    return summed


def gate_residual_norm_triton(
    x: Tensor, branch: Tensor, gate: Tensor, weight: Tensor, bias: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """See `sama_kernels.gate_residual.gate_residual_norm`."""
    residual, normed = _ResidualNorm.apply(x, branch, gate, weight, bias, 0.0, eps)
    return residual, normed


def residual_adaln_triton(x: Tensor, branch: Tensor, shift: Tensor, scale: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """See `sama_kernels.gate_residual.residual_adaln`."""
    residual, modulated = _ResidualNorm.apply(x, branch, None, scale, shift, 1.0, eps)
    return residual, modulated


class _GateResidual(torch.autograd.Function):
    """x + gate * branch; keeps branch."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, branch: Tensor, gate: Tensor) -> Tensor:
        x, branch, gate = with_dense_rows(x), with_dense_rows(branch), with_dense_rows(gate)
        y = x.new_empty(x.shape)
        ctx.save_for_backward(branch, gate)
        if x.numel():
            plan = plan_rows(x, num_read=2)
            gate_forward[plan.grid](
                x,
                branch,
                gate,
                y,
                *x.shape[:2],
                *x.stride()[:2],
                *branch.stride()[:2],
                gate.stride(0),
                **plan.options,
            )
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        branch, gate = ctx.saved_tensors
        dy = gradients[0]
        if not branch.numel():
            return dy, torch.zeros_like(branch), torch.zeros_like(gate)
        rows, d_branch = with_dense_rows(dy), branch.new_empty(branch.shape)
        plan = plan_rows(branch, num_read=2)
        sums = branch.new_empty(plan.batch, plan.programs, branch.shape[-1], dtype=torch.float32)
        gate_backward[plan.grid](
            rows,
            branch,
            gate,
            d_branch,
            sums,
            *branch.shape[:2],
            *rows.stride()[:2],
            *branch.stride()[:2],
            gate.stride(0),
            **plan.options,
        )
        return dy, d_branch, add_up(sums, gate)


class _ResidualNorm(torch.autograd.Function):
    """The residual x + gate * branch and n * (added + multiplier) + offset of it.

    Keeps the residual, two numbers a token, and branch where there is a gate: without one its gradient needs nothing.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        branch: Tensor,
        gate: Tensor | None,
        multiplier: Tensor,
        offset: Tensor,
        added: float,
        eps: float,
    ) -> tuple[Tensor, Tensor]:
        x, branch = with_dense_rows(x), with_dense_rows(branch)
        multiplier, offset = with_dense_rows(multiplier), with_dense_rows(offset)
        gate = None if gate is None else with_dense_rows(gate)
        residual, y = x.new_empty(x.shape), x.new_empty(x.shape)
        statistics = x.new_empty(*x.shape[:2], 2, dtype=torch.float32)
        if x.numel():
            plan = plan_rows(x, num_read=2)
            residual_norm_forward[plan.grid](
                x,
                branch,
                gate,
                multiplier,
                offset,
                residual,
                y,
                statistics,
                *x.shape[:2],
                *x.stride()[:2],
                *branch.stride()[:2],
                0 if gate is None else gate.stride(0),
                sample_stride(multiplier),
                sample_stride(offset),
                eps,
                GATED=gate is not None,
                ADDED=added,
                **plan.options,
            )
        ctx.save_for_backward(residual, None if gate is None else branch, gate, multiplier, statistics)
        ctx.added = added
        return residual, y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor | None, Tensor, Tensor, None, None]:
        residual, branch, gate, multiplier, statistics = ctx.saved_tensors
        if not residual.numel():
            nothing = torch.zeros_like(multiplier)
            d_gate = None if gate is None else torch.zeros_like(gate)
            return gradients[0], torch.zeros_like(residual), d_gate, nothing, nothing, None, None
        d_residual, dy = (with_dense_rows(gradient) for gradient in gradients)
        dx = residual.new_empty(residual.shape)
        d_branch = dx if gate is None else branch.new_empty(branch.shape)
        # With a gate three sums, two factors and three rows are held at once.
        num_sums, num_read, most_warps = (2, 3, 8) if gate is None else (3, 4, 16)
        plan = plan_rows(residual, num_read, most_warps)
        sums = dx.new_empty(plan.batch, plan.programs, num_sums, dx.shape[-1], dtype=torch.float32)
        residual_norm_backward[plan.grid](
            d_residual,
            dy,
            residual,
            branch,
            statistics,
            gate,
            multiplier,
            dx,
            d_branch,
            sums,
            *dx.shape[:2],
            *d_residual.stride()[:2],
            *dy.stride()[:2],
            *((0, 0) if branch is None else branch.stride()[:2]),
            0 if gate is None else gate.stride(0),
            sample_stride(multiplier),
            GATED=gate is not None,
            ADDED=ctx.added,
            **plan.options,
        )
        d_offset, d_multiplier = (add_up(part, multiplier) for part in sums[:, :, :2].unbind(2))
        d_gate = None if gate is None else add_up(sums[:, :, 2], gate)
        return dx, d_branch, d_gate, d_multiplier, d_offset, None, None
