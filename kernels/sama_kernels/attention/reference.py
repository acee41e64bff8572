"""Attention written out, in float32: the definition the fast backends are held against."""

from __future__ import annotations

import torch
from torch import Tensor


def attention_reference(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """See `sama_kernels.attention.attention`; materialises the ``[B, h, S, L]`` scores."""
    scale = q.shape[-1] ** -0.5
    scores = torch.einsum("bshd,blhd->bhsl", q.float(), k.float()) * scale
    return torch.einsum("bhsl,blhd->bshd", scores.softmax(dim=-1), v.float()).to(q.dtype)
