"""Activation recompute: the same numbers from fewer kept bytes."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sama_mega.config import Recipe, build_recipe
from sama_mega.model import ModelInput, SamaDiT, build_model
from sama_mega.model.recompute import Activations, run_with_recompute
from sama_mega.parallel.runtime import ParallelContext, start_parallel, stop_parallel

MODES = ("none", "selective", "selective_ffn", "full")
SIZES = {
    "dim": 64,
    "num_layers": 3,
    "num_heads": 2,
    "ffn_dim": 160,
    "text_dim": 24,
    "text_length": 7,
    "time_features": 16,
    "semantic_dim": 20,
    "semantic_hidden_dim": 12,
}


def make_recipe(mode: str = "none", precision: str = "float32") -> Recipe:
    train = {"stage": 1, "steps": 1, "run_folder": "unused", "precision": precision, "recompute": mode}
    return build_recipe({"model": SIZES, "train": train}, "test")


@pytest.fixture(scope="module")
def context() -> Iterator[ParallelContext]:
    yield start_parallel(make_recipe(), environ={})
    stop_parallel()


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class KeptBytes(TorchDispatchMode):
    """Counts the memory of every tensor that an operation made and that something still holds.

    `torch.autograd.graph.saved_tensors_hooks` would miss what selective recompute keeps: that lies in the
    checkpoint's own cache, not in the graph.
    """

    def __init__(self, model: SamaDiT) -> None:
        super().__init__()
        self.weights = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
        self.storages: dict[int, tuple[Any, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                storage = leaf.untyped_storage()
                # A view of a weight is nothing new.
                if storage._cdata not in self.weights:
                    self.storages[storage._cdata] = (weakref.ref(storage), storage.nbytes())
        return result

    def count(self) -> int:
        return sum(size for alive, size in self.storages.values() if alive() is not None)


def forward(model: SamaDiT) -> Tensor:
    inputs = (
        normal(2, 16, 2, 6, 6, seed=1),
        torch.tensor([950.0, 400.0]),
        normal(2, 7, 24, seed=2),
        normal(2, 16, 2, 6, 6, seed=3),
        normal(2, 5, 20, seed=4),
        normal(2, 5, 20, seed=5),
    )
    output = model(ModelInput(*(tensor.to(next(model.parameters()).device) for tensor in inputs)))
    return output.velocity.square().mean() + output.semantic_loss_share.mean()


def train_once(mode: str, precision: str, context: ParallelContext) -> tuple[Tensor, dict[str, Tensor], int]:
    """Loss, gradients, and bytes that the forward pass left behind for the backward pass."""
    [model] = build_model(make_recipe(mode, precision), context)
    kept = KeptBytes(model)
    with kept:
        loss = forward(model)
    num_bytes = kept.count()
    loss.backward()
    return loss.detach(), {name: parameter.grad for name, parameter in model.named_parameters()}, num_bytes


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_losses_and_gradients_are_identical(precision: str, context: ParallelContext) -> None:
    loss, gradients, _ = train_once("none", precision, context)
    for mode in MODES[1:]:
        other_loss, other_gradients, _ = train_once(mode, precision, context)
        assert torch.equal(other_loss, loss), mode
        for name, gradient in gradients.items():
            assert torch.equal(other_gradients[name], gradient), (mode, name)


def test_each_mode_keeps_what_it_says(context: ParallelContext) -> None:
    kept = {mode: train_once(mode, "float32", context)[2] for mode in MODES}
    tokens, text, dim, heads, ffn_dim = 2 * (18 + 5 + 18), 2 * 7, SIZES["dim"], SIZES["num_heads"], SIZES["ffn_dim"]
    cross_attention = dim + dim + heads  # its q, what it gives, and its log-sum-exp
    without_ffn = tokens * (3 * dim + dim + heads + 3 * dim) + text * 2 * dim
    assert kept["selective_ffn"] - kept["full"] == SIZES["num_layers"] * 4 * without_ffn
    assert kept["selective"] - kept["selective_ffn"] == SIZES["num_layers"] * 4 * tokens * (cross_attention + ffn_dim)
    # Three blocks' inputs, and what lies outside the blocks.
    assert 3 * tokens * dim * 4 < kept["full"] < 0.3 * kept["none"]


class Operations(TorchDispatchMode):
    """Counts products of matrices and attentions."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.name()
        if name in ("aten::mm", "aten::addmm", "aten::bmm"):
            self.counts["product"] += 1
        elif name.startswith("aten::_scaled_dot_product") and not name.endswith("_backward"):
            self.counts["attention"] += 1
        return func(*args, **(kwargs or {}))


def test_what_is_kept_is_not_computed_again(context: ParallelContext) -> None:
    counts = {}
    for mode in MODES:
        [model] = build_model(make_recipe(mode), context)
        loss = forward(model)
        with Operations() as operations:
            loss.backward()
        counts[mode] = operations.counts
    assert counts["none"]["product"] and not counts["none"]["attention"]
    assert counts["selective"] == counts["none"]
    blocks = SIZES["num_layers"]
    again = {mode: counts[mode] - counts["none"] for mode in ("selective_ffn", "full")}
    assert again["selective_ffn"] == {"product": 2 * blocks, "attention": blocks}
    assert again["full"] == {"product": 7 * blocks, "attention": 2 * blocks}


class CountingBlock:
    """Counts how often it runs."""

    def __init__(self) -> None:
        self.calls = 0
        self.weight = normal(8, 8, seed=1).requires_grad_()

    def __call__(self, x: Tensor, activations: Activations) -> Tensor:
        self.calls += 1
        return (x @ self.weight).relu().square()


@pytest.mark.parametrize(("mode", "calls"), [("none", 1), ("selective", 2), ("selective_ffn", 2), ("full", 2)])
def test_recompute_runs_the_block_again_only_for_gradients(mode: str, calls: int) -> None:
    block = CountingBlock()
    with torch.no_grad():
        run_with_recompute(mode, block, normal(3, 8, seed=2))
    assert block.calls == 1
    block.calls = 0
    run_with_recompute(mode, block, normal(3, 8, seed=2)).sum().backward()
    assert block.calls == calls
