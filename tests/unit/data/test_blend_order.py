"""Order and resume over blends: nothing repeated, nothing skipped, at any number of ranks and from any step."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sama_data.dataset import Dataset
from sama_data.errors import DataError
from sama_data.manifest import load_blend, load_manifest, write_jsonl
from sama_data.settings import LoaderSettings
from sama_data.step_plan import StepPlanner
from sama_data.streams import make_streams

Drawn = tuple[int, int]
"""A row's index and its own epoch."""


@pytest.fixture(scope="module")
def manifests(tmp_path_factory) -> dict[tuple[int, int], Path]:
    """Manifests by their numbers of videos and images, of several sizes and lengths."""
    folder = tmp_path_factory.mktemp("manifests")
    paths = {}
    for videos, images in ((30, 12), (7, 0), (5, 40), (1, 1), (0, 9), (13, 3)):
        rows: list[dict] = [
            {
                "video": f"{number}.mp4",
                "caption": "x",
                "num_frames": 9 + 8 * (number % 9),
                "width": 64 + number % 3 * 32,
            }
            for number in range(videos)
        ]
        rows += [{"image": f"{number}.png", "caption": "x", "width": 64 + number % 5 * 16} for number in range(images)]
        paths[videos, images] = folder / f"{videos}-{images}.jsonl"
        write_jsonl([row | {"height": 64} for row in rows], paths[videos, images])
    return paths


class Blends:
    """Loads each manifest once, hypothesis asks for hundreds of blends."""

    def __init__(self, paths: dict[tuple[int, int], Path]) -> None:
        self._paths = paths
        self._made: dict[tuple, Dataset] = {}

    def make(self, parts: list[tuple[tuple[int, int], float]]) -> Dataset:
        key = tuple(parts)
        if key not in self._made:
            self._made[key] = load_blend([(self._paths[name], weight) for name, weight in parts])
        return self._made[key]


@pytest.fixture(scope="module")
def blends(manifests) -> Blends:
    return Blends(manifests)


def drawn_by(planner: StepPlanner, step: int) -> list[Drawn]:
    return [next(draw.stream.candidates(draw)) for draw in planner.draws(step)]


def on_ranks(planner: StepPlanner, step: int, num_ranks: int) -> list[Drawn]:
    """A step's samples in slot order, put together from what each rank was dealt."""
    drawn, together = drawn_by(planner, step), {}
    for slots in planner.deal(step, num_ranks):
        for slot in slots:
            assert slot not in together
            together[slot] = drawn[slot]
    return [together[slot] for slot in sorted(together)]


def test_the_order_of_runs_with_whole_weights_is_pinned(manifests):
    """Made before weights that cut a pass were mixed: changing it changes what every run sees."""
    parts = [((30, 12), 1.0), ((7, 0), 3.0), ((5, 40), 1.0)]
    planner = StepPlanner(load_blend([(manifests[name], weight) for name, weight in parts]), LoaderSettings(16, 4, 21))
    drawn = [sample for step in range(30) for sample in drawn_by(planner, step)]
    assert hashlib.sha256(json.dumps(drawn).encode()).hexdigest()[:16] == "154a96442b0c9114"


part_lists = st.lists(
    st.tuples(
        st.sampled_from([(30, 12), (7, 0), (5, 40), (1, 1), (0, 9), (13, 3)]),
        st.sampled_from([0.1, 0.25, 0.5, 1.0, 1.3, 2.0, 3.75]),
    ),
    min_size=1,
    max_size=4,
)


def test_the_blends_fill_several_buckets(blends):
    """Dealing puts equal shapes together: with one of them the test below would show less."""
    planner = StepPlanner(blends.make([((30, 12), 1.0), ((5, 40), 0.5)]), LoaderSettings(12, 8, 3))
    shapes = planner.shapes(0).shapes
    assert {shape.kind for shape in shapes} == {"image", "video"}
    assert len({(shape.width, shape.height) for shape in shapes}) > 1
    assert len({shape.num_frames for shape in shapes}) > 2


@settings(max_examples=60)
@given(
    parts=part_lists,
    images=st.integers(0, 20),
    videos=st.integers(0, 12),
    seed=st.integers(0, 2**40),
    worlds=st.lists(st.tuples(st.integers(1, 40), st.integers(1, 5)), min_size=1, max_size=4),
    start=st.integers(0, 50),
)
def test_a_run_resumed_on_other_ranks_goes_on_with_what_was_next(blends, parts, images, videos, seed, worlds, start):
    dataset = blends.make(parts)
    images, videos = (
        number if len(dataset.indices_of(kind)) else 0 for number, kind in ((images, "image"), (videos, "video"))
    )
    if images + videos == 0:
        return
    settings = LoaderSettings(images, videos, seed, max_frames=81, micro_batch_images=4)
    joined, step = [], start
    for num_ranks, steps in worlds:
        life = StepPlanner(dataset, settings)  # a new life knows only its first step
        for _ in range(steps):
            joined += on_ranks(life, step, num_ranks)
            step += 1
    alone = StepPlanner(dataset, settings)
    assert joined == [sample for number in range(start, step) for sample in drawn_by(alone, number)]
    for kind, per_step in (("image", images), ("video", videos)):
        ours = [sample for sample in joined if dataset[sample[0]].kind == kind]
        assert len(ours) == per_step * (step - start)
        assert len(set(ours)) == len(ours)  # a row returns in its next epoch only


@settings(max_examples=40)
@given(
    parts=part_lists, per_step=st.integers(1, 30), seed=st.integers(0, 2**40), kind=st.sampled_from(["image", "video"])
)
def test_every_row_is_seen_once_in_each_of_its_epochs(blends, parts, per_step, seed, kind):
    dataset = blends.make(parts)
    if not len(dataset.indices_of(kind)):
        return
    planner = StepPlanner(dataset, LoaderSettings(*((per_step, 0) if kind == "image" else (0, per_step)), seed))
    stream = planner.streams[0]
    num_steps = -(-4 * stream.num_places // per_step)
    drawn = [sample for step in range(num_steps) for sample in drawn_by(planner, step)]
    whole = drawn[: 4 * stream.num_places]  # four epochs of the stream
    seen = Counter(whole)
    assert max(seen.values()) == 1
    for number, part in enumerate(dataset.parts):
        rows = [index for index in dataset.indices_of(kind) if part.start <= index < part.start + part.count]
        places = stream.part_places[number]
        assert len(rows) == stream.part_rows[number]
        ours = Counter(own for index, own in whole if part.start <= index < part.start + part.count)
        assert sum(ours.values()) == 4 * places
        for own in range(4 * places // max(1, len(rows))):
            assert ours[own] == len(rows)  # all rows, before the next epoch is complete


@pytest.mark.parametrize("num_ranks", [1, 2, 3, 7, 8, 16, 56, 448])
def test_the_global_order_is_the_same_for_any_number_of_ranks(manifests, num_ranks):
    planner = StepPlanner(load_manifest(manifests[30, 12]), LoaderSettings(20, 30, 3, micro_batch_images=8))
    for step in (0, 1, 77):
        assert on_ranks(planner, step, num_ranks) == drawn_by(planner, step)


def test_a_part_that_is_cut_gives_a_mixture_and_not_its_beginning(manifests):
    """A manifest is often sorted by kind of edit: a tenth of it must not be one kind."""
    dataset = load_blend([(manifests[30, 12], 0.5), (manifests[7, 0], 1.0)])
    planner = StepPlanner(dataset, LoaderSettings(0, 22, 4))  # 15 + 7 videos: an epoch
    first = sorted(index for index, _ in drawn_by(planner, 0) if index < 30)
    second = sorted(index for index, _ in drawn_by(planner, 1) if index < 30)
    assert sorted(first + second) == list(range(30))
    assert min(max(first), max(second)) > 20
    assert max(min(first), min(second)) < 10


def test_streams_rows_are_the_draws_first_candidates(manifests):
    dataset = load_blend([(manifests[30, 12], 1.3), (manifests[5, 40], 0.25)])
    planner = StepPlanner(dataset, LoaderSettings(16, 9, 8))
    for step in range(6):
        rows = [
            pair
            for stream in planner.streams
            for pair in zip(*(part.tolist() for part in stream.rows(step)), strict=True)
        ]
        assert rows == drawn_by(planner, step)


@pytest.mark.parametrize("least", [0, 2])
def test_every_rank_gets_what_the_layout_needs(manifests, least):
    settings = LoaderSettings(20, 2, 3, micro_batch_images=8, at_least_per_rank=least)
    planner = StepPlanner(load_manifest(manifests[30, 12]), settings)
    fewest = min(len(slots) for step in range(4) for slots in planner.deal(step, 11))
    assert fewest == 2 if least else fewest < 2


@pytest.mark.parametrize(
    ("weights", "shares", "told"),
    [((0.4, 0.6), (40, 60), False), ((0.004, 0.006), (1, 1), True), ((2e-9, 1e-7), (1, 1), True)],
)
def test_weights_that_rounding_changes_are_told(tmp_path, caplog, weights, shares, told):
    paths = [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    for path in paths:
        path.write_text('{"video": "c.mp4", "caption": "A cat."}\n' * 100)
    (stream,) = make_streams(load_blend(list(zip(paths, weights, strict=True))), LoaderSettings(0, 4))
    assert stream.part_places == shares
    assert ("since places are rounded" in caplog.text) is told


def test_weights_that_make_an_endless_epoch_are_refused(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"video": "c.mp4", "caption": "A cat."}\n')
    with pytest.raises(DataError, match="divide all weights"):
        make_streams(load_blend([(path, 1e12), (path, 1.0)]), LoaderSettings(0, 4))


def test_a_part_may_lack_a_kind(tmp_path, caplog):
    paths = [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    paths[0].write_text('{"video": "c.mp4", "caption": "A cat."}\n' * 4)
    paths[1].write_text('{"image": "c.png", "caption": "A cat."}\n' * 4)
    for manifests in ([(paths[0], 1.0)], [(paths[0], 0.5), (paths[1], 1.0)]):
        streams = make_streams(load_blend(manifests), LoaderSettings(4, 4))
        assert [stream.part_places for stream in streams][-1][0] in (4, 2)
    assert "rounded" not in caplog.text
