"""The work of a step: whole, dealt as a run deals it, of the recipe's worst case."""

from __future__ import annotations

from typing import Any

import pytest

from sama_mega.config import load_recipe
from sama_mega.config.schema import Recipe
from sama_mega.parallel.layout import resolve_layout
from sama_mega.planner.workload import Workload, plan_workload
from tests.support.distributed import REPOSITORY


def wan(stage: int, *overrides: str) -> Recipe:
    return load_recipe(REPOSITORY / f"recipes/wan14b_stage{stage}.yaml", overrides)


def plan(recipe: Recipe, num_gpus: int) -> Workload:
    return plan_workload(recipe, resolve_layout(recipe, num_gpus))


@pytest.mark.parametrize("num_gpus", [8, 64, 1024, 4096])
def test_every_sample_is_dealt_once(num_gpus: int) -> None:
    work = plan(wan(1), num_gpus)
    kinds: dict[str, int] = {"image": 0, "video": 0}
    for batch in (batch for rank in work.data_ranks for batch in rank):
        kinds[batch.kind] += batch.num_samples
        assert batch.num_samples <= {"image": 8, "video": 1}[batch.kind]
    assert kinds == {"image": 448, "video": 112} and work.num_samples == 560
    assert len(work.data_ranks) == num_gpus // 8


def test_tokens_are_the_published_ones() -> None:
    work = plan(wan(1, "data.buckets=[[832,480]]"), 64)
    by_kind = {batch.kind: batch for batch in work.largest}
    assert by_kind["video"].num_tokens == 65_585 and by_kind["image"].num_tokens == 3_185
    assert by_kind["video"].tokens_per_shard == 8_199 and by_kind["video"].num_padded_tokens == 65_592
    assert by_kind["image"].num_samples == 8
    assert work.num_tokens == 448 * 3_185 + 112 * 65_585


def test_the_largest_bucket_is_the_worst_case() -> None:
    assert {(batch.width, batch.height) for batch in plan(wan(1), 8).samples} == {(640, 640)}


def test_raw_clips_are_sped_up_as_often_as_the_weights_say() -> None:
    clips: dict[int, int] = {}
    for batch, count in plan(wan(0), 64).samples.items():
        if batch.kind == "video":
            clips[batch.source_frames] = clips.get(batch.source_frames, 0) + count
    assert clips == {81: 78, 37: 34}  # 3 of 10
    assert {batch.source_frames for batch in plan(wan(0), 64).largest} == {1, 81}
    kept = plan(wan(0, "motion.keep_length=true"), 64)
    assert {batch.source_frames for batch in kept.samples} == {1, 81}
    assert {batch.source_frames for batch in plan(wan(1), 64).samples} == {1, 81}


def test_the_largest_clip_is_whole_where_all_planned_ones_are_sped_up() -> None:
    weights = ("motion.none=1", "motion.cube=0", "motion.tube=0", "motion.speed=3")
    work = plan(wan(0, *weights, "data.images_per_step=0", "data.videos_per_step=2"), 16)
    assert {batch.source_frames for batch in work.samples} == {37}
    assert [(batch.source_frames, batch.num_tokens) for batch in work.largest] == [(81, 67_265)]


def test_interleaved_stages_get_their_micro_batches() -> None:
    changes: dict[str, Any] = {"pipeline": 4, "interleave": 2, "tensor": 1}
    overrides = [f"parallel.{key}={value}" for key, value in changes.items()]
    work = plan(wan(1, *overrides, "data.images_per_step=4", "data.videos_per_step=0"), 4)
    assert [batch.num_samples for batch in work.data_ranks[0]] == [1, 1, 1, 1]
