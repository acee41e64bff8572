"""Losses by slot: weighted means, sums over ranks, digests; ranks are played by adding their tables."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sama_data.errors import DataError
from sama_data.loader import StepSamples
from sama_mega.config.schema import Recipe
from sama_mega.parallel.layout import Layout
from sama_mega.parallel.runtime import ParallelContext
from sama_mega.parallel.transfer import read_numbers
from sama_mega.train import slots as slots_module
from sama_mega.train.batch import MicroBatch
from sama_mega.train.forward import SampleErrors
from sama_mega.train.slots import TASKS, SlotStatistics, StepLosses
from tests.support.tiny_recipe import tiny_recipe

IMAGES, SLOTS = 2, 5
FLOW_MATCHING = [0.1, 0.7, 1.3, 2.9, 0.4]
SEMANTIC = [0.2, 0.6, 0.5, 0.8, 0.3]
TIMESTEPS = [999.0, 20.5, 500.0, 3.0, 70.0]
ROWS = [31, 7, 900, 12, 0]
TASK_OF = ["edit", "edit", "cube", "edit", "tube"]
TOKENS = 21


def make_recipe(image_weight: float = 1.0, semantic_weight: float = 0.1) -> Recipe:
    changes = {"data.image_weight": image_weight, "anchor.weight": semantic_weight}
    return tiny_recipe(0, Path("unused"), Path("unused.jsonl"), changes=changes)


def make_context(tensor_rank: int = 0, ranks: int = 1, sequence: bool = False) -> ParallelContext:
    """One of so many tensor ranks; they send nothing."""
    layout = Layout(tensor=ranks, context=1, pipeline=1, data=1, sequence=sequence, world_size=ranks, stage_layers=(1,))
    group: Any = SimpleNamespace(size=lambda: 1)
    return ParallelContext(
        device=torch.device("cpu"),
        layout=layout,
        rank=tensor_rank,
        world_size=ranks,
        tensor_rank=tensor_rank,
        context_rank=0,
        pipeline_rank=0,
        data_rank=0,
        tensor_group=group,
        pipeline_group=group,
        ulysses_group=group,
        key_value_group=group,
        data_group=group,
        model_group=group,
        world_group=group,
        host_world_group=group,
        groups=group,
    )


def make_statistics(recipe: Recipe, context: ParallelContext | None = None) -> SlotStatistics:
    drawn = StepSamples(step=0, samples=[], num_slots=SLOTS, num_image_slots=IMAGES)
    return SlotStatistics(drawn, recipe, context or make_context())


def record(
    statistics: SlotStatistics, slots: Sequence[int], share: float = 1.0, rows: Sequence[int] = tuple(ROWS)
) -> None:
    """Notes one micro-batch that holds these slots; `share` of the semantic loss is this rank's."""
    nothing = torch.zeros(len(slots), 1)
    batch = MicroBatch(
        slots=tuple(slots),
        sample_indices=tuple(rows[slot] for slot in slots),
        epochs=(0,) * len(slots),
        tasks=tuple(TASK_OF[slot] for slot in slots),
        latents=nothing,
        source_latents=nothing,
        semantic_features=nothing,
        text=nothing,
        weights=nothing,
    )
    errors = SampleErrors(
        torch.tensor([FLOW_MATCHING[slot] for slot in slots], requires_grad=True),
        torch.tensor([SEMANTIC[slot] * share for slot in slots], requires_grad=True),
    )
    statistics.record(batch, errors, torch.tensor([TIMESTEPS[slot] for slot in slots]), TOKENS)


def losses_of(statistics: SlotStatistics) -> StepLosses:
    return statistics.losses(read_numbers(statistics.reduce()))


def reduce_ranks(ranks: list[SlotStatistics], monkeypatch: pytest.MonkeyPatch) -> StepLosses:
    """What rank 0 reports when these ranks reduce together, each with one message."""
    others = [rank.reduce() for rank in ranks[1:]]
    messages = []

    def all_reduce(table: torch.Tensor, group: object) -> torch.Tensor:
        messages.append(group)
        for other in others:
            table += other
        return table

    monkeypatch.setattr(slots_module, "all_reduce_in_place", all_reduce)
    table = ranks[0].reduce()
    assert messages == [ranks[0]._context.world_group]
    return ranks[0].losses(read_numbers(table))


def weighted_mean(values: list[float], image_weight: float) -> float:
    weights = [image_weight] * IMAGES + [1.0] * (SLOTS - IMAGES)
    return sum(w * v for w, v in zip(weights, values, strict=True)) / sum(weights)


@pytest.mark.parametrize(("image_weight", "semantic_weight"), [(1.0, 0.1), (0.25, 0.1), (4.0, 2.0)])
def test_losses_are_means_over_samples_by_their_weight(image_weight: float, semantic_weight: float) -> None:
    statistics = make_statistics(make_recipe(image_weight, semantic_weight))
    for group in ([0, 1], [2, 4], [3]):
        record(statistics, group)
    losses = losses_of(statistics)
    assert statistics.total_weight == IMAGES * image_weight + SLOTS - IMAGES
    assert losses.flow_matching == pytest.approx(weighted_mean(FLOW_MATCHING, image_weight))
    assert losses.semantic == pytest.approx(weighted_mean(SEMANTIC, image_weight))
    assert losses.total == pytest.approx(losses.flow_matching + semantic_weight * losses.semantic)


def test_every_slot_keeps_its_own_numbers() -> None:
    statistics = make_statistics(make_recipe())
    for group in ([3], [4, 2], [1, 0]):
        record(statistics, group)
    losses = losses_of(statistics)
    assert losses.slot_flow_matching == pytest.approx(FLOW_MATCHING)
    assert losses.slot_semantic == pytest.approx(SEMANTIC)
    assert losses.slot_timesteps == TIMESTEPS
    assert losses.slot_sample_indices == ROWS
    assert losses.slot_tasks == TASK_OF
    assert losses.num_tokens == SLOTS * TOKENS


def test_large_row_numbers_survive_the_table() -> None:
    """They travel as float64, exact up to 2**53."""
    statistics = make_statistics(make_recipe())
    rows = [2**53 - 1, 2**40 + 1, 3, 2, 1]
    record(statistics, range(SLOTS), rows=rows)
    assert losses_of(statistics).slot_sample_indices == rows


def test_losses_of_parts_are_plain_means() -> None:
    statistics = make_statistics(make_recipe(image_weight=0.5))
    record(statistics, range(SLOTS))
    losses = losses_of(statistics)
    by_task = losses.grouped["losses_by_task"]
    assert list(by_task) == ["cube", "edit", "tube"]
    assert by_task == pytest.approx({"cube": 1.3, "edit": (0.1 + 0.7 + 2.9) / 3, "tube": 0.4})
    assert losses.grouped["losses_by_modality"] == pytest.approx({"image": 0.4, "video": (1.3 + 2.9 + 0.4) / 3})
    # Of 1000 timesteps: 999, 20.5, 500, 3 and 70.
    bands = {"0.0-0.2": (0.7 + 2.9 + 0.4) / 3, "0.4-0.6": 1.3, "0.8-1.0": 0.1}
    assert losses.grouped["losses_by_timestep"] == pytest.approx(bands)
    assert losses.grouped["semantic_losses_by_modality"] == pytest.approx({"image": 0.4, "video": 1.6 / 3})
    assert losses.slot_tokens == [TOKENS] * SLOTS


@pytest.mark.parametrize(("timestep", "band"), [(0.0, "0.0-0.2"), (200.0, "0.2-0.4"), (1000.0, "0.8-1.0")])
def test_the_ends_of_the_noise_bands(timestep: float, band: str) -> None:
    assert make_statistics(make_recipe())._noise_band(timestep) == band


@pytest.mark.parametrize("dealt", [([0, 1, 2, 3, 4], []), ([1, 3], [0, 2, 4]), ([4], [3, 2, 1, 0])])
def test_the_deal_to_data_ranks_changes_no_bit(
    dealt: tuple[list[int], list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = make_recipe(image_weight=0.3)
    whole = make_statistics(recipe)
    record(whole, range(SLOTS))
    expected = losses_of(whole)
    ranks = [make_statistics(recipe) for _ in dealt]
    for rank, slots in zip(ranks, dealt, strict=True):
        for slot in slots:
            record(rank, [slot])
    assert reduce_ranks(ranks, monkeypatch) == expected


@pytest.mark.parametrize("sequence", [False, True])
def test_tensor_ranks_count_a_sample_once(sequence: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """With sequence parallelism each holds a share of the semantic loss, else all of it."""
    recipe = make_recipe()
    whole = make_statistics(recipe)
    record(whole, range(SLOTS))
    expected = losses_of(whole)
    ranks = [make_statistics(recipe, make_context(rank, 2, sequence)) for rank in range(2)]
    for rank, share in zip(ranks, (0.25, 0.75) if sequence else (1.0, 1.0), strict=True):
        record(rank, range(SLOTS), share)
    together = reduce_ranks(ranks, monkeypatch)
    assert together.slot_semantic == pytest.approx(expected.slot_semantic)
    assert together.total == pytest.approx(expected.total)
    assert together.num_tokens == expected.num_tokens
    assert together.slot_sample_indices == ROWS and together.slot_tasks == TASK_OF


@pytest.mark.parametrize(("dealt", "number"), [(([0, 1], [2, 4]), 0), (([0, 1, 2, 3], [3, 4]), 2)])
def test_a_slot_that_is_not_trained_once_is_an_error(
    dealt: tuple[list[int], list[int]], number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ranks that deal samples differently, because they see another manifest."""
    ranks = [make_statistics(make_recipe()) for _ in dealt]
    for rank, slots in zip(ranks, dealt, strict=True):
        record(rank, slots)
    with pytest.raises(DataError, match=f"slot 3 of the step was trained by {number} ranks instead of one"):
        reduce_ranks(ranks, monkeypatch)


def test_recording_holds_no_graph() -> None:
    statistics = make_statistics(make_recipe())
    record(statistics, range(SLOTS))
    assert not statistics.reduce().requires_grad


def losses_with(rows: list[int]) -> StepLosses:
    empty: list[float] = []
    return StepLosses(0.0, 0.0, 0.0, empty, empty, empty, rows, [], [], [], [])


def test_the_digest_tells_rows_and_their_order_apart() -> None:
    digests = {losses_with(list(rows)).sample_digest for rows in itertools.permutations([1, 2, 12])}
    digests |= {losses_with([1, 21, 2]).sample_digest, losses_with([1, 2]).sample_digest}
    assert len(digests) == 8
    assert losses_with([1, 2, 12]).sample_digest == losses_with([1, 2, 12]).sample_digest


def test_a_task_has_one_code() -> None:
    assert len(set(TASKS)) == len(TASKS) == 5


def test_a_loss_that_is_not_finite_stays_visible() -> None:
    statistics = make_statistics(make_recipe())
    record(statistics, range(SLOTS))
    table = statistics.reduce()
    table[0, 3] = float("nan")
    losses = statistics.losses(read_numbers(table))
    assert losses.total != losses.total
    assert losses.slot_flow_matching[2] == pytest.approx(FLOW_MATCHING[2])
