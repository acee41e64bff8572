"""The fused q/k norm and rotation as one differentiable operation; keeps q, k and one number a row.

Shape legend: S or L tokens, B batch, h local heads, D head dimension.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor

from sama_kernels.dispatch import interpreting
from sama_kernels.qk_norm_rope.kernel import (
    Part,
    Shape,
    backward_kernel,
    normalise_kernel,
    sum_products_kernel,
    sum_squares_kernel,
)
from sama_kernels.qk_norm_rope.reference import SumOverRanks
from sama_kernels.qk_norm_rope.rope import RopeTables
from sama_kernels.qk_norm_rope.rotation import rope_arguments

_PROGRAM_ELEMENTS = 5120
"""Elements of one tensor that a program holds at once: a 14B model's row."""
_FORWARD_WARPS = 4
"""40 elements a thread: five loads of 16 bytes."""
_BACKWARD_WARPS = 8
_BACKWARD_REGISTERS = 128
"""So that two programs fit a Hopper multiprocessor; four tensors of 20 elements a thread would take more."""
_PROGRAMS_PER_MULTIPROCESSOR = 2
"""Of the backward kernel, each of which walks over rows: as many as fit, for the fewest partial sums."""
_INTERPRETED_ROWS = 64
"""Under the interpreter a program costs the same whatever it holds."""
_INTERPRETED_PROGRAMS = 3


@dataclass(frozen=True)
class NormSettings:
    """What is not a tensor.

    Attributes:
        rope: Rotary tables, or None.
        full_width: Global hidden width.
        eps: Added to the mean square.
        sum_over_ranks: None on one rank.
    """

    rope: RopeTables | None
    full_width: int
    eps: float
    sum_over_ranks: SumOverRanks | None


class QkNormRope(torch.autograd.Function):
    """See `sama_kernels.qk_norm_rope.qk_norm_rope`."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, q_weight: Tensor, k_weight: Tensor, settings: NormSettings
    ) -> tuple[Tensor, Tensor]:
        """Returns q ``[B, S, h, D]`` and k ``[B, L, h, D]``."""
        inputs, weights = (with_contiguous_heads(q), with_contiguous_heads(k)), (q_weight, k_weight)
        outputs = [x.new_empty(x.shape[1], x.shape[0], *x.shape[2:]) for x in inputs]
        inverse_rms = [torch.empty(x.shape[:2], dtype=torch.float32, device=x.device) for x in inputs]
        sums = _row_sums(inverse_rms) if settings.sum_over_ranks else None
        parts, batch = _parts(inputs, outputs, weights, inverse_rms, sums), q.shape[1]
        shape, rope = _shape(parts[0], settings), rope_arguments(settings.rope)
        if settings.sum_over_ranks is not None and sums is not None:
            for part in parts:
                sum_squares_kernel[_blocks(part, shape)](part, batch, shape, num_warps=_FORWARD_WARPS)
            settings.sum_over_ranks(sums)
        for part in parts:
            normalise_kernel[_blocks(part, shape)](
                part, rope, batch, settings.full_width, settings.eps, shape, num_warps=_FORWARD_WARPS
            )
        ctx.save_for_backward(*inputs, *weights, *inverse_rms)
        ctx.settings = settings
        return outputs[0], outputs[1]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Reads what forward read, its gradients, and one number a row."""
        q, k, q_weight, k_weight, *inverse_rms = ctx.saved_tensors
        settings: NormSettings = ctx.settings
        inputs, weights = (q, k), (q_weight, k_weight)
        upstream = [with_contiguous_heads(gradient) for gradient in gradients]
        input_gradients = [torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in inputs]
        partials = _weight_partials(weights)
        sums = _row_sums(inverse_rms) if settings.sum_over_ranks else None
        parts = _parts(inputs, upstream, weights, inverse_rms, sums, input_gradients, partials)
        shape, rope, batch = _shape(parts[0], settings), rope_arguments(settings.rope), q.shape[1]
        if settings.sum_over_ranks is not None and sums is not None:
            for part in parts:
                sum_products_kernel[_blocks(part, shape)](part, rope, batch, shape, num_warps=_FORWARD_WARPS)
            settings.sum_over_ranks(sums)
        for part, partial in zip(parts, partials, strict=True):
            backward_kernel[partial.shape[:1]](
                part, rope, batch, settings.full_width, shape, num_warps=_BACKWARD_WARPS, maxnreg=_BACKWARD_REGISTERS
            )
        # One order of additions, whatever ran first.
        dq_weight, dk_weight = (
            partial.sum(0).to(weight.dtype) for partial, weight in zip(partials, weights, strict=True)
        )
        return *input_gradients, dq_weight, dk_weight, None


def _shape(part: Part, settings: NormSettings) -> Shape:
    heads, head_dim = part.x.shape[-2:]
    tile = 1 << (heads.bit_length() - 1)
    dim = max(2, triton.next_power_of_2(head_dim))
    time_pairs, space_pairs = settings.rope.pairs if settings.rope else (0, 0)
    return Shape(
        heads=heads,
        head_dim=head_dim,
        tile=tile,
        rest=triton.next_power_of_2(heads - tile) if heads > tile else 0,
        dim=dim,
        rows=_INTERPRETED_ROWS if interpreting() else _rows_per_program(heads * dim),
        time_pairs=time_pairs,
        space_pairs=space_pairs,
        rotate=settings.rope is not None,
        given=settings.sum_over_ranks is not None,
    )


def _blocks(part: Part, shape: Shape) -> tuple[int]:
    return (triton.cdiv(part.num_rows, shape.rows),)


def with_contiguous_heads(x: Tensor) -> Tensor:
    """The tensor, copied only if its last axis is strided."""
    return x if x.stride(-1) == 1 else x.contiguous()


def _rows_per_program(row_elements: int) -> int:
    return 1 << max(0, (_PROGRAM_ELEMENTS // row_elements).bit_length() - 1)


def _row_sums(inverse_rms: Sequence[Tensor]) -> Tensor:
    """One message for q and k, which may differ in length."""
    numbers = sum(rows.numel() for rows in inverse_rms)
    return torch.empty(numbers, dtype=torch.float32, device=inverse_rms[0].device)


def _weight_partials(weights: Sequence[Tensor]) -> list[Tensor]:
    device = weights[0].device
    if interpreting():
        programs = _INTERPRETED_PROGRAMS
    else:
        programs = _PROGRAMS_PER_MULTIPROCESSOR * torch.cuda.get_device_properties(device).multi_processor_count
    return [torch.empty(programs, weight.numel(), dtype=torch.float32, device=device) for weight in weights]


def _parts(
    inputs: Sequence[Tensor],
    normalised: Sequence[Tensor],
    weights: Sequence[Tensor],
    inverse_rms: Sequence[Tensor],
    sums: Tensor | None,
    input_gradients: Sequence[Tensor] | None = None,
    partials: Sequence[Tensor] | None = None,
) -> tuple[Part, Part]:
    """What the kernels read and write of q and of k; inputs are token first, what attention sees is sample first."""
    row_sums = sums.split([rows.numel() for rows in inverse_rms]) if sums is not None else (None, None)

    def part(index: int) -> Part:
        x, y = inputs[index], normalised[index]
        dx = input_gradients[index] if input_gradients else None
        return Part(
            x=x,
            x_strides=(x.stride(0), x.stride(1), x.stride(2)),
            y=y,
            y_strides=(y.stride(1), y.stride(0), y.stride(2)),
            dx=dx,
            dx_strides=(0, 0, 0) if dx is None else (dx.stride(0), dx.stride(1), dx.stride(2)),
            weight=weights[index],
            inverse_rms=inverse_rms[index],
            sums=row_sums[index],
            weight_partials=partials[index] if partials else None,
            num_rows=x.shape[0] * x.shape[1],
        )

    return part(0), part(1)
