"""What a run will see: counts that can be checked by hand, and deals that are what training gets."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from sama_data.cost import CostModel
from sama_data.errors import DataError
from sama_data.manifest import load_blend, write_jsonl
from sama_data.settings import LoaderSettings
from sama_data.stats import Group, Spread, collect_stats
from sama_data.step_plan import StepPlanner

SETTINGS = LoaderSettings(
    images_per_step=6,
    videos_per_step=4,
    buckets=((64, 64), (128, 64)),
    max_frames=17,
    micro_batch_images=2,
    cost=CostModel(semantic_tokens=5),
)


@pytest.fixture
def blend(tmp_path):
    """12 edits of pictures, 20 of clips at weight 0.5, and 4 raw clips that tell nothing."""
    image = {"source": "a.png", "target": "b.png", "instruction": "x", "dataset": "pictures", "licence": "free"}
    images = [image | {"width": 60 + number % 2 * 60, "height": 60, "task": "add"} for number in range(12)]
    clip = {"source": "a.mp4", "target": "b.mp4", "instruction": "x", "dataset": "clips", "task": "style"}
    clips = [clip | {"width": 128, "height": 64, "num_frames": 7 + 10 * (number % 2)} for number in range(20)]
    raw = [{"video": f"{number}.mp4", "caption": "x"} for number in range(4)]
    for name, rows in (("images", images), ("clips", clips + raw)):
        write_jsonl(rows, tmp_path / f"{name}.jsonl")
    return load_blend([(tmp_path / "images.jsonl", 1.0), (tmp_path / "clips.jsonl", 0.5)])


def test_rows_are_counted_by_what_they_are(blend):
    stats = collect_stats(blend, SETTINGS, 30, [2], 3)
    assert stats.groups == [
        Group("clips", "video", "style", None, 20),
        Group("pictures", "image", "add", "free", 12),
        Group(None, "video", None, None, 4),
    ]
    assert stats.buckets == {"64x64": {"image": 6, "video": 4}, "128x64": {"image": 6, "video": 20}}
    assert stats.frames == {5: 10, 17: 14}
    assert (stats.unknown_sizes, stats.unknown_lengths) == (4, 4)


def test_shares_are_what_is_drawn(blend):
    stats = collect_stats(blend, SETTINGS, 30, [1], 2)
    images, videos = stats.shares
    assert (Path(images.manifest).name, images.kind, images.rows, images.per_epoch) == ("images.jsonl", "image", 12, 12)
    assert (images.per_step, images.passes) == (6.0, 15.0)
    assert (videos.kind, videos.weight, videos.rows, videos.per_epoch) == ("video", 0.5, 24, 12)
    assert (videos.per_step, videos.passes) == (4.0, 5.0)
    assert stats.epochs == {"image": 15.0, "video": 10.0}
    planner = StepPlanner(blend, SETTINGS)
    drawn = Counter(row for step in range(30) for row in planner.streams[1].rows(step)[0].tolist())
    assert sum(drawn.values()) / 24 == videos.passes
    assert set(drawn.values()) == {5}


def test_each_row_may_stand_for_many(blend):
    one, many = (collect_stats(blend, SETTINGS, 30, [1], 2, rows_per_row=factor) for factor in (1, 10))
    assert [group.rows for group in many.groups] == [10 * group.rows for group in one.groups]
    assert [share.per_step for share in many.shares] == [share.per_step for share in one.shares]
    assert [10 * share.passes for share in many.shares] == [share.passes for share in one.shares]
    assert many.frames == {frames: 10 * count for frames, count in one.frames.items()}
    assert many.epochs == {kind: count / 10 for kind, count in one.epochs.items()}
    assert many.tokens_per_step == one.tokens_per_step


def test_tokens_and_imbalance_are_those_of_the_planned_steps(blend):
    stats = collect_stats(blend, SETTINGS, 30, [1, 3, 20], 5)
    planner, cost = StepPlanner(blend, SETTINGS), SETTINGS.cost
    ratios, tokens = [], []
    for step in range(5):
        shapes = planner.shapes(step).of_slots()
        sizes = np.array([shape[1:] for shape in shapes]).T
        tokens.append(int(cost.tokens(*sizes).sum()))
        seconds = cost.nanoseconds(cost.tokens(*sizes))
        loads = []
        for slots in planner.deal(step, 3):
            counts = Counter(shapes[slot] for slot in slots)
            calls = sum(-(-count // (2 if shape.kind == "image" else 1)) for shape, count in counts.items())
            loads.append(int(seconds[slots].sum()) + calls * cost.call_nanoseconds)
        ratios.append(max(loads) / (sum(loads) / 3))
    assert stats.tokens_per_step == Spread.of(tokens)
    alone, three, twenty = stats.imbalance
    assert three.slowest == Spread.of(ratios)
    assert (alone.slowest.max, alone.least_possible.max, alone.idle_ranks) == (1.0, 1.0, 0.0)
    assert twenty.idle_ranks >= 10  # ten slots a step
    assert 1.0 <= twenty.least_possible.p50 <= twenty.slowest.p50


def test_ragged_micro_batches_are_those_that_could_hold_more(blend):
    images_only = replace(SETTINGS, videos_per_step=0)
    # Twelve pictures of two shapes on one rank: whole pairs only.
    assert collect_stats(blend, replace(images_only, images_per_step=12), 1, [1], 1).imbalance[0].ragged_share == 0.0
    # One picture a rank: none is full.
    assert collect_stats(blend, images_only, 1, [6], 1).imbalance[0].ragged_share == 1.0
    # With a sample on every rank the pictures are alone as well; videos, one at a time anyway, do not count.
    assert collect_stats(blend, SETTINGS, 1, [10], 1).imbalance[0].ragged_share == 1.0
    # A limit of one is always full.
    single = collect_stats(blend, replace(images_only, micro_batch_images=1), 1, [6], 1).imbalance[0]
    assert (single.ragged_share, single.micro_batches) == (0.0, 6.0)


def test_progress_is_reported(blend):
    seen: list[tuple[int, int]] = []
    collect_stats(blend, SETTINGS, 1, [1], 3, report=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 3), (2, 3), (3, 3)]


def test_nothing_to_draw(blend, tmp_path):
    write_jsonl([{"video": "a.mp4", "caption": "x"}], tmp_path / "one.jsonl")
    with pytest.raises(DataError, match="no row for the wanted images"):
        collect_stats(load_blend([(tmp_path / "one.jsonl", 1.0)]), replace(SETTINGS, videos_per_step=0), 1, [1], 1)
