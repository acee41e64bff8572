"""Intervals over clips: a known difference is found, none is not, and intervals cover as often as they say."""

from __future__ import annotations

import math

import numpy as np
import pytest

from sama_mega.ablation.bootstrap import mean_interval, paired_interval

SEEDS, CLIPS = 3, 60
KINDS = ["easy"] * 20 + ["hard"] * 40


def scores(rng: np.random.Generator, difference: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Two variants: clips differ by much, kinds by more, the variants by little."""
    clip = rng.normal(20, 5, CLIPS) + np.where(np.array(KINDS) == "easy", 10, 0)
    baseline = clip + rng.normal(0, 0.5, (SEEDS, CLIPS))
    return baseline + rng.normal(difference, 0.5, (SEEDS, CLIPS)), baseline


def test_a_small_difference_is_found_among_clips_that_differ_by_much() -> None:
    ours, baseline = scores(np.random.default_rng(0), 0.3)
    found = paired_interval(ours, baseline, KINDS)
    assert found.low < 0.3 < found.high and found.excludes_zero and found.seeds_agree
    assert found.high - found.low < 0.4
    # Not paired, what clips differ by hides it.
    apart = mean_interval(ours, KINDS), mean_interval(baseline, KINDS)
    assert apart[0].low < apart[1].high and apart[1].high - apart[1].low > 1.5


def test_the_sign_is_that_of_ours_minus_the_baseline() -> None:
    ours, baseline = scores(np.random.default_rng(1), 2.0)
    assert paired_interval(ours, baseline, KINDS).low > 0 > paired_interval(baseline, ours, KINDS).high


def test_of_the_same_scores_nothing_is_left() -> None:
    ours, _ = scores(np.random.default_rng(2))
    same = paired_interval(ours, ours, KINDS)
    assert (same.mean, same.low, same.high) == (0, 0, 0)
    assert not same.excludes_zero and not same.seeds_agree


@pytest.mark.parametrize("difference", [0.0, 1.0])
def test_intervals_cover_the_truth_as_often_as_they_say(difference: float) -> None:
    rng = np.random.default_rng(3)
    trials, covered = 400, 0
    for trial in range(trials):
        found = paired_interval(*scores(rng, difference), KINDS, level=0.9, resamples=300, seed=trial)
        covered += found.low <= difference <= found.high
    # Percentiles of a bootstrap are a little narrow; three standard deviations of the count are 0.045.
    assert 0.83 < covered / trials < 0.945


def test_kinds_keep_their_numbers_of_clips() -> None:
    """Between kinds nothing is drawn: clips that are alike within each give an interval of no width."""
    values = np.where(np.array(KINDS) == "easy", 30.0, 10.0)
    found = mean_interval([values, values], KINDS)
    assert found.low == pytest.approx(found.high) == pytest.approx((20 * 30 + 40 * 10) / 60)
    mixed = mean_interval([values, values], ["one"] * CLIPS)
    assert mixed.high - mixed.low > 2


def test_clips_without_a_score_do_not_count() -> None:
    rows = np.array([[1.0, math.nan, 3.0], [2.0, math.nan, 4.0]])
    found = mean_interval(rows, ["a", "b", "a"])
    assert found.mean == 2.5 and found.by_seed == (2.0, 3.0)
    assert 1.5 <= found.low <= found.high <= 3.5


def test_seeds_that_disagree_are_told() -> None:
    rows = np.array([np.full(9, 1.0), np.full(9, -0.5)])
    found = mean_interval(rows, ["a"] * 9)
    assert found.excludes_zero and not found.seeds_agree


@pytest.mark.parametrize(
    ("rows", "kinds", "words"),
    [
        ([[1.0, 2.0]], ["a"], r"\(1, 2\) must be \[seeds, clips\] of 1"),
        ([[math.nan]], ["a"], "no clip has a score"),
        ([[1.0], [math.nan]], ["a"], "for some seeds only"),
    ],
)
def test_what_cannot_be_compared_is_refused(rows: list[list[float]], kinds: list[str], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        mean_interval(rows, kinds)


def test_other_clips_are_refused() -> None:
    with pytest.raises(ValueError, match="same clips and seeds"):
        paired_interval([[1.0, 2.0]], [[1.0]], ["a"])
