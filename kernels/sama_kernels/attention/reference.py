"""Attention written out, in float32: the definition the fast backends are held against."""

from __future__ import annotations

import torch
from torch import Tensor


def attention_reference(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """See `sama_kernels.attention.attention_with_lse`; materialises the ``[B, h, S, L]`` scores."""
    q_BhSD, k_BhLD, v_BhLD = (x.float().transpose(1, 2) for x in (q, k, v))
    scores = torch.matmul(q_BhSD * q.shape[-1] ** -0.5, k_BhLD.transpose(-2, -1))
    output = torch.matmul(scores.softmax(dim=-1), v_BhLD).transpose(1, 2).to(q.dtype)
    return output, scores.logsumexp(dim=-1)
