"""The model on two tensor-parallel ranks against one rank: outputs, loss shares, every gradient; planted bugs.

Losses and gradients go through what `train` uses: `build_model`, megatron's DDP, `run_forward_backward`,
`forward_errors`, `sama_loss`, `finalize_gradients`. Both ranks also compute the one-rank reference, with groups of one.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from math import prod
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor

from tests.support.distributed import run_distributed

pytestmark = pytest.mark.distributed

TIMEOUT_SECONDS = 120.0
OUTPUT_LIMIT = 1e-5
GRADIENT_LIMIT = 1e-4
ROUNDING = 1e-7
SEMANTIC_WEIGHT = 0.1
SIZES = {
    "dim": 64,
    "num_layers": 2,
    "num_heads": 4,
    "ffn_dim": 92,
    "text_dim": 24,
    "text_length": 7,
    "time_features": 16,
    "semantic_dim": 20,
    "semantic_hidden_dim": 12,
    "type_embedding_std": 0.3,
}


@dataclass(frozen=True)
class Case:
    """A kind of sequence; grids are (t, h, w) patches, latents twice as high and wide."""

    source: tuple[int, int, int] | None
    num_semantic: int
    target: tuple[int, int, int]
    batch: int = 2

    @property
    def num_tokens(self) -> int:
        return (prod(self.source) if self.source else 0) + self.num_semantic + prod(self.target)


CASES = {
    "video edit, one token of padding": Case((3, 3, 3), 5, (3, 3, 3)),
    "video edit, no padding": Case((3, 3, 3), 6, (3, 3, 3)),
    "image edit": Case((1, 3, 5), 5, (1, 3, 5), batch=3),
    "source and target of different shapes": Case((2, 1, 5), 3, (3, 5, 2)),
    "all semantic tokens on the first rank": Case((1, 1, 2), 3, (2, 3, 3)),
    "all semantic tokens on the second rank": Case((4, 3, 2), 3, (1, 1, 2)),
    "three tokens": Case((1, 1, 1), 1, (1, 1, 1)),
    "text to video": Case(None, 0, (3, 1, 5)),
    "text to video of one token, the second rank has padding only": Case(None, 0, (1, 1, 1)),
}
VIDEO = "video edit, one token of padding"


def make_recipe(**train: Any) -> Any:
    from sama_mega.config import build_recipe

    defaults = {"stage": 1, "steps": 1, "run_folder": "unused", "precision": "float32"}
    return build_recipe({"model": SIZES, "parallel": {"tensor": 2}, "train": defaults | train}, "test")


# --- run by the ranks ---------------------------------------------------------------------------------


def make_batch(case: Case, device: torch.device) -> Any:
    """The same numbers on every rank."""
    from sama_mega.train.forward import NoisedBatch

    generator = torch.Generator().manual_seed(case.num_tokens)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(device)

    def latents(grid: tuple[int, int, int]) -> Tensor:
        return normal(case.batch, 16, grid[0], 2 * grid[1], 2 * grid[2])

    semantic = (case.batch, case.num_semantic, SIZES["semantic_dim"])
    return NoisedBatch(
        noisy_latents=latents(case.target),
        velocity_target=latents(case.target),
        noisy_semantic=normal(*semantic) if case.num_semantic else None,
        semantic_target=normal(*semantic) if case.num_semantic else None,
        source_latents=latents(case.source) if case.source else None,
        text=normal(case.batch, 7, SIZES["text_dim"]),
        timesteps=torch.tensor([963.5, 12.25, 500.0], device=device)[: case.batch],
        timestep_weights=torch.tensor([0.5, 1.5, 1.0], device=device)[: case.batch],
    )


def run_model(recipe: Any, context: Any, case: Case) -> dict[str, Tensor]:
    """Everything that one step computes, whole: what a rank holds a part of is put together."""
    from sama_mega.diffusion.losses import sama_loss
    from sama_mega.model import build_model
    from sama_mega.model.shards import gather_parameters, my_slice
    from sama_mega.parallel.collectives import all_reduce_in_place
    from sama_mega.parallel.data_parallel import finalize_gradients, wrap_data_parallel
    from sama_mega.parallel.schedule import run_forward_backward
    from sama_mega.train.forward import NoisedBatch, SampleErrors, forward_errors

    model = build_model(recipe, context)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # Fresh text embeddings are so small that all keys look alike, and the gradients of cross-attention are
            # what is left after a cancellation.
            if name.startswith("text_embedding.") and parameter.dim() == 2:
                parameter.mul_(10)
            # Fresh biases are zeros and norms ones: a bias added twice or a wrong slice would not show.
            if parameter.dim() == 1:
                num_slices = context.layout.tensor if getattr(parameter, "partition_dim", -1) == 0 else 1
                wave = 0.2 * torch.sin(torch.arange(1.0, 1 + num_slices * parameter.numel()))
                parameter.add_(my_slice(wave, parameter, context).to(context.device))
    batch = make_batch(case, context.device)
    with torch.no_grad():
        output = model(batch.noisy_latents, batch.timesteps, batch.text, batch.source_latents, batch.noisy_semantic)
    found = {"velocity": output.velocity}
    if output.semantic_velocity is not None:
        found["semantic_velocity"] = output.semantic_velocity
    wrapped = wrap_data_parallel(recipe, model, model.config, context)
    errors: list[SampleErrors] = []

    def forward_step(noised: NoisedBatch) -> Tensor:
        errors.append(forward_errors(wrapped, noised, "auto"))
        weights = torch.tensor([1.0, 0.5, 2.0], device=context.device)[: case.batch]
        return sama_loss(errors[0].flow_matching, errors[0].semantic_share, weights, 7.0, SEMANTIC_WEIGHT).total

    wrapped.zero_grad_buffer()
    run_forward_backward(wrapped, [batch], forward_step)
    finalize_gradients(wrapped, context)
    found["flow_matching_errors"] = errors[0].flow_matching.detach()
    semantic = errors[0].semantic_share.detach().clone()
    if context.layout.sequence:
        all_reduce_in_place(semantic, context.tensor_group)
    found["semantic_errors"] = semantic
    gradients = gather_parameters(model, context, lambda parameter: parameter.main_grad)
    found = {name: tensor.cpu() for name, tensor in found.items()}
    return found | {f"grad {name}": gradient for name, gradient in gradients.items()}


def compare_all(ours: dict[str, Tensor], alone: dict[str, Tensor]) -> dict[str, float]:
    """Relative error over limit, by tensor; above 1 is wrong.

    A gradient that is zero but for rounding (one token attends to itself, whatever its q and k; text-to-video has no
    semantic parts) must be as small here: a millionth of the largest.
    """
    assert ours.keys() == alone.keys()
    largest = max(tensor.norm().item() for name, tensor in alone.items() if name.startswith("grad "))
    errors = {}
    for name, expected in alone.items():
        is_gradient, size = name.startswith("grad "), expected.double().norm().item()
        difference = (ours[name].double() - expected.double()).norm().item()
        if is_gradient and size < ROUNDING * largest:
            errors[name] = difference / (10 * ROUNDING * largest)
        else:
            errors[name] = difference / (size or 1.0) / (GRADIENT_LIMIT if is_gradient else OUTPUT_LIMIT)
    return errors


# Planted bugs: each breaks one thing in the real code path.


def rank_local_norm() -> AbstractContextManager[Any]:
    from sama_mega.model import attention

    def no_sum(*inputs: Any, sum_over_ranks: Any = None, **options: Any) -> Any:
        return qk_norm_rope(*inputs, **options)

    qk_norm_rope = attention.qk_norm_rope
    return patch.object(attention, "qk_norm_rope", no_sum)


def norm_without_backward_sum() -> AbstractContextManager[Any]:
    from sama_mega.model import attention

    def forward_only(*inputs: Any, sum_over_ranks: Any = None, **options: Any) -> Any:
        def sum_first_message(tensor: Tensor) -> None:
            if not summed:
                sum_over_ranks(tensor)
            summed.append(True)

        summed: list[bool] = []
        return qk_norm_rope(*inputs, sum_over_ranks=sum_first_message if sum_over_ranks else None, **options)

    qk_norm_rope = attention.qk_norm_rope
    return patch.object(attention, "qk_norm_rope", forward_only)


def unreduced_sequence_gradients() -> AbstractContextManager[Any]:
    from sama_mega.parallel import data_parallel

    return patch.object(data_parallel, "flattened_all_reduce", lambda *_: None)


def dropped_last_token() -> AbstractContextManager[Any]:
    from sama_mega.model import sama_dit

    def without_last(patches: Tensor, *rest: Any) -> Tensor:
        return unpatchify(torch.cat([patches[:-1], torch.zeros_like(patches[-1:])]), *rest)

    unpatchify = sama_dit.unpatchify
    return patch.object(sama_dit, "unpatchify", without_last)


def attended_padding() -> AbstractContextManager[Any]:
    """One zero key more: what attention sees when the padded token is left in."""
    from sama_mega.model import attention

    def with_padding(q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Tensor:
        k, v = (torch.cat([x, torch.zeros_like(x[:, :1])], dim=1) for x in (k, v))
        return kernel(q, k, v, **options)

    kernel = attention.attention
    return patch.object(attention, "attention", with_padding)


def unsliced_output_gradient() -> AbstractContextManager[Any]:
    """The gathered velocity's gradient summed over ranks that hold the same loss: twice too large."""
    from sama_mega.model import sama_dit

    def summed(patches: Tensor, tensor_parallel_output_grad: bool, group: Any) -> Tensor:
        return gather(patches, tensor_parallel_output_grad=True, group=group)

    gather = sama_dit.gather_from_sequence_parallel_region
    return patch.object(sama_dit, "gather_from_sequence_parallel_region", summed)


PLANTS: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "rank-local q/k norm": rank_local_norm,
    "q/k norm without the backward sum": norm_without_backward_sum,
    "unreduced sequence-parallel gradients": unreduced_sequence_gradients,
    "dropped last token": dropped_last_token,
    "attended padding": attended_padding,
    "output gradient not cut to the rank's tokens": unsliced_output_gradient,
}


def run_two_ranks() -> dict[str, dict[str, float]]:
    """Every case in both layouts, recompute, then every plant: error over limit by tensor."""
    from sama_mega.parallel.runtime import solo_context, start_parallel, stop_parallel

    recipe = make_recipe()
    with_sequence = start_parallel(recipe, timeout_seconds=60)
    assert with_sequence.layout.sequence
    without_sequence = replace(with_sequence, layout=replace(with_sequence.layout, sequence=False))
    layouts = {"sequence parallel": with_sequence, "tensor parallel only": without_sequence}
    solo = solo_context(with_sequence)
    alone = {name: run_model(recipe, solo, case) for name, case in CASES.items()}
    found = {}

    def check(label: str, context: Any, case: str, planted: AbstractContextManager[Any], **train: Any) -> None:
        with planted:
            ours = run_model(make_recipe(**train), context, CASES[case])
        found[label] = compare_all(ours, alone[case])

    for layout, context in layouts.items():
        for case in CASES:
            check(f"{layout}: {case}", context, case, nullcontext())
        for mode in ("selective", "full"):
            check(f"{layout}: recompute {mode}", context, VIDEO, nullcontext(), recompute=mode)
        for plant, make in PLANTS.items():
            check(f"{layout}: {plant}", context, VIDEO, make())
    stop_parallel()
    return found


# --- run by pytest ------------------------------------------------------------------------------------


LAYOUTS = ("sequence parallel", "tensor parallel only")


@pytest.fixture(scope="module")
def two_ranks() -> list[dict[str, dict[str, float]]]:
    """By rank, by label, by tensor: error over limit."""
    return run_distributed(run_two_ranks, 2, TIMEOUT_SECONDS)


def wrong_tensors(found: list[dict[str, dict[str, float]]], label: str) -> set[str]:
    """Tensors beyond their limit on any rank; NaN is beyond."""
    return {name for rank in found for name, error in rank[label].items() if not error <= 1.0}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_two_ranks_compute_what_one_does(layout: str, case: str, two_ranks: list[Any]) -> None:
    assert not wrong_tensors(two_ranks, f"{layout}: {case}")
    compared = two_ranks[0][f"{layout}: {case}"]
    assert {"velocity", "flow_matching_errors", "semantic_errors"} <= compared.keys()
    assert ("semantic_velocity" in compared) == (CASES[case].num_semantic > 0)
    # Every parameter: 21 in each of two blocks, 26 outside.
    assert sum(name.startswith("grad ") for name in compared) == 2 * 21 + 26


@pytest.mark.parametrize("mode", ["selective", "full"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_recompute_repeats_the_messages(layout: str, mode: str, two_ranks: list[Any]) -> None:
    assert not wrong_tensors(two_ranks, f"{layout}: recompute {mode}")


def test_cases_meet_every_way_of_cutting() -> None:
    odd = [case for case in CASES.values() if case.num_tokens % 2]
    assert len(odd) >= 4
    assert len(odd) < len(CASES)


@pytest.mark.parametrize(
    ("plant", "layout", "broken"),
    [
        ("rank-local q/k norm", "sequence parallel", {"velocity", "semantic_velocity", "semantic_errors"}),
        ("rank-local q/k norm", "tensor parallel only", {"velocity", "semantic_velocity", "semantic_errors"}),
        (
            "q/k norm without the backward sum",
            "sequence parallel",
            {"grad blocks.0.self_attn.linear_qkv.weight", "grad blocks.1.cross_attn.q.weight"},
        ),
        (
            "unreduced sequence-parallel gradients",
            "sequence parallel",
            {
                "grad patch_embedding.weight",
                "grad segment_embedding.weight",
                "grad siglip_feat_mlp.fc1.weight",
                "grad time_embedding.projection.weight",
                "grad blocks.0.modulation",
                "grad blocks.0.norm3.bias",
                "grad blocks.1.ffn.linear_out.bias",
                "grad head.head.weight",
                "grad semantic_head.proj.weight",
            },
        ),
        ("dropped last token", "sequence parallel", {"velocity", "flow_matching_errors", "grad head.head.weight"}),
        ("dropped last token", "tensor parallel only", {"velocity", "flow_matching_errors", "grad head.head.weight"}),
        ("attended padding", "sequence parallel", {"velocity", "semantic_velocity"}),
        (
            "output gradient not cut to the rank's tokens",
            "sequence parallel",
            {
                "grad head.head.weight",
                "grad blocks.0.self_attn.linear_qkv.weight",
                "grad text_embedding.linear_in.weight",
            },
        ),
    ],
)
def test_the_comparison_finds_planted_bugs(plant: str, layout: str, broken: set[str], two_ranks: list[Any]) -> None:
    wrong = wrong_tensors(two_ranks, f"{layout}: {plant}")
    assert broken <= wrong
    # By a margin: a bug that only just shows would hide behind another seed.
    worst = {name: max(rank[f"{layout}: {plant}"][name] for rank in two_ranks) for name in broken}
    assert min(worst.values()) > 3, worst


def test_a_forgotten_gradient_sum_leaves_outputs_right(two_ranks: list[Any]) -> None:
    """Why outputs and losses alone prove nothing about a layout."""
    for plant in ("unreduced sequence-parallel gradients", "q/k norm without the backward sum"):
        wrong = wrong_tensors(two_ranks, f"sequence parallel: {plant}")
        assert all(name.startswith("grad ") for name in wrong), plant
