"""Memory by part: against what a rank of each layout really builds, and what its passes really hold."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import product
from math import prod
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock, patch

import pytest
import torch
import torch.distributed as dist
from megatron.core.pipeline_parallel.schedules import get_pp_rank_microbatches
from torch.testing._internal.distributed.fake_pg import FakeStore

from sama_mega.bench import planner_memory, planner_steps
from sama_mega.bench.held_bytes import HeldBytes
from sama_mega.bench.planner_grid import Configuration
from sama_mega.bench.planner_memory import MemoryCase, grid, measure_case, predict_kept
from sama_mega.bench.planner_rows import PlannerRow
from sama_mega.config import Recipe, build_recipe, load_recipe
from sama_mega.encoders import build_encoders
from sama_mega.model import ModelInput, build_model
from sama_mega.parallel import runtime
from sama_mega.parallel.cpu_shim import install_cpu_shim
from sama_mega.parallel.layout import Layout, micro_batch_group_size, resolve_layout
from sama_mega.parallel.runtime import ParallelContext, form_groups, start_parallel, stop_parallel
from sama_mega.parameters.shapes import our_shapes
from sama_mega.planner import memory
from sama_mega.planner.activations import BlockSizes, Kernels, block_bytes
from sama_mega.planner.memory import GIB, count_in_flight, predict_memory, state_bytes
from sama_mega.planner.rank_parameters import pack_buffers, stage_parameters
from sama_mega.planner.workload import MicroBatchShape, plan_workload
from sama_mega.train.batch import Batcher
from sama_mega.train.shared_encoding import Sharing
from sama_mega.train.slots import SlotStatistics
from sama_mega.train.state import build_train_state
from sama_mega.train.step import TrainStep

SIZES = {
    "dim": 96,
    "num_layers": 4,
    "num_heads": 4,
    "ffn_dim": 240,
    "text_dim": 56,
    "text_length": 16,
    "time_features": 32,
    "semantic_dim": 44,
    "semantic_hidden_dim": 36,
}
GRID = (3, 4, 6)
LAYOUTS: dict[str, tuple[int, dict[str, Any], int]] = {
    "one rank": (1, {}, 0),
    "tensor and sequence": (2, {"tensor": 2}, 0),
    "tensor": (2, {"tensor": 2, "sequence": False}, 0),
    "context, exchanging": (2, {"context": 2}, 0),
    "context, gathering": (2, {"context": 2, "ulysses": 1}, 0),
    "context, both": (4, {"context": 4, "ulysses": 2}, 0),
    "data": (4, {"overlap_grad_reduce": True, "overlap_param_gather": True}, 0),
    "pipeline": (2, {"pipeline": 2}, 0),
    "interleaved": (4, {"pipeline": 2, "interleave": 2, "tensor": 2}, 0),
    "low rank": (4, {"tensor": 2, "pipeline": 2}, 4),
}
"""Ranks, degrees, rank of low-rank training."""


def make_recipe(degrees: dict[str, Any], precision: str = "bfloat16", mode: str = "none", lora: int = 0) -> Recipe:
    train = {"stage": 1, "steps": 1, "run_folder": "unused", "precision": precision, "recompute": mode}
    sections = {"model": SIZES, "parallel": degrees, "train": train, "lora": {"rank": lora}}
    return build_recipe(sections | {"anchor": {"local_grid": 2}}, "test")


@contextmanager
def one_of(recipe: Recipe, num_ranks: int, rank: int = 0) -> Iterator[ParallelContext]:
    """One rank of a world whose others do not exist: its messages arrive as they left."""
    install_cpu_shim()
    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=num_ranks)
    own_group = runtime._own_group

    def fake_group(*given: Any, **options: Any) -> Any:
        return own_group(*given, **options | {"backend": "fake"})

    try:
        with patch.object(runtime, "_own_group", fake_group):
            context = form_groups(resolve_layout(recipe, num_ranks), torch.device("cpu"), seed=0)
        yield context
    finally:
        stop_parallel()


def test_a_model_without_semantic_tokens_is_counted_without_their_parts() -> None:
    model = SIZES | {"roles": "shifted_rope"}
    train = {"stage": 1, "steps": 1, "run_folder": "unused", "precision": "float32"}
    recipe = build_recipe({"model": model, "train": train, "anchor": {"num_frames": 0}}, "test")
    with one_of(recipe, 1) as context:
        [stage] = build_train_state(recipe, context, initialize=False).stages
        held = {name.removeprefix("module."): parameter.numel() for name, parameter in stage.named_parameters()}
        counted = stage_parameters(recipe, context.layout, context.layout.stage(0))
    assert {one.name: one.numel for one in counted} == held
    assert {name: prod(shape) for name, shape in our_shapes(recipe.model, anchors=False).items()} == held


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", LAYOUTS)
def test_a_rank_builds_what_was_counted(name: str, precision: str) -> None:
    num_ranks, degrees, lora = LAYOUTS[name]
    recipe = make_recipe(degrees, precision, lora=lora)
    pipeline = degrees.get("pipeline", 1)
    for pipeline_rank in range(pipeline):
        with one_of(recipe, num_ranks, rank=pipeline_rank * num_ranks // pipeline) as context:
            layout = context.layout
            state = build_train_state(recipe, context, initialize=False)
            counted = [
                parameter
                for index in layout.stages_of(pipeline_rank)
                for parameter in stage_parameters(recipe, layout, layout.stage(index))
            ]
            held = [
                (name.removeprefix("module."), parameter.numel(), parameter.element_size(), parameter.requires_grad)
                for stage in state.stages
                for name, parameter in stage.named_parameters()
            ]
            assert sorted(held) == sorted((one.name, one.numel, one.num_bytes, one.is_trained) for one in counted)
            buffers = [buffer for stage in state.stages for buffer in stage.buffers]
            frozen = sum(numel * size for _, numel, size, is_trained in held if not is_trained)
            owned = sum(one.master.numel() for one in state.optimizer.owned)
            masters = sum(one.master.numel() for one in state.optimizer.owned if one.parameter.dtype == torch.bfloat16)
            predicted = state_bytes(recipe, layout, pipeline_rank)
            assert predicted["weights"] == frozen + sum(buffer.param_data.nbytes for buffer in buffers)
            assert predicted["gradients"] == sum(buffer.grad_data.nbytes for buffer in buffers)
            assert predicted["optimizer"] == pytest.approx(4 * (2 * owned + masters), rel=0.01)
            assert predicted["average of the weights"] == pytest.approx(
                sum(value.nbytes for value in state.average.values), rel=0.01
            )


@pytest.mark.parametrize("mode", ["none", "selective"])
@pytest.mark.parametrize("name", [name for name, (_, degrees, _) in LAYOUTS.items() if "pipeline" not in degrees])
def test_a_rank_of_each_layout_keeps_what_was_counted(name: str, mode: str) -> None:
    num_ranks, degrees, _ = LAYOUTS[name]
    recipe = make_recipe(degrees, "float32", mode)
    # The last rank has the padding.
    with one_of(recipe, num_ranks, rank=num_ranks - 1) as context:
        shards = context.layout.sequence_shards
        batch = MicroBatchShape("video", 2, 96, 64, 9, 9, GRID, GRID, 5, 16, shards)
        [model] = build_model(recipe, context, initialize=False)
        counter = HeldBytes(model.parameters())
        with counter:
            output = model(
                ModelInput(
                    torch.randn(2, 16, 3, 8, 12),
                    torch.full((2,), 500.0),
                    torch.randn(2, 16, 56),
                    torch.randn(2, 16, 3, 8, 12),
                    torch.randn(2, 5, 44),
                    torch.randn(2, 5, 44),
                )
            )
            # As the loss would: a difference in the velocity's place.
            total = (output.velocity - 1).square().sum() + output.semantic_loss_share.sum()
            del output
            kept = counter.held
        del total, model
        gc.collect()
    assert predict_kept(recipe, context, batch, Kernels(fused=False)) == pytest.approx(kept, rel=0.03)


def test_the_passes_of_one_rank_hold_what_was_counted() -> None:
    """Of the calibration's small grid: images and videos, precisions, modes, low rank, written-out attention."""
    small = grid("small")
    cases = [*small[2::5], *small[-3:]]
    context = start_parallel(cases[0].recipe, environ={})
    try:
        for case in cases:
            kept, peak = measure_case(case, context, "held out")
            assert abs(kept.error) < 0.03, kept
            assert abs(peak.error) < 0.1, peak
    finally:
        stop_parallel()


@pytest.fixture
def wan14b(repo_root: Any) -> Recipe:
    return load_recipe(repo_root / "recipes/wan14b_stage1.yaml", [])


def test_every_case_of_the_calibration_has_a_layout_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = []

    def measure(case: MemoryCase, context: ParallelContext, split: str) -> list[PlannerRow]:
        blocks.append((case.recipe.model.num_layers, sum(context.layout.stage_layers)))
        return []

    monkeypatch.setattr(planner_memory, "measure_case", measure)
    planner_memory.measure_memory(lambda what: None)
    assert set(blocks) == {(3, 3), (4, 4)}


def test_weights_of_14b_by_hand(wan14b: Recipe) -> None:
    layout = resolve_layout(wan14b, 64)
    parameters = stage_parameters(wan14b, resolve_layout(wan14b, 8), layout.stage(0))
    assert sum(one.numel * (1 if not one.is_split else 8) for one in parameters) == pytest.approx(14.3e9, rel=0.01)
    [float32, bfloat16] = sorted(pack_buffers(parameters, 8, True, 0), key=lambda buffer: -buffer.num_bytes)
    assert bfloat16.owned == pytest.approx(bfloat16.numel / 8, rel=1e-3)
    assert float32.numel > 5120 * 5120 + 6 * 5120 * 5120 // 8


def test_blocks_of_14b_as_recompute_says(wan14b: Recipe) -> None:
    """In tensors of one value per token and feature, the block's input counted: see `KEPT` in recompute.py."""
    train = wan14b.train
    layout = Layout(1, 1, 1, 1, sequence=False, world_size=1, stage_layers=(40,))
    batch = MicroBatchShape("video", 1, 832, 480, 81, 81, (21, 30, 52), (21, 30, 52), 65, 0, 1)
    for mode, expected in (("full", 1.0), ("selective_ffn", 8.0), ("selective", 12.7)):
        recipe = wan14b.model_copy(update={"train": train.model_copy(update={"recompute": mode})})
        held = block_bytes(recipe, BlockSizes.of(recipe, layout, batch), Kernels(fused=True))
        # The log-sum-exps are the rest: 4 bytes a token and head.
        assert held / (2 * batch.num_tokens * 5120) == pytest.approx(expected, abs=0.05)


def test_stages_hold_several_micro_batches(wan14b: Recipe) -> None:
    parallel = wan14b.parallel
    piped = wan14b.model_copy(update={"parallel": parallel.model_copy(update={"pipeline": 4, "tensor": 4})})
    layout = resolve_layout(piped, 64)
    assert [count_in_flight(layout, rank, 40) for rank in range(4)] == [4, 3, 2, 1]
    assert count_in_flight(layout, 0, 2) == 2
    interleaved = replace(layout, stage_layers=(5,) * 8)
    assert [count_in_flight(interleaved, rank, 40) for rank in range(4)] == [11, 9, 7, 5]
    piped_memory = predict_memory(piped, layout)
    assert (piped_memory.stage, piped_memory.in_flight) == (0, 4)
    alone = predict_memory(wan14b, resolve_layout(wan14b, 64))
    # Ten of forty blocks, of four micro-batches, with half as many ranks sharing the tokens.
    assert piped_memory.parts["activations"] == pytest.approx(2 * alone.parts["activations"], rel=0.05)


def test_passes_in_flight_are_those_of_megatrons_warm_up() -> None:
    for pipeline, interleave in product((2, 4, 8), (2, 5)):
        layout = Layout(1, 1, pipeline, 1, False, pipeline, (1,) * (pipeline * interleave))
        for num_micro_batches, rank in product(range(pipeline, 4 * pipeline), range(pipeline)):
            group = Mock(size=Mock(return_value=pipeline), rank=Mock(return_value=rank))
            communicator: Any = SimpleNamespace(pp_group=group, virtual_pipeline_model_parallel_size=interleave)
            group_size = micro_batch_group_size(layout, num_micro_batches)
            assert pipeline <= group_size <= num_micro_batches  # or megatron refuses
            total, _, warm_up, _ = get_pp_rank_microbatches(
                num_micro_batches, interleave, group_size, p2p_communicator=communicator
            )
            assert count_in_flight(layout, rank, num_micro_batches) == min(total, warm_up + 1)


@pytest.mark.parametrize(("videos", "in_flight"), [(15, 75), (16, 47), (17, 51), (31, 75)])
def test_larger_groups_of_micro_batches_hold_more_passes(wan14b: Recipe, videos: int, in_flight: int) -> None:
    """31 videos are 16 micro-batches of one data rank and 15 of the other, whose groups are larger."""
    sections = wan14b.model_dump(exclude_unset=True)
    sections["parallel"] |= {"tensor": 8, "pipeline": 8, "interleave": 5}
    sections["data"] |= {"images_per_step": 0, "videos_per_step": videos}
    recipe = build_recipe(sections, "test")
    plan = predict_memory(recipe, resolve_layout(recipe, 128 if videos == 31 else 64))
    assert (plan.stage, plan.in_flight) == (0, in_flight)


@pytest.mark.parametrize(
    "degrees",
    [
        {"pipeline": 8, "stage_layers": [4, 4, 6, 5, 5, 5, 7, 4]},
        {"pipeline": 8, "stage_layers": [5, 5, 5, 5, 5, 5, 5, 5]},
        {"pipeline": 4, "interleave": 2, "stage_layers": [4, 4, 6, 6, 4, 5, 5, 6]},
    ],
)
def test_the_worst_of_all_pipeline_ranks_is_found(wan14b: Recipe, degrees: dict[str, Any]) -> None:
    """A rank with fewer blocks may hold more: it runs further ahead."""
    sections = wan14b.model_dump(exclude_unset=True)
    sections["parallel"] |= {"tensor": 4} | degrees
    sections["train"]["recompute"] = "selective"
    recipe = build_recipe(sections, "test")
    layout = resolve_layout(recipe, 32)
    work = plan_workload(recipe, layout)
    every = [memory._plan_rank(recipe, layout, work, rank, on_gpu=True).total for rank in range(layout.pipeline)]
    assert predict_memory(recipe, layout, work).total == max(every)


@pytest.mark.parametrize(("mode", "videos"), [("full", 3), ("full", 4), ("none", 3)])
@pytest.mark.parametrize("rank", [0, 1])
def test_passes_of_interleaved_stages_hold_no_more_than_was_counted(mode: str, videos: int, rank: int) -> None:
    """Real passes of one rank; three micro-batches of two stages go in one group, four in two."""
    configuration = Configuration(64, 8, 160, 128, 128, 1, videos, 0, micro_images=1, recompute=mode)
    recipe = configuration.recipe("cpu")
    degrees = {"pipeline": 2, "interleave": 4}
    recipe = recipe.model_copy(update={"parallel": recipe.parallel.model_copy(update=degrees)})
    with one_of(recipe, 2, rank=rank) as context, HeldBytes() as counter:
        state = build_train_state(recipe, context, initialize=False)
        batcher = Batcher(recipe, build_encoders(recipe, context.device), context.device, Sharing.among(context))
        step = TrainStep(recipe, context, state, batcher)
        # The other rank's samples were trained by nobody.
        with patch.object(SlotStatistics, "losses"):
            step.differentiate(planner_steps._samples(configuration, 0))
            gc.collect()
            counter.peak = before = counter.held
            step.differentiate(planner_steps._samples(configuration, 0))
        measured = counter.peak - before
        plan = memory._plan_rank(recipe, context.layout, plan_workload(recipe, context.layout), rank, on_gpu=False)
        planned = plan.total - sum(state_bytes(recipe, context.layout, rank).values())
    assert measured <= planned < 1.3 * measured


def test_the_average_on_the_host_leaves_the_device(wan14b: Recipe) -> None:
    layout = resolve_layout(wan14b, 8)
    there = predict_memory(wan14b, layout).parts
    optimizer = wan14b.optimizer.model_copy(update={"ema_device": "host"})
    moved = predict_memory(wan14b.model_copy(update={"optimizer": optimizer}), layout).parts
    assert there["average of the weights"] > 6 * GIB > GIB > moved["average of the weights"] > 0
    assert {part for part in there if there[part] != moved[part]} == {"average of the weights"}
