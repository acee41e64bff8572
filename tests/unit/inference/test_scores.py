"""Scores against NumPy, and what success means."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from sama_mega.inference.scores import (
    PERFECT_DB,
    EditScores,
    mean_db,
    psnr,
    score_each_clip,
    score_edits,
    score_together,
    temporal_psnr,
)

SHAPE = (4, 3, 5, 6, 8)


def random_pixels(seed: int) -> Tensor:
    return torch.rand(SHAPE, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def random_mask(seed: int) -> Tensor:
    return torch.rand(SHAPE[0], *SHAPE[2:], generator=torch.Generator().manual_seed(seed)) < 0.3


def numpy_psnr(ours: Tensor, truth: Tensor, mask: Tensor) -> list[float]:
    values = []
    for clip in range(len(ours)):
        chosen = mask[clip].numpy()
        error = (ours[clip].numpy().astype(float) - truth[clip].numpy())[:, chosen]
        values.append(10 * math.log10(4 / np.mean(error**2)))
    return values


def test_psnr_is_that_of_the_textbook() -> None:
    ours, truth, mask = random_pixels(1), random_pixels(2), random_mask(3)
    everywhere = torch.ones_like(mask)
    assert psnr(ours, truth).tolist() == pytest.approx(numpy_psnr(ours, truth, everywhere), abs=1e-4)
    assert psnr(ours, truth, mask).tolist() == pytest.approx(numpy_psnr(ours, truth, mask), abs=1e-4)
    assert psnr(truth + 0.02, truth)[0].item() == pytest.approx(40.0, abs=1e-3)


def test_pixels_outside_the_mask_do_not_count() -> None:
    ours, truth, mask = random_pixels(1), random_pixels(2), random_mask(3)
    elsewhere = torch.where(mask[:, None], ours, torch.full_like(ours, 9.0))
    assert torch.equal(psnr(elsewhere, truth, mask), psnr(ours, truth, mask))


def test_no_error_is_perfect_and_no_pixel_is_nan() -> None:
    truth, mask = random_pixels(2), random_mask(3)
    mask[1] = False
    scores = psnr(truth, truth, mask)
    assert scores[0].item() == PERFECT_DB and scores[1].isnan()
    assert mean_db(truth, truth, mask) == PERFECT_DB
    assert math.isnan(mean_db(truth, truth, torch.zeros_like(mask)))


def test_the_mean_is_over_clips_not_over_pixels() -> None:
    truth = torch.zeros(SHAPE)
    ours = torch.zeros(SHAPE)
    ours[0] += 0.02
    ours[1] += 0.2
    mask = torch.ones(SHAPE[0], *SHAPE[2:], dtype=torch.bool)
    mask[2:] = False
    mask[1, 1:] = False
    assert mean_db(ours, truth, mask) == pytest.approx((40 + 20) / 2, abs=1e-3)


@pytest.fixture
def clips() -> dict[str, Tensor]:
    """Sources at -0.5, targets at +0.5 inside the mask and as the source outside."""
    mask = random_mask(3)
    sources = torch.full(SHAPE, -0.5)
    truths = torch.where(mask[:, None], torch.full(SHAPE, 0.5), sources)
    return {"sources": sources, "truths": truths, "masks": mask}


def test_success_is_ending_closer_to_the_target_than_to_the_source(clips: dict[str, Tensor]) -> None:
    shares = torch.tensor([0.0, 0.49, 0.51, 1.0])[:, None, None, None, None]
    edits = clips["sources"] + shares * (clips["truths"] - clips["sources"])
    scores = score_edits("recolour", edits, clips["sources"], **clips)
    assert (scores.kind, scores.num_clips) == ("recolour", 4)
    assert scores.success == 0.5
    assert scores.control_success == 0.0
    assert scores.unedited_db == pytest.approx(10 * math.log10(4), abs=1e-4)
    assert scores.outside_db == PERFECT_DB
    assert score_edits("recolour", clips["sources"], edits, **clips).control_success == 0.5


def test_what_happens_outside_counts_outside_alone(clips: dict[str, Tensor]) -> None:
    edits = torch.where(clips["masks"][:, None], clips["truths"], clips["truths"] + 0.02)
    scores = score_edits("remove", edits, edits, **clips)
    assert (scores.success, scores.inside_db) == (1.0, PERFECT_DB)
    assert scores.outside_db == pytest.approx(40.0, abs=1e-3)


def test_an_edit_of_the_whole_frame_has_no_outside(clips: dict[str, Tensor]) -> None:
    clips["masks"] = torch.ones_like(clips["masks"])
    scores = score_edits("style", clips["truths"], clips["truths"], **clips)
    assert math.isnan(scores.outside_db) and not math.isnan(scores.inside_db)


def test_several_kinds_together_are_means_over_clips() -> None:
    recolour = EditScores("recolour", 10, 1.0, 20.0, 8.0, 30.0, 0.2)
    style = EditScores("style", 30, 0.8, 32.0, 12.0, math.nan, 0.0)
    add = EditScores("add", 5, 0.0, 1.0, 1.0, 1.0, 1.0)
    both = score_together([recolour, add, style], ("recolour", "style"))
    assert both.num_clips == 40
    assert both.success == pytest.approx((10 * 1.0 + 30 * 0.8) / 40)
    assert both.inside_db == pytest.approx((10 * 20.0 + 30 * 32.0) / 40)
    assert both.unedited_db == pytest.approx((10 * 8.0 + 30 * 12.0) / 40)
    assert both.outside_db == 30.0  # a style has no outside
    assert both.control_success == pytest.approx(0.05)


def test_an_error_that_stands_still_is_no_temporal_error() -> None:
    truth = random_pixels(1)
    assert temporal_psnr(truth + 0.1, truth).min() > 90
    flicker = torch.tensor([0.1, -0.1, 0.1, -0.1, 0.1])[:, None, None]
    # Both are off by 0.1 everywhere; the flicker moves by 0.2 from frame to frame: 10 log10(4 / 0.04).
    assert psnr(truth + flicker, truth).tolist() == pytest.approx(psnr(truth + 0.1, truth).tolist(), abs=1e-3)
    assert temporal_psnr(truth + flicker, truth).tolist() == pytest.approx([20.0] * 4, abs=1e-3)


def test_clips_one_by_one_have_the_means_of_all() -> None:
    edits, sources, truths, masks = random_pixels(1), random_pixels(2), random_pixels(3), random_mask(4)
    edits[:2] = truths[:2] * 0.9
    masks[3] = True
    each = score_each_clip("remove", edits, sources, truths, masks)
    all_of_them = score_edits("remove", edits, edits, sources, truths, masks)
    assert each.success[:2] == [1.0, 1.0] and np.mean(each.success) == pytest.approx(all_of_them.success)
    assert np.mean(each.inside_db) == pytest.approx(all_of_them.inside_db)
    assert math.isnan(each.outside_db[3])
    assert np.nanmean(each.outside_db) == pytest.approx(all_of_them.outside_db)
    assert each.temporal_db == temporal_psnr(edits, truths).tolist()
