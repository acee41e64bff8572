"""Full-width RMSNorm of q and k followed by type-aware 3D rotary embedding."""

from __future__ import annotations

from torch import Tensor

from sama_kernels.dispatch import choose_backend
from sama_kernels.qk_norm_rope.reference import SumOverRanks, qk_norm_rope_reference
from sama_kernels.qk_norm_rope.rope import RopeTables, axis_widths, build_rope_tables

__all__ = ["RopeTables", "SumOverRanks", "axis_widths", "build_rope_tables", "qk_norm_rope"]


def qk_norm_rope(
    q: Tensor,
    k: Tensor,
    q_weight: Tensor,
    k_weight: Tensor,
    *,
    rope: RopeTables | None,
    full_width: int,
    eps: float,
    sum_over_ranks: SumOverRanks | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Normalises q and k over the full hidden width, then rotates them.

    The RMSNorm runs over all heads of a token together, also over the heads that live on other tensor-parallel
    ranks: ``sum_over_ranks`` adds one float32 per token of q and of k, in one message forward and one backward.

    Args:
        q: ``[S, B, h, D]`` local heads, any strides with contiguous last axis.
        k: ``[L, B, h, D]``; L equals S when ``rope`` is given.
        q_weight: ``[h * D]`` this rank's slice of the norm's weight.
        k_weight: ``[h * D]`` likewise for k.
        rope: Rotary tables for S tokens, or None for no rotation (cross-attention).
        full_width: Global hidden width (all ranks' heads times D).
        eps: Added to the mean square.
        sum_over_ranks: Sums a float32 tensor in place over the ranks that share the heads; None on one rank.
        backend: ``auto``, ``triton`` or ``reference``.

    Returns:
        q ``[B, S, h, D]`` and k ``[B, L, h, D]`` in the inputs' dtypes (the attention's layout).

    Source: Wan2.1 self-attention (norm over dim, then rope), Cynthiazxy123/SAMA@5c6bb5b.
    """
    if choose_backend("qk_norm_rope", backend, q.device.type) == "triton":
        # Imported here: defining a kernel takes triton, and decides whether it is interpreted.
        from sama_kernels.qk_norm_rope.autograd import NormSettings, QkNormRope

        normed: tuple[Tensor, Tensor] = QkNormRope.apply(
            q, k, q_weight, k_weight, NormSettings(rope, full_width, eps, sum_over_ranks)
        )
        return normed
    return qk_norm_rope_reference(q, k, q_weight, k_weight, rope, full_width, eps, sum_over_ranks)
