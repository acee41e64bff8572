"""The shortest and the oddest sequences in every way of sharing one: outputs, errors and every gradient.

`test_layouts` takes the step that `train` takes, with sequences as they come. Here are those at the edge: a rank that
holds padding only, one without a single semantic token, one token in all. The passes go through what `train` uses;
every rank also computes them alone, with groups of one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from math import prod
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.support.distributed import run_distributed

pytestmark = pytest.mark.distributed

TIMEOUT_SECONDS = 120.0
OUTPUT_LIMIT = 1e-5
GRADIENT_LIMIT = 1e-4
ROUNDING = 1e-7
GARBAGE = 30.0
SEMANTIC_WEIGHT = 0.1
BATCH = 3
# Two shapes of one batch: stages send each other both.
MICRO_BATCHES = (slice(0, 2), slice(2, 3))
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

    @property
    def segments(self) -> tuple[int, int, int]:
        return prod(self.source) if self.source else 0, self.num_semantic, prod(self.target)

    @property
    def num_tokens(self) -> int:
        return sum(self.segments)

    def real_tokens(self, num_shards: int) -> list[int]:
        """Tokens that are no padding, by rank; written apart from `TokenLayout`."""
        each = -(-self.num_tokens // num_shards)
        return [max(0, min(each, self.num_tokens - shard * each)) for shard in range(num_shards)]

    def semantic_ranks(self, num_shards: int) -> set[int]:
        """Ranks that hold a semantic token."""
        each, first = -(-self.num_tokens // num_shards), self.segments[0]
        return {position // each for position in range(first, first + self.num_semantic)}


CASES = {
    "video edit, one token of padding": Case((3, 3, 3), 5, (3, 3, 3)),
    "video edit, no padding": Case((3, 3, 3), 6, (3, 3, 3)),
    "image edit": Case((1, 3, 5), 5, (1, 3, 5)),
    "source and target of different shapes": Case((2, 1, 5), 3, (3, 5, 2)),
    "all semantic tokens on the first rank": Case((1, 1, 2), 3, (2, 3, 3)),
    "all semantic tokens on the second rank": Case((4, 3, 2), 3, (1, 1, 2)),
    "five tokens": Case((1, 1, 1), 3, (1, 1, 1)),
    "three tokens": Case((1, 1, 1), 1, (1, 1, 1)),
    "text to video": Case(None, 0, (3, 1, 5)),
    "text to video of one token": Case(None, 0, (1, 1, 1)),
}
SHORTEST = ("five tokens", "three tokens", "text to video of one token")
"""On four ranks: the last, two or three of them hold padding only."""
LAYOUTS: dict[int, dict[str, dict[str, Any]]] = {
    2: {
        "tensor with sequence": {"tensor": 2},
        "tensor without sequence": {"tensor": 2, "sequence": False},
        "context, exchanging heads": {"context": 2},
        "context, gathering keys and values": {"context": 2, "ulysses": 1},
        "pipeline": {"pipeline": 2},
    },
    4: {
        "context of four, exchanging heads": {"context": 4},
        "context of four, gathering keys and values": {"context": 4, "ulysses": 1},
        "tensor and context": {"tensor": 2, "context": 2},
    },
}
SHARDS = {
    name: 1 if degrees.get("sequence") is False or "pipeline" in degrees else ranks
    for ranks, layouts in LAYOUTS.items()
    for name, degrees in layouts.items()
}
"""By layout: ranks that share a sequence."""


def cases_of(ranks: int) -> tuple[str, ...]:
    return tuple(CASES) if ranks == 2 else SHORTEST


def make_recipe(degrees: dict[str, Any]) -> Any:
    from sama_mega.config import build_recipe

    train = {"stage": 1, "steps": 1, "run_folder": "unused", "precision": "float32", "cpu_threads": 1}
    return build_recipe({"model": SIZES, "parallel": degrees, "train": train}, "test")


# --- run by the ranks ---------------------------------------------------------------------------------


def make_batch(case: Case) -> Any:
    """The same numbers on every rank."""
    from sama_mega.model import ModelInput
    from sama_mega.train.forward import NoisedBatch

    generator = torch.Generator().manual_seed(case.num_tokens)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    def latents(grid: tuple[int, int, int]) -> Tensor:
        return normal(BATCH, 16, grid[0], 2 * grid[1], 2 * grid[2])

    semantic = (BATCH, case.num_semantic, SIZES["semantic_dim"])
    given = ModelInput(
        noisy_latents=latents(case.target),
        timesteps=torch.tensor([963.5, 12.25, 500.0]),
        text=normal(BATCH, 7, SIZES["text_dim"]),
        source_latents=latents(case.source) if case.source else None,
        noisy_semantic=normal(*semantic) if case.num_semantic else None,
        semantic_target=normal(*semantic) if case.num_semantic else None,
    )
    return NoisedBatch(given, latents(case.target), torch.tensor([0.5, 1.5, 1.0]))


def cut(batch: Any, samples: slice) -> Any:
    """Some samples of a batch."""
    from sama_mega.model import ModelInput
    from sama_mega.train.forward import NoisedBatch

    values = {field.name: getattr(batch.given, field.name) for field in fields(batch.given)}
    given = ModelInput(**{name: None if value is None else value[samples] for name, value in values.items()})
    return NoisedBatch(given, batch.velocity_target[samples], batch.timestep_weights[samples])


def build_state(recipe: Any, context: Any) -> Any:
    from sama_mega.model.initialize import perturb_weights
    from sama_mega.train.state import build_train_state

    state = build_train_state(recipe, context, initialize=True)
    for stage in state.stages:
        perturb_weights(stage.module, seed=0)
    return state


def predict(state: Any, case: Case) -> dict[str, list[Tensor]]:
    """Both velocities through all stages."""
    from dataclasses import replace

    output = state.model(replace(make_batch(case).given, semantic_target=None))
    found = {"velocity": output.velocity, "semantic_velocity": output.semantic_velocity}
    return {name: [tensor] for name, tensor in found.items() if tensor is not None}


def differentiate(state: Any, context: Any, case: Case) -> dict[str, list[Tensor]]:
    """Errors of every sample and the gradient of every parameter, whole: each copy that the ranks hold."""
    from sama_mega.diffusion.losses import sama_loss
    from sama_mega.model import ModelOutput
    from sama_mega.parallel.collectives import all_reduce_in_place, broadcast_object, gather_objects
    from sama_mega.parallel.gradients import finalize_gradients
    from sama_mega.parallel.schedule import run_forward_backward
    from sama_mega.train.forward import measure_errors
    from sama_mega.verify.whole_tensors import owned_gradients, put_together

    batch, sample_weights = make_batch(case), torch.tensor([1.0, 0.5, 2.0])
    flow_matching: list[Tensor] = []
    semantic = torch.zeros(BATCH)

    def forward_step(stage: nn.Module, samples: slice) -> Tensor:
        output = stage(cut(batch, samples).given)
        if not isinstance(output, ModelOutput):
            return output
        errors = measure_errors(output, cut(batch, samples), "auto")
        flow_matching.append(errors.flow_matching.detach())
        if context.reports_token_shares:
            semantic[samples] = errors.semantic_share.detach()
        weights = sample_weights[samples]
        return sama_loss(errors.flow_matching, errors.semantic_share, weights, 7.0, SEMANTIC_WEIGHT).total

    state.optimizer.zero_grad()
    run_forward_backward(
        state.stages,
        MICRO_BATCHES,
        lambda samples: samples,
        forward_step,
        lambda samples: state.stages[0].module.hidden_shape(cut(batch, samples).given),
        context,
    )
    finalize_gradients(state.stages, state.optimizer.owned, context)
    everyones = gather_objects(torch.cat(flow_matching) if flow_matching else None, context.world_group)
    found = {"flow_matching_errors": [errors for errors in everyones if errors is not None]}
    found["semantic_errors"] = [all_reduce_in_place(semantic, context.world_group)]
    gradients = broadcast_object(put_together(owned_gradients(state), context), context.world_group)
    return found | {f"grad {name}": copies for name, copies in gradients.items()}


@contextmanager
def watched_padding(state: Any, case: Case, context: Any, value: float) -> Iterator[list[float]]:
    """Puts a value into this rank's padding before the first block; yields the gradients found at every block's."""
    num_real = case.real_tokens(context.layout.sequence_shards)[context.sequence_shard]
    largest: list[float] = []

    def put(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Any, ...]:
        padding = torch.full_like(inputs[0][num_real:], value)
        return torch.cat([inputs[0][:num_real], padding]), *inputs[1:]

    def watch(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if inputs[0].requires_grad:
            inputs[0].register_hook(lambda gradient: largest.append(gradient[num_real:].abs().sum().item()))

    handles = []
    for stage in state.stages:
        for number, block in stage.module.blocks.items():
            handles += [block.register_forward_pre_hook(put)] if number == "0" else []
            handles.append(block.register_forward_pre_hook(watch))
    try:
        yield largest
    finally:
        for handle in handles:
            handle.remove()


def compare_all(ours: dict[str, list[Tensor]], alone: dict[str, list[Tensor]]) -> dict[str, float]:
    """Relative error over limit of the worst copy, by tensor; above 1 is wrong.

    A gradient that is zero but for rounding (one token attends to itself, whatever its q and k; text-to-video has no
    semantic parts) must be as small here: a millionth of the largest.
    """
    assert ours.keys() == alone.keys()
    largest = max(copies[0].norm().item() for name, copies in alone.items() if name.startswith("grad "))

    def error(name: str, copy: Tensor) -> float:
        expected = alone[name][0].double()
        is_gradient, size = name.startswith("grad "), expected.norm().item()
        assert copy.shape == expected.shape, name
        difference = (copy.double() - expected).norm().item()
        if is_gradient and size < ROUNDING * largest:
            return difference / (10 * ROUNDING * largest)
        return difference / (size or 1.0) / (GRADIENT_LIMIT if is_gradient else OUTPUT_LIMIT)

    # NaN would hide from max(): it is infinitely wrong.
    errors = {name: [error(name, copy) for copy in copies] for name, copies in ours.items()}
    return {name: max(one if one == one else float("inf") for one in found) for name, found in errors.items()}


@dataclass
class Found:
    """What one rank found of one case in one layout; the last three where there is padding.

    Attributes:
        errors: Relative error over limit, by tensor.
        num_copies: By tensor.
        with_garbage: The same as `errors` with `GARBAGE` in the padding.
        same_with_nan: Whether predictions were the same to the last bit with NaN in the padding.
        padding_gradients: Sums of magnitudes at every block's input, a micro-batch each.
    """

    errors: dict[str, float]
    num_copies: dict[str, int]
    with_garbage: dict[str, float] | None = None
    same_with_nan: bool | None = None
    padding_gradients: list[float] | None = None


def examine(state: Any, context: Any, name: str, alone: dict[str, list[Tensor]]) -> Found:
    case = CASES[name]
    predicted = predict(state, case)
    ours = predicted | differentiate(state, context, case)
    found = Found(compare_all(ours, alone), {key: len(copies) for key, copies in ours.items()})
    if not case.num_tokens % context.layout.sequence_shards:
        return found
    with watched_padding(state, case, context, GARBAGE) as gradients:
        with_garbage = predicted | differentiate(state, context, case)
    found.with_garbage, found.padding_gradients = compare_all(with_garbage, alone), gradients
    with watched_padding(state, case, context, float("nan")):
        with_nan = predict(state, case)
    found.same_with_nan = all(torch.equal(with_nan[key][0], predicted[key][0]) for key in predicted)
    return found


def run_layouts(ranks: int) -> dict[tuple[str, str], Found]:
    """By layout and case."""
    import gc

    from sama_mega.parallel.layout import resolve_layout
    from sama_mega.parallel.runtime import form_groups, leave_groups, solo_context, start_parallel, stop_parallel

    torch.set_num_threads(1)
    context = start_parallel(make_recipe({"data": ranks}), timeout_seconds=60)
    solo = solo_context(context)
    state = build_state(make_recipe({}), solo)
    alone = {name: predict(state, CASES[name]) | differentiate(state, solo, CASES[name]) for name in cases_of(ranks)}
    found = {}
    for label, degrees in LAYOUTS[ranks].items():
        recipe, device = make_recipe(degrees), context.device
        leave_groups(context)
        # Connections close when nothing refers to them, and a model refers to its groups in cycles.
        del context, state
        gc.collect()
        context = form_groups(resolve_layout(recipe, ranks), device, seed=0)
        assert context.layout.sequence_shards == SHARDS[label]
        state = build_state(recipe, context)
        found |= {(label, name): examine(state, context, name, alone[name]) for name in cases_of(ranks)}
    stop_parallel()
    return found


# --- run by pytest ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def found() -> dict[int, list[dict[tuple[str, str], Found]]]:
    """By number of ranks, by rank, by layout and case."""
    return {ranks: run_distributed(run_layouts, ranks, TIMEOUT_SECONDS, (ranks,)) for ranks in LAYOUTS}


def parameters(wanted: Callable[[str, str], bool] = lambda layout, case: True) -> list[Any]:
    """Number of ranks, layout and case."""
    return [
        pytest.param(ranks, layout, case, id=f"{layout}: {case}")
        for ranks, layouts in LAYOUTS.items()
        for layout in layouts
        for case in cases_of(ranks)
        if wanted(layout, case)
    ]


def has_padding(layout: str, case: str) -> bool:
    return bool(CASES[case].num_tokens % SHARDS[layout])


def wrong(errors: dict[str, float]) -> dict[str, float]:
    """Tensors beyond their limit."""
    return {name: error for name, error in errors.items() if not error <= 1.0}


@pytest.mark.parametrize(("ranks", "layout", "case"), parameters())
def test_the_ranks_compute_what_one_does(ranks: int, layout: str, case: str, found: Any) -> None:
    for rank in found[ranks]:
        one = rank[layout, case]
        assert not wrong(one.errors)
        has_semantic = CASES[case].num_semantic > 0
        assert ("semantic_velocity" in one.errors) == has_semantic
        # Every parameter: 21 in each of two blocks, 26 outside; three outputs; the semantic velocity.
        assert len(one.errors) == 2 * 21 + 26 + 3 + has_semantic


@pytest.mark.parametrize(("ranks", "layout", "case"), parameters(has_padding))
def test_nothing_reads_the_padding(ranks: int, layout: str, case: str, found: Any) -> None:
    for rank in found[ranks]:
        one = rank[layout, case]
        assert one.same_with_nan
        assert not wrong(one.with_garbage)


@pytest.mark.parametrize(("ranks", "layout", "case"), parameters(has_padding))
def test_padding_gets_no_gradient(ranks: int, layout: str, case: str, found: Any) -> None:
    for rank in found[ranks]:
        gradients = rank[layout, case].padding_gradients
        assert gradients == [0.0] * (len(MICRO_BATCHES) * SIZES["num_layers"])


def test_every_copy_is_compared(found: Any) -> None:
    """What each tensor rank holds whole, what every stage has a copy of, and errors on every rank that knows them."""
    tensor = found[2][0]["tensor with sequence", "image edit"].num_copies
    assert (tensor["grad head.head.weight"], tensor["grad blocks.0.ffn.linear_in.weight"]) == (2, 1)
    assert tensor["flow_matching_errors"] == 2
    pipeline = found[2][0]["pipeline", "image edit"].num_copies
    assert (pipeline["grad time_embedding.projection.weight"], pipeline["grad head.head.weight"]) == (2, 1)
    assert pipeline["flow_matching_errors"] == 1


def test_the_cases_meet_every_edge() -> None:
    assert CASES["video edit, one token of padding"].real_tokens(2) == [30, 29]
    assert not CASES["video edit, no padding"].num_tokens % 2
    assert CASES["all semantic tokens on the first rank"].semantic_ranks(2) == {0}
    assert CASES["all semantic tokens on the second rank"].semantic_ranks(2) == {1}
    assert CASES["text to video of one token"].real_tokens(2) == [1, 0]
    shortest = [CASES[name].real_tokens(4) for name in SHORTEST]
    assert shortest == [[2, 2, 1, 0], [1, 1, 1, 0], [1, 0, 0, 0]]
