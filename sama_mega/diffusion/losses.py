"""Losses of one micro-batch as its share of the global batch's mean over samples.

A loss is a mean within a sample, then a weighted mean over all samples of the optimizer step, wherever they
run. So each rank divides by the *global* sum of sample weights, and plain sums over micro-batches and ranks
finish it.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from sama_kernels.flow_matching import weighted_mse


@dataclass(frozen=True)
class LossShare:
    """Scalars, float32: this micro-batch's share of the step's losses.

    Attributes:
        total: flow_matching + semantic_weight * semantic; the one to differentiate.
        flow_matching: With the timestep weights in it.
        semantic: Unweighted.
    """

    total: Tensor
    flow_matching: Tensor
    semantic: Tensor


def flow_matching_error(
    velocity: Tensor, target: Tensor, timestep_weights: Tensor | None = None, *, backend: str = "auto"
) -> Tensor:
    """Mean squared error per sample, times its timestep weight.

    Args:
        velocity: ``[B, ...]`` predicted.
        target: Same shape.
        timestep_weights: ``[B]`` float32, or None for ones.
        backend: Of `sama_kernels.flow_matching`.

    Returns:
        ``[B]`` float32.
    """
    return weighted_mse(velocity, target, timestep_weights, backend=backend)


def weighted_share(errors: Tensor, sample_weights: Tensor, total_weight: float) -> Tensor:
    """sum(errors * sample_weights) / total_weight: a micro-batch's share of the global weighted mean.

    Args:
        errors: ``[B]`` one error a sample.
        sample_weights: ``[B]`` float32 modality weights (1 for all without one).
        total_weight: Sum of the weights of all samples of the optimizer step, over all ranks.

    Raises:
        ValueError: Shapes differ, or total_weight is not above 0.
    """
    if errors.shape != sample_weights.shape:
        raise ValueError(f"{tuple(errors.shape)} errors but {tuple(sample_weights.shape)} sample weights")
    if not total_weight > 0:
        raise ValueError(f"total_weight ({total_weight}) must be above 0: the step holds no weighted sample")
    return (errors * sample_weights).sum() / total_weight


def sama_loss(
    flow_matching_errors: Tensor,
    semantic_errors: Tensor | None,
    sample_weights: Tensor,
    total_weight: float,
    semantic_weight: float,
) -> LossShare:
    """L_FM + lambda * L_sem, as this micro-batch's share.

    Args:
        flow_matching_errors: ``[B]`` float32, timestep weights already in it.
        semantic_errors: ``[B]`` float32 mean absolute error per sample, or None without semantic tokens.
        sample_weights: ``[B]`` float32.
        total_weight: As in `weighted_share`.
        semantic_weight: lambda, 0.1 in the paper.

    Source: SAMA (arXiv 2603.19228), training objective.
    """
    flow_matching = weighted_share(flow_matching_errors, sample_weights, total_weight)
    if semantic_errors is None:
        return LossShare(flow_matching, flow_matching, flow_matching.new_zeros(()))
    semantic = weighted_share(semantic_errors, sample_weights, total_weight)
    return LossShare(flow_matching + semantic_weight * semantic, flow_matching, semantic)
