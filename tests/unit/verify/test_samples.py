"""The batch of a verification: every kind of sample is in it, and sequences that no number of ranks divides."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from sama_data.samples import Sample
from sama_mega.diffusion.schedule import FlowMatchingSchedule
from sama_mega.encoders import build_encoders
from sama_mega.train.batch import Batcher, group_by_shape
from sama_mega.train.forward import count_tokens, noise_micro_batch
from sama_mega.verify.samples import global_batch, share_of
from tests.support.tiny_recipe import tiny_recipe


def test_pre_training_sees_every_task_and_both_kinds() -> None:
    samples = global_batch(stage=0)
    seen = {(sample.kind, sample.task) for sample in samples}
    assert seen == {
        *(("video", task) for task in ("none", "cube", "speed", "tube", "edit")),
        *(("image", task) for task in ("none", "edit")),
    }
    assert all(sample.plan.task == sample.task for sample in samples)
    assert [sample.sample_id for sample in samples if sample.task == "cube"] == ["cube"]


def test_editing_sees_edits_only() -> None:
    samples = global_batch(stage=1)
    assert {sample.task for sample in samples} == {"edit"}
    assert {sample.kind for sample in samples} == {"image", "video"}


@pytest.mark.parametrize("stage", [0, 1])
def test_slots_are_numbered_with_pictures_first(stage: int) -> None:
    samples = global_batch(stage)
    assert [sample.slot for sample in samples] == [sample.index for sample in samples] == list(range(len(samples)))
    kinds = [sample.kind for sample in samples]
    assert kinds == sorted(kinds)


def test_a_raw_samples_source_is_its_target_and_an_edits_is_not() -> None:
    for sample in global_batch(stage=0):
        assert (sample.source_frames is sample.target_frames) == (sample.task != "edit")
        assert sample.source_frames.shape == sample.target_frames.shape
        assert (sample.source_frames != sample.target_frames).any() == (sample.task == "edit")


def test_every_rank_makes_the_same_samples_and_no_two_alike() -> None:
    samples = global_batch(stage=0)
    for one, again in zip(samples, global_batch(stage=0), strict=True):
        np.testing.assert_array_equal(one.target_frames, again.target_frames)
        np.testing.assert_array_equal(one.source_frames, again.source_frames)
        assert (one.plan, one.prompt) == (again.plan, again.prompt)
    assert len({sample.target_frames.tobytes() for sample in samples}) == len(samples)
    assert len({sample.prompt for sample in samples}) == len(samples)


@pytest.mark.parametrize("stage", [0, 1])
@pytest.mark.parametrize("data_world", [1, 2, 3, 4, 16])
def test_the_shares_are_the_batch(stage: int, data_world: int) -> None:
    samples = global_batch(stage)
    shares = [share_of(samples, rank, data_world) for rank in range(data_world)]
    for share in shares:
        assert (share.num_slots, share.num_image_slots) == (
            len(samples),
            sum(sample.kind == "image" for sample in samples),
        )
        slots = [sample.slot for sample in share.samples]
        assert slots == sorted(slots)
    dealt = sorted((sample for share in shares for sample in share.samples), key=lambda sample: sample.slot)
    assert [id(sample) for sample in dealt] == [id(sample) for sample in samples]


def test_two_data_ranks_share_unequally() -> None:
    """Equal shares would hide a mean of the ranks' means."""
    one, other = (share_of(global_batch(stage=0), rank, 2).samples for rank in (0, 1))

    def count(samples: list[Sample]) -> tuple[int, int]:
        num_images = sum(sample.kind == "image" for sample in samples)
        return num_images, len(samples) - num_images

    assert count(one) != count(other)


def test_no_number_of_ranks_divides_a_sequence() -> None:
    recipe = tiny_recipe(0, Path("unused"), Path("unused.jsonl"))
    batcher = Batcher(recipe, build_encoders(recipe, "cpu"), torch.device("cpu"))
    lengths = {}
    for samples in group_by_shape(global_batch(stage=0), recipe):
        noised = noise_micro_batch(batcher.encode(samples), FlowMatchingSchedule(), recipe)
        lengths |= dict.fromkeys((sample.sample_id for sample in samples), count_tokens(noised, recipe))
    assert len(lengths) == len(global_batch(stage=0))
    # Two segments of equal size and five semantic tokens, unless the source is sped up.
    assert (lengths["cube"], lengths["picture edit"], lengths["picture"]) == (125, 35, 19)
    assert lengths["speed"] != lengths["none"]
    for num_shards in (2, 3, 4):
        assert sum(length % num_shards > 0 for length in lengths.values()) >= len(lengths) - 1
    assert all(length % 2 for length in lengths.values())


@pytest.mark.parametrize("stage", [0, 1])
@pytest.mark.parametrize(("at_least", "data_world"), [(1, 5), (1, 16), (2, 2), (2, 3), (4, 2), (4, 8)])
def test_every_data_rank_gets_as_many_as_it_needs(stage: int, at_least: int, data_world: int) -> None:
    """Interleaved stages need a micro-batch for every pipeline rank, megatron's overlap needs one."""
    samples = global_batch(stage, at_least, data_world)
    shares = [share_of(samples, rank, data_world).samples for rank in range(data_world)]
    assert min(len(share) for share in shares) >= at_least
    assert [sample.slot for sample in samples] == list(range(len(samples)))
    kinds = [sample.kind for sample in samples]
    assert kinds == sorted(kinds)
    # All kinds are repeated alike, and no sample is another one's copy.
    counts = Counter(sample.sample_id for sample in samples)
    assert counts.keys() == {sample.sample_id for sample in global_batch(stage)} and len(set(counts.values())) == 1
    assert len({sample.target_frames.tobytes() for sample in samples}) == len(samples)
