"""The block as an unfused chain of torch operations: what training from the authors' inference code would run.

Written from the description of that code: separate norms in the activation's precision, the rotation in complex128 over
a table of every token, modulation as torch broadcasts, and torch's attention (on CUDA cuDNN's, the fastest of those in
torch). Also the definition that the benchmark's parity is held against: in float64, every operation exact.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import gelu, layer_norm, linear, scaled_dot_product_attention

from sama_mega.bench.inputs import EPS


class ChainBlock(nn.Module):
    """One block.

    Args:
        weights: Under the released names; used as they are, dtype and device included.
        num_heads: Attention heads.
        rotation: ``[S, head_dim / 2]`` complex128 factors.

    Source: Wan2.1's ``WanAttentionBlock`` and Cynthiazxy123/SAMA@5c6bb5b, as described in the benchmark's page.
    """

    def __init__(self, weights: Mapping[str, Tensor], num_heads: int, rotation: Tensor) -> None:
        super().__init__()
        self._weights = nn.ParameterDict({name.replace(".", "/"): weight for name, weight in weights.items()})
        self._num_heads = num_heads
        self._rotation = rotation

    def forward(self, x: Tensor, time_modulation: Tensor, text: Tensor) -> Tensor:
        """``[B, S, dim]``, ``[B, 6, dim]``, ``[B, L, dim]`` -> ``[B, S, dim]``."""
        modulation = (self._weight("modulation") + time_modulation).to(x.dtype)
        shift, scale, gate, shift_ffn, scale_ffn, gate_ffn = modulation.chunk(6, dim=1)
        x = x + gate * self._attention("self_attn", self._norm(x) * (1 + scale) + shift, None)
        affine = layer_norm(x, x.shape[-1:], self._weight("norm3.weight"), self._weight("norm3.bias"), EPS)
        x = x + self._attention("cross_attn", affine, text)
        hidden = gelu(self._linear("ffn.0", self._norm(x) * (1 + scale_ffn) + shift_ffn), approximate="tanh")
        return x + gate_ffn * self._linear("ffn.2", hidden)

    def _attention(self, name: str, x: Tensor, context: Tensor | None) -> Tensor:
        source = x if context is None else context
        q = self._rms_norm(f"{name}.norm_q", self._linear(f"{name}.q", x))
        k = self._rms_norm(f"{name}.norm_k", self._linear(f"{name}.k", source))
        q, k, v = (self._heads(part) for part in (q, k, self._linear(f"{name}.v", source)))
        if context is None:
            q, k = self._rotate(q), self._rotate(k)
        with _fastest_of_torch(q):
            mixed = scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
        return self._linear(f"{name}.o", mixed.transpose(1, 2).flatten(2))

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self._num_heads, -1))

    def _rotate(self, x: Tensor) -> Tensor:
        pairs = torch.view_as_complex(x.to(torch.float64).unflatten(-1, (-1, 2)))
        return torch.view_as_real(pairs * self._rotation[:, None]).flatten(-2).to(x.dtype)

    def _norm(self, x: Tensor) -> Tensor:
        return layer_norm(x, x.shape[-1:], eps=EPS)

    def _rms_norm(self, name: str, x: Tensor) -> Tensor:
        wide = x if x.dtype == torch.float64 else x.float()
        normed = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + EPS)
        return normed.to(x.dtype) * self._weight(f"{name}.weight")

    def _linear(self, name: str, x: Tensor) -> Tensor:
        return linear(x, self._weight(f"{name}.weight"), self._weight(f"{name}.bias"))

    def _weight(self, name: str) -> Tensor:
        weight: Tensor = self._weights[name.replace(".", "/")]
        return weight


def _fastest_of_torch(q: Tensor) -> AbstractContextManager[None]:
    if not q.is_cuda or q.dtype in (torch.float32, torch.float64):
        return nullcontext()
    context: AbstractContextManager[None] = sdpa_kernel(SDPBackend.CUDNN_ATTENTION)
    return context
