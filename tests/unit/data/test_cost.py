"""Predicted times: the measurements they were fitted to, what grows how, and their speed."""

from __future__ import annotations

import time

import numpy as np
import pytest

from sama_data.cost import CostModel


def seconds(tokens: int, model: CostModel | None = None) -> float:
    return int((model or CostModel()).nanoseconds(np.array([tokens]))[0]) / 1e9


@pytest.mark.parametrize(("tokens", "samples", "measured"), [(65_585, 1, 0.810), (40_625, 1, 0.366), (3_185, 8, 0.109)])
def test_the_measurements_of_the_14b_block(tokens, samples, measured):
    assert samples * seconds(tokens) == pytest.approx(measured, rel=1e-3)


def test_an_81_frame_pair_takes_sixty_times_an_image_pairs_time():
    assert 58 < seconds(65_585) / seconds(3_185) < 62


@pytest.mark.parametrize(
    ("size", "frames", "source_frames", "tokens"),
    [
        ((832, 480), 81, 81, 65_585),
        ((832, 480), 1, 1, 3_185),
        ((480, 832), 49, 49, 40_625),
        ((832, 480), 81, 37, 32_760 + 10 * 1_560 + 65),  # sped up
        ((8, 8), 1, 1, 67),  # never no token
    ],
)
def test_tokens_of_source_anchor_and_target(size, frames, source_frames, tokens):
    given = [np.array([number]) for number in (*size, frames, source_frames)]
    assert CostModel().tokens(*given).tolist() == [tokens]
    assert CostModel(semantic_tokens=0).tokens(*given).tolist() == [tokens - 65]


def test_a_narrow_model_feels_attention_sooner():
    """Attention grows with the width, matrix products with its square."""
    wide, narrow = CostModel(), CostModel(dim=1536, ffn_dim=8960)
    ratios = [seconds(65_585, model) / seconds(3_185, model) for model in (wide, narrow)]
    assert ratios[1] > 1.15 * ratios[0]


def test_a_call_weighs_with_the_ranks_that_share_a_sample():
    alone, shared = CostModel(), CostModel(ranks_per_sample=8)
    assert shared.call_nanoseconds == pytest.approx(8 * alone.call_nanoseconds, rel=1e-5)
    assert 0 < alone.call_nanoseconds < 0.1 * seconds(3_185) * 1e9


def test_times_are_whole_and_never_zero():
    times = CostModel(dim=2, ffn_dim=2, text_length=0).nanoseconds(np.array([1, 2, 65_585]))
    assert times.dtype == np.int64
    assert times.min() >= 1


def test_a_step_is_predicted_within_two_milliseconds():
    generator, model = np.random.default_rng(0), CostModel()
    width, height = generator.integers(448, 897, (2, 560))
    frames = 4 * generator.integers(0, 21, 560) + 1
    best = np.inf
    for _ in range(20):
        started = time.perf_counter()
        model.nanoseconds(model.tokens(width, height, frames, frames))
        best = min(best, time.perf_counter() - started)
    assert best < 0.002
