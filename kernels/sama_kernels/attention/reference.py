"""Attention written out, in float32: the definition the fast backends are held against."""

from __future__ import annotations

import torch
from torch import Tensor


def reference_forward(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """``[B, S, h, D]`` attention in q's dtype and its float32 weights ``[B, h, S, L]``, which are held in memory."""
    q_BhSD, k_BhLD, v_BhLD = (x.float().transpose(1, 2) for x in (q, k, v))
    scores = torch.matmul(q_BhSD * q.shape[-1] ** -0.5, k_BhLD.transpose(-2, -1))
    weights = scores.softmax(dim=-1)
    return torch.matmul(weights, v_BhLD).transpose(1, 2).to(q.dtype), weights


def reference_backward(
    gradient: Tensor, q: Tensor, k: Tensor, v: Tensor, output: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v in their dtypes."""
    del output  # rounded to q's dtype: the sum below is taken of what it was before
    g_BhSD, q_BhSD, k_BhLD, v_BhLD = (x.float().transpose(1, 2) for x in (gradient, q, k, v))
    weights_gradient = torch.matmul(g_BhSD, v_BhLD.transpose(-2, -1))
    mean = (weights_gradient * weights).sum(dim=-1, keepdim=True)
    scores_gradient = weights * (weights_gradient - mean) * q.shape[-1] ** -0.5
    q_gradient = torch.matmul(scores_gradient, k_BhLD)
    k_gradient = torch.matmul(scores_gradient.transpose(-2, -1), q_BhSD)
    v_gradient = torch.matmul(weights.transpose(-2, -1), g_BhSD)
    return tuple(  # type: ignore[return-value]
        x.transpose(1, 2).to(q.dtype) for x in (q_gradient, k_gradient, v_gradient)
    )
