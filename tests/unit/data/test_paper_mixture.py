"""The paper's mixture: its proportions, and how evenly its steps are dealt."""

from __future__ import annotations

from dataclasses import replace

import pytest

from sama_data.dataset import Dataset
from sama_data.paper_mixture import ROWS_PER_ROW, STAND_INS, make_paper_mixture
from sama_data.pretext import Motion
from sama_data.settings import LoaderSettings
from sama_data.stats import Imbalance, collect_stats

SETTINGS = LoaderSettings(448, 112, micro_batch_images=8)


@pytest.fixture(scope="module")
def mixtures(tmp_path_factory) -> list[Dataset]:
    return [make_paper_mixture(stage, tmp_path_factory.mktemp(f"stage{stage}")) for stage in (0, 1)]


@pytest.mark.parametrize("stage", [0, 1])
def test_rows_are_the_papers(mixtures, stage):
    groups = collect_stats(mixtures[stage], SETTINGS, 1, [], 1, ROWS_PER_ROW).groups
    rows: dict[str, int] = {}
    for group in groups:
        rows[group.dataset] = rows.get(group.dataset, 0) + group.rows
    for stand_in in STAND_INS[stage]:
        assert rows[stand_in.name] == pytest.approx(stand_in.num_rows, abs=ROWS_PER_ROW)
    assert len(rows) == len(STAND_INS[stage])


def test_the_same_mixture_every_time(mixtures, tmp_path):
    again = make_paper_mixture(1, tmp_path)
    names = ["width", "height", "num_frames"]
    assert again.columns(names).equals(mixtures[1].columns(names))


def dealt(dataset: Dataset, ranks: list[int], settings: LoaderSettings = SETTINGS) -> list[Imbalance]:
    return collect_stats(dataset, settings, 1, ranks, 60).imbalance


def test_edits_are_dealt_evenly_to_16_and_56_ranks(mixtures):
    sixteen, fifty_six = dealt(mixtures[1], [16, 56])
    assert sixteen.slowest.max < 1.01
    assert fifty_six.slowest.max < 1.05
    # 560 samples in micro-batches of 8 images and 1 video are 168 at the least; single slots would need over 250.
    assert sixteen.micro_batches < 190


def test_sped_up_clips_leave_no_even_deal_on_56_ranks(mixtures):
    """Two long clips meet on some rank, whatever the deal: it is as good as can be, and even on 16 ranks."""
    sixteen, fifty_six = dealt(mixtures[0], [16, 56])
    assert sixteen.slowest.max < 1.01
    assert fifty_six.least_possible.p50 > 1.05
    assert fifty_six.slowest.max < 1.01 * fifty_six.least_possible.max


def test_clips_of_one_length_are_dealt_evenly_to_56_ranks(mixtures):
    same_length = replace(SETTINGS, motion=Motion(keep_length=True), max_frames=33)
    (fifty_six,) = dealt(mixtures[0], [56], same_length)
    assert fifty_six.slowest.max < 1.05


def test_one_video_bounds_448_ranks(mixtures):
    (many,) = dealt(mixtures[1], [448])
    assert many.slowest.p50 > 3.0
    assert many.slowest == many.least_possible
