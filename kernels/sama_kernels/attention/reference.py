"""Attention written out, in float32: the definition the fast backends are held against."""

from __future__ import annotations

import torch
from torch import Tensor


def attention_reference(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """See `sama_kernels.attention.attention`; also gives the log-sum-exp ``[B, h, S]`` float32. Holds all scores."""
    q_BhSD, k_BhLD, v_BhLD = (x.float().transpose(1, 2) for x in (q, k, v))
    scores = torch.matmul(q_BhSD * q.shape[-1] ** -0.5, k_BhLD.transpose(-2, -1))
    output = torch.matmul(scores.softmax(dim=-1), v_BhLD).transpose(1, 2).to(q.dtype)
    return output, scores.logsumexp(dim=-1)


def reference_backward(
    gradient: Tensor, q: Tensor, k: Tensor, v: Tensor, output: Tensor, log_sum_exp: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v: attends again and differentiates that."""
    del output, log_sum_exp
    with torch.enable_grad():
        q, k, v = (x.detach().requires_grad_() for x in (q, k, v))
        again, _ = attention_reference(q, k, v)
    q_gradient, k_gradient, v_gradient = torch.autograd.grad(again, (q, k, v), gradient)
    return q_gradient, k_gradient, v_gradient
