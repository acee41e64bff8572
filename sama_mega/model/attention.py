"""Self- and cross-attention with heads split over the tensor-parallel ranks.

Shape legend: s this rank's tokens between the matrices, S its tokens inside them (those of all its tensor ranks: under
sequence parallel the linears gather and scatter), L text tokens, B batch, h local heads, D head dimension.
"""

from __future__ import annotations

from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor, nn

from sama_kernels.attention import attention
from sama_kernels.keep import Keep
from sama_kernels.qk_norm_rope import RopeTables, SumOverRanks, qk_norm_rope
from sama_mega.config.schema import Recipe
from sama_mega.model.context_attention import context_attention
from sama_mega.model.norms import FullWidthNormWeight
from sama_mega.model.parallel_layers import ColumnLinear, RowLinear
from sama_mega.model.recompute import Activations
from sama_mega.parallel.collectives import bind_all_reduce
from sama_mega.parallel.runtime import ParallelContext


class AttentionHeads(nn.Module):
    """What self- and cross-attention share: local heads, full-width q/k norm, output projection."""

    def __init__(self, recipe: Recipe, config: TransformerConfig, context: ParallelContext) -> None:
        super().__init__()
        self.full_width = recipe.model.dim
        self.head_dim = recipe.model.dim // recipe.model.num_heads
        self.local_heads = recipe.model.num_heads // context.layout.tensor
        self.eps = recipe.model.norm_eps
        self.kernels = recipe.kernels
        local_width = self.local_heads * self.head_dim
        self.norm_q = FullWidthNormWeight(local_width, config, context)
        self.norm_k = FullWidthNormWeight(local_width, config, context)
        self.o = RowLinear(self.full_width, self.full_width, config, context)
        self._sum_over_ranks: SumOverRanks | None = None
        if context.layout.tensor > 1:
            self._sum_over_ranks = bind_all_reduce(context.tensor_group)

    def _split_heads(self, x: Tensor, num_parts: int) -> tuple[Tensor, ...]:
        """``[S, B, h * parts * D]`` -> one ``[S, B, h, D]`` view a part; a head's parts lie side by side."""
        return x.unflatten(-1, (self.local_heads, num_parts, self.head_dim)).unbind(-2)

    def _norm(self, q: Tensor, k: Tensor, rope: RopeTables | None) -> tuple[Tensor, Tensor]:
        """``[S, B, h, D]`` q and ``[L, B, h, D]`` k, normed over all heads and rotated -> ``[B, S or L, h, D]``."""
        return qk_norm_rope(
            q,
            k,
            self.norm_q(),
            self.norm_k(),
            rope=rope,
            full_width=self.full_width,
            eps=self.eps,
            sum_over_ranks=self._sum_over_ranks,
            backend=self.kernels.ops,
        )

    def _project(self, mixed: Tensor, keep: Keep) -> Tensor:
        """``[B, S, h, D]`` -> ``[s, B, dim]``."""
        return self.o(mixed.transpose(0, 1).flatten(-2), keep)


class SelfAttention(AttentionHeads):
    """Attention of every token of the sequence over all of them, with type-aware rotation.

    Args:
        recipe: The whole recipe.
        config: megatron's configuration.
        context: The running layout.
    """

    def __init__(self, recipe: Recipe, config: TransformerConfig, context: ParallelContext) -> None:
        super().__init__(recipe, config, context)
        self.linear_qkv = ColumnLinear(self.full_width, 3 * self.full_width, config, context)
        self._context = context

    def forward(self, x: Tensor, rope: RopeTables, num_tokens: int, activations: Activations) -> Tensor:
        """``[s, B, dim]`` -> ``[s, B, dim]``; of the whole sequence only the first ``num_tokens`` are no padding."""
        q, k, v = self._split_heads(self.linear_qkv(x, activations.keep("qkv")), 3)
        q, k = self._norm(q, k, rope)
        mixed = context_attention(
            q,
            k,
            v.transpose(0, 1),
            num_tokens,
            self._context,
            backend=self.kernels.attention,
            keep=activations.keep("attention"),
        )
        return self._project(mixed, activations.keep("attention_output"))


class CrossAttention(AttentionHeads):
    """Attention of every token over the text; padded text positions are attended, as Wan does.

    Args:
        recipe: The whole recipe.
        config: megatron's configuration.
        context: The running layout.
    """

    def __init__(self, recipe: Recipe, config: TransformerConfig, context: ParallelContext) -> None:
        super().__init__(recipe, config, context)
        self.q = ColumnLinear(self.full_width, self.full_width, config, context)
        self.linear_kv = ColumnLinear(self.full_width, 2 * self.full_width, config, context, gather_sequence=False)

    def forward(self, x: Tensor, text: Tensor, activations: Activations) -> Tensor:
        """``[s, B, dim]`` and whole text ``[L, B, dim]`` -> ``[s, B, dim]``."""
        (q,) = self._split_heads(self.q(x, activations.keep("cross_q")), 1)
        k, v = self._split_heads(self.linear_kv(text, activations.keep("cross_kv")), 2)
        q, k = self._norm(q, k, None)
        keep = activations.keep("cross_attention")
        mixed = attention(q, k, v.transpose(0, 1), backend=self.kernels.attention, keep=keep)
        return self._project(mixed, activations.keep("cross_output"))
