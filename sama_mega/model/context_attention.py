"""Attention of a sequence over itself when the context ranks share its tokens.

Two ways to bring a query to every key, used together when neither is enough. Exchanging heads for tokens (Ulysses): an
all-to-all gives each rank all tokens of the group but only its share of the heads; it sends the least, as far as there
are heads to share. Gathering keys and values: each rank keeps its queries and receives everybody's keys and values.

Shape legend: s tokens of this context rank, N real tokens of the whole sequence, B batch, h heads of this tensor rank,
D head dimension, u ranks that exchange heads, g ranks that gather keys and values (u * g context ranks).

Source: DeepSpeed-Ulysses (arXiv 2309.14509) for the exchange.
"""

from __future__ import annotations

import torch
from megatron.core.tensor_parallel.mappings import all_to_all, gather_from_sequence_parallel_region
from torch import Tensor
from torch.nn.functional import pad

from sama_kernels.attention import attention
from sama_kernels.keep import Keep, compute_now
from sama_mega.parallel.runtime import ParallelContext


def context_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    num_tokens: int,
    context: ParallelContext,
    *,
    backend: str,
    keep: Keep = compute_now,
) -> Tensor:
    """Attends from this rank's tokens to all real tokens of the sequence.

    Padding, at the end of the sequence, is neither attended nor computed; its outputs and gradients are zero.

    Args:
        q: ``[B, s, h, D]``.
        k: ``[B, s, h, D]``.
        v: ``[B, s, h, D]``.
        num_tokens: N.
        context: The running layout.
        backend: Of `sama_kernels.attention`.
        keep: Of what this rank's attention gives.

    Returns:
        ``[B, s, h, D]``.
    """
    exchanging, gathering = context.ulysses_group, context.key_value_group
    if exchanging.size() > 1:
        q, k, v = exchange_heads_for_tokens(torch.stack([q, k, v]), exchanging)
    num_held = q.shape[1]
    num_queries = min(max(num_tokens - gathering.rank() * num_held, 0), num_held)
    if gathering.size() > 1:
        k, v = gather_tokens(k, v, gathering)
    mixed = attention(q[:, :num_queries], k[:, :num_tokens], v[:, :num_tokens], backend=backend, keep=keep)
    if num_queries < num_held:
        mixed = pad(mixed, (0, 0, 0, 0, 0, num_held - num_queries))
    return exchange_tokens_for_heads(mixed, exchanging) if exchanging.size() > 1 else mixed


def exchange_heads_for_tokens(parts: Tensor, group: torch.distributed.ProcessGroup) -> Tensor:
    """``[P, B, s, h, D]`` -> ``[P, B, u * s, h / u, D]``: rank i receives the i-th share of the heads, one message."""
    ranks = group.size()
    num_parts, batch, tokens, heads, head_dim = parts.shape
    by_rank = parts.unflatten(3, (ranks, heads // ranks)).permute(3, 0, 1, 2, 4, 5).contiguous()
    received = all_to_all(group, by_rank)
    by_token = received.permute(1, 2, 0, 3, 4, 5)
    return by_token.reshape(num_parts, batch, ranks * tokens, heads // ranks, head_dim)


def exchange_tokens_for_heads(x: Tensor, group: torch.distributed.ProcessGroup) -> Tensor:
    """``[B, u * s, h / u, D]`` -> ``[B, s, h, D]``; undoes `exchange_heads_for_tokens`."""
    ranks = group.size()
    by_rank = x.unflatten(1, (ranks, -1)).transpose(0, 1).contiguous()
    received = all_to_all(group, by_rank)
    return received.permute(1, 2, 0, 3, 4).flatten(2, 3)


def gather_tokens(k: Tensor, v: Tensor, group: torch.distributed.ProcessGroup) -> tuple[Tensor, Tensor]:
    """Two ``[B, s, h, D]`` -> two ``[B, g * s, h, D]``, in one message; their gradients are summed over the ranks."""
    tokens_first = torch.cat([k, v], dim=-1).transpose(0, 1).contiguous()
    whole = gather_from_sequence_parallel_region(tokens_first, tensor_parallel_output_grad=True, group=group)
    k_whole, v_whole = whole.transpose(0, 1).chunk(2, dim=-1)
    return k_whole, v_whole
