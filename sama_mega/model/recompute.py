"""Which activations a block keeps for its backward pass.

Every product of matrices and every attention of a block has a name, and is computed through the `Keep` that
`Activations.keep` gives for that name. A block that is run again in the backward pass takes what its mode kept from
memory, with the messages between ranks that it took to compute it, and computes the rest once more.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from sama_kernels.keep import Compute, Keep, compute_now

Name = Literal[
    "qkv",
    "attention",
    "attention_output",
    "cross_q",
    "cross_kv",
    "cross_attention",
    "cross_output",
    "ffn_input",
    "ffn_output",
]
"""What a block computes that costs more than reading and writing it."""

_ALL = frozenset(get_args(Name))
KEPT: dict[str, frozenset[str]] = {
    "selective": _ALL,
    "selective_ffn": _ALL - {"cross_q", "cross_attention", "ffn_input"},
    "full": frozenset(),
}
"""By mode: the names whose results stay in memory between the passes.

At width 5120 with a feed-forward of 13,824, in tensors of one value per token and feature, the block's input counted:
12.7 for `selective` and 8.0 for `selective_ffn`.
"""


class Activations:
    """What one forward pass of one block computes, none of it kept: autograd holds what it needs."""

    def keep(self, name: Name) -> Keep:
        """The `Keep` through which a block computes what has this name; each name once a pass."""
        del name
        return compute_now


class KeptActivations(Activations):
    """What one forward pass of one block keeps for the pass that repeats it.

    Args:
        names: What to keep.
    """

    def __init__(self, names: frozenset[str]) -> None:
        self._names = names
        self._kept: dict[str, tuple[Tensor, ...]] = {}
        self._repeating = False

    def keep(self, name: Name) -> Keep:
        """See `Activations.keep`."""
        if name not in self._names:
            return compute_now
        if self._repeating:
            return lambda compute: self._kept.pop(name)
        return lambda compute: self._remember(name, compute)

    @contextmanager
    def repeating(self) -> Any:
        """While the pass is repeated; what early stopping left unused is let go at the end."""
        self._repeating = True
        try:
            yield
        finally:
            self._kept.clear()

    def _remember(self, name: str, compute: Compute) -> tuple[Tensor, ...]:
        results = compute()
        # Without the graph that autograd is about to hang on them: it would hold everything.
        self._kept[name] = tuple(result.detach() for result in results)
        return results


def run_with_recompute(mode: str, block: Callable[..., Tensor], *inputs: Any) -> Tensor:
    """Runs a block, keeping as many of its activations as the mode says.

    Args:
        mode: ``none`` keeps all; ``selective`` keeps every matrix product and attention and runs norms, modulation,
            rotation and GELU again; ``selective_ffn`` also runs the feed-forward's first product and the
            cross-attention again (not its output projection); ``full`` keeps the block's input only.
        block: Takes the inputs and, last, the `Activations` through which it computes.
        *inputs: Its other arguments.

    Returns:
        What the block returns.
    """
    if mode == "none" or not torch.is_grad_enabled():
        return block(*inputs, Activations())
    activations = KeptActivations(KEPT[mode])

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return _nothing(), activations.repeating()

    return checkpoint(block, *inputs, activations, use_reentrant=False, preserve_rng_state=False, context_fn=contexts)


@contextmanager
def _nothing() -> Any:
    yield
