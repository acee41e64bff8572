"""From samples to micro-batches: grouping, perturbed sources, anchors, prompts and weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sama_data.pretext import BLACK_FRAME, PretextPlan, identity_plan
from sama_data.samples import Sample
from sama_mega.config.schema import Recipe
from sama_mega.diffusion.noising import draw_text_dropout
from sama_mega.encoders import build_encoders
from sama_mega.train.batch import Batcher, group_by_shape, modality_weight
from sama_mega.train.encode import anchor_frames
from tests.support.tiny_recipe import SIZE, tiny_recipe

CUBE = "[Complete the missing regions in the video.]"


def make_sample(slot: int, frames: int = 5, width: int = SIZE, **changes: Any) -> Sample:
    """A raw clip by default; row 100 + slot."""
    rng = np.random.default_rng(slot)
    target = rng.integers(0, 256, (frames, SIZE, width, 3), dtype=np.uint8)
    values: dict[str, Any] = {
        "sample_id": f"sample-{slot}",
        "index": 100 + slot,
        "epoch": 0,
        "slot": slot,
        "kind": "video",
        "task": "none",
        "source_frames": target,
        "target_frames": target,
        "plan": identity_plan(frames),
        "prompt": f"clip number {slot}",
        "prompt_prefix": "",
    }
    return Sample(**values | changes)


def make_recipe(**changes: Any) -> Recipe:
    dotted = {key.replace("__", "."): value for key, value in changes.items()}
    return tiny_recipe(0, Path("unused"), Path("unused.jsonl"), changes=dotted)


def make_batcher(recipe: Recipe) -> Batcher:
    return Batcher(recipe, build_encoders(recipe, "cpu"), torch.device("cpu"))


def pixels(frames: np.ndarray) -> torch.Tensor:
    """[1, 3, T, H, W] in [-1, 1], written apart from the code under test."""
    return torch.from_numpy(frames.astype(np.float32).transpose(3, 0, 1, 2)[None] / 127.5 - 1)


# --- group_by_shape -------------------------------------------------------------------------------


def slots_of(groups: list[list[Sample]]) -> list[list[int]]:
    return [[sample.slot for sample in group] for group in groups]


def test_equal_shapes_go_together_in_slot_order_up_to_the_limit() -> None:
    recipe = make_recipe(data__micro_batch_videos=2, data__micro_batch_images=3)
    image = {"frames": 1, "kind": "image"}
    samples = [make_sample(slot, **image) for slot in (3, 0, 2, 1)] + [make_sample(slot) for slot in (6, 4, 5)]
    assert slots_of(group_by_shape(samples, recipe)) == [[0, 1, 2], [3], [4, 5], [6]]


def test_what_cannot_be_stacked_is_kept_apart() -> None:
    recipe = make_recipe(data__micro_batch_videos=9, data__micro_batch_images=9)
    sped_up = PretextPlan("speed", (0, 2, 4, 6, 8), None, "")
    samples = [
        make_sample(0, frames=1, kind="image"),
        make_sample(1, frames=1),  # a video of one frame is no image: it has another weight
        make_sample(2, frames=13),
        make_sample(3, frames=13, plan=sped_up),
        make_sample(4, frames=13, width=48),
        make_sample(5, frames=9),
        make_sample(6, frames=13),
    ]
    groups = group_by_shape(samples, recipe)
    assert slots_of(groups) == [[0], [1], [2, 6], [3], [4], [5]]
    batcher = make_batcher(recipe)
    for group in groups:
        batcher.encode(group)


def test_no_samples_give_no_groups() -> None:
    assert group_by_shape([], make_recipe()) == []


@pytest.mark.parametrize(
    ("pipeline", "videos", "groups"),
    [
        # One micro-batch a pipeline rank at least; the largest is halved first, the earlier of equals.
        (2, 4, [[0], [1, 2, 3, 4]]),
        (3, 4, [[0], [1, 2], [3, 4]]),
        (4, 4, [[0], [1], [2], [3, 4]]),
        (4, 6, [[0], [1], [2, 3], [4, 5, 6]]),
        (4, 3, [[0], [1], [2], [3]]),
        # A sample cannot be cut: `agreement` has refused this one before.
        (4, 2, [[0], [1], [2]]),
        (2, 0, [[0]]),
    ],
)
def test_interleaved_stages_get_a_micro_batch_for_every_pipeline_rank(
    pipeline: int, videos: int, groups: list[list[int]]
) -> None:
    limits = {"data__micro_batch_videos": 9, "parallel__pipeline": pipeline}
    samples = [make_sample(0, frames=1, kind="image"), *(make_sample(slot) for slot in range(1, 1 + videos))]
    found = slots_of(group_by_shape(samples, make_recipe(parallel__interleave=2, **limits)))
    assert found == groups
    # Plain stages take what there is.
    plain = slots_of(group_by_shape(samples, make_recipe(**limits)))
    assert plain == [[0], list(range(1, 1 + videos))][: 1 + bool(videos)]


def test_halving_does_not_wake_an_idle_rank() -> None:
    assert group_by_shape([], make_recipe(parallel__pipeline=2, parallel__interleave=2)) == []


# --- anchor_frames --------------------------------------------------------------------------------


def test_without_anchor_frames_all_else_is_encoded_as_with_them() -> None:
    samples = [make_sample(slot) for slot in range(2)]
    bare, batch = (make_batcher(make_recipe(anchor__num_frames=number)).encode(samples) for number in (0, 1))
    assert bare.semantic_features is None and batch.semantic_features is not None
    for name in ("latents", "source_latents", "text", "weights"):
        assert torch.equal(getattr(bare, name), getattr(batch, name))


@pytest.mark.parametrize(
    ("num_frames", "num_anchors", "expected"),
    [
        (81, 1, [0]),
        (81, 4, [0, 26, 53, 80]),
        (5, 3, [0, 2, 4]),
        (5, 5, [0, 1, 2, 3, 4]),
        (1, 1, [0]),
        (1, 3, [0, 0, 0]),
        (17, 2, [0, 16]),
    ],
)
def test_anchors_are_spread_over_the_clip(num_frames: int, num_anchors: int, expected: list[int]) -> None:
    assert anchor_frames(num_frames, num_anchors) == expected


@pytest.mark.parametrize("num_frames", range(1, 82, 4))
def test_anchors_start_at_the_first_frame_and_end_at_the_last(num_frames: int) -> None:
    for num_anchors in range(2, 12):
        anchors = anchor_frames(num_frames, num_anchors)
        assert len(anchors) == num_anchors
        assert (anchors[0], anchors[-1]) == (0, num_frames - 1)
        assert anchors == sorted(anchors)


def test_anchors_are_frames_of_the_target() -> None:
    recipe = make_recipe(anchor__num_frames=2)
    source = make_sample(1).target_frames
    sample = make_sample(0, source_frames=source)
    batch = make_batcher(recipe).encode([sample])
    anchors = pixels(sample.target_frames)[:, :, [0, 4]].transpose(1, 2)
    expected = build_encoders(recipe, "cpu").semantic.encode(anchors)
    assert batch.semantic_features.shape == (1, 2 * recipe.anchor.tokens_per_anchor, recipe.model.semantic_dim)
    torch.testing.assert_close(batch.semantic_features, expected)


# --- sources and targets --------------------------------------------------------------------------


def swapped_tubes(frames: np.ndarray) -> np.ndarray:
    """Tubes 0 and 1 (left and right, upper half, first time half) change places."""
    swapped, half = frames.copy(), SIZE // 2
    swapped[:3, :half, :half], swapped[:3, :half, half:] = frames[:3, :half, half:], frames[:3, :half, :half]
    return swapped


def blackened(frames: np.ndarray) -> np.ndarray:
    black = frames.copy()
    black[1:3] = 0
    return black


@pytest.mark.parametrize(
    ("plan", "expected"),
    [
        (identity_plan(5), lambda frames: frames),
        (PretextPlan("cube", (0, BLACK_FRAME, BLACK_FRAME, 3, 4), None, CUBE), blackened),
        (PretextPlan("speed", (0,), None, ""), lambda frames: frames[:1]),
        (PretextPlan("tube", tuple(range(5)), (1, 0, 2, 3, 4, 5, 6, 7), ""), swapped_tubes),
    ],
)
def test_the_plan_perturbs_the_source_and_never_the_target(plan: PretextPlan, expected: Any) -> None:
    recipe = make_recipe()
    sample = make_sample(0, plan=plan, task=plan.task)
    kept = sample.target_frames.copy()
    batch = make_batcher(recipe).encode([sample])
    codec = build_encoders(recipe, "cpu").video
    torch.testing.assert_close(batch.latents, codec.encode(pixels(kept)))
    torch.testing.assert_close(batch.source_latents, codec.encode(pixels(expected(kept))))
    np.testing.assert_array_equal(sample.target_frames, kept)


def test_an_edit_has_its_own_source() -> None:
    sample = make_sample(0, source_frames=make_sample(1).target_frames, task="edit")
    batch = make_batcher(make_recipe()).encode([sample])
    codec = build_encoders(make_recipe(), "cpu").video
    torch.testing.assert_close(batch.source_latents, codec.encode(pixels(sample.source_frames)))
    assert not torch.equal(batch.source_latents, batch.latents)


def test_a_micro_batch_says_which_samples_it_holds() -> None:
    samples = [make_sample(4, epoch=2, task="tube"), make_sample(7, epoch=3, task="edit")]
    batch = make_batcher(make_recipe()).encode(samples)
    assert (batch.slots, batch.sample_indices, batch.epochs) == ((4, 7), (104, 107), (2, 3))
    assert batch.tasks == ("tube", "edit")
    tensors = (batch.latents, batch.source_latents, batch.semantic_features, batch.text, batch.weights)
    assert [tensor.shape[0] for tensor in tensors] == [2] * 5
    assert all(tensor.dtype == torch.float32 and not tensor.requires_grad for tensor in tensors)


def test_a_sample_is_encoded_alike_in_any_company() -> None:
    batcher = make_batcher(make_recipe(data__text_dropout=0.5))
    samples = [make_sample(slot, prompt_prefix="[Video edit]") for slot in range(4)]
    together = batcher.encode(samples)
    for place, sample in enumerate(samples):
        single = batcher.encode([sample])
        torch.testing.assert_close(single.latents[0], together.latents[place])
        assert torch.equal(single.text[0], together.text[place])


# --- prompts --------------------------------------------------------------------------------------


def texts(recipe: Recipe, prompts: list[str]) -> torch.Tensor:
    return build_encoders(recipe, "cpu").text.encode(prompts)


def test_dropping_the_text_keeps_the_prefix() -> None:
    recipe = make_recipe(data__text_dropout=1.0)
    edit = make_sample(0, prompt="[Video edit] Make it red.", prompt_prefix="[Video edit]")
    cube = make_sample(1, prompt=f"{CUBE} A dog.", prompt_prefix=CUBE)
    raw = make_sample(2, prompt="A dog.")
    batch = make_batcher(recipe).encode([edit, cube, raw])
    assert torch.equal(batch.text, texts(recipe, ["[Video edit]", CUBE, ""]))
    assert batch.text[0].any() and not batch.text[2].any()


def test_without_dropout_every_prompt_is_read() -> None:
    recipe = make_recipe(data__text_dropout=0.0)
    samples = [make_sample(slot) for slot in range(3)]
    batch = make_batcher(recipe).encode(samples)
    assert torch.equal(batch.text, texts(recipe, [sample.prompt for sample in samples]))


def test_dropout_follows_the_sample_and_its_epoch() -> None:
    recipe = make_recipe(data__text_dropout=0.5)
    batcher = make_batcher(recipe)
    fates = set()
    for epoch in range(6):
        samples = [make_sample(slot, epoch=epoch, prompt_prefix="[Video edit]") for slot in range(4)]
        dropped = draw_text_dropout(recipe.train.seed, [100, 101, 102, 103], [epoch] * 4, 0.5)
        read = [s.prompt_prefix if drop else s.prompt for s, drop in zip(samples, dropped, strict=True)]
        assert torch.equal(batcher.encode(samples).text, texts(recipe, read))
        fates.add(tuple(dropped))
    assert len(fates) > 1


def test_a_long_prompt_is_cut_and_its_sample_counted_once() -> None:
    recipe = make_recipe(model__text_length=4, data__text_dropout=0.0)
    batcher = make_batcher(recipe)
    long = make_sample(0, prompt="one two three four five six")
    exact = make_sample(1, prompt="one two three four")
    for _ in range(2):
        batch = batcher.encode([long, exact])
    assert torch.equal(batch.text[0], batch.text[1])
    assert batcher.num_truncated_prompts == 1
    batcher.encode([make_sample(2, prompt="a b c d e")])
    assert batcher.num_truncated_prompts == 2


# --- weights --------------------------------------------------------------------------------------


def test_images_weigh_what_the_recipe_says() -> None:
    recipe = make_recipe(data__image_weight=0.25)
    assert (modality_weight("image", recipe), modality_weight("video", recipe)) == (0.25, 1.0)
    batcher = make_batcher(recipe)
    images = batcher.encode([make_sample(slot, frames=1, kind="image") for slot in (0, 1)])
    assert images.weights.tolist() == [0.25, 0.25]
    assert batcher.encode([make_sample(2)]).weights.tolist() == [1.0]
