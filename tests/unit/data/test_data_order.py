"""Order and stand-ins: pure functions that no number of ranks and no starting point can change."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sama_data.errors import DataError
from sama_data.order import (
    RANDOM_ATTEMPTS,
    EpochOrder,
    epoch_permutation,
    hash_key,
    replacement_index,
    splitmix64,
    step_draws,
)


def test_splitmix64_known_answers():
    # The reference generator adds the golden constant to its state before it mixes: seeds 0 and 1234567.
    golden = 0x9E3779B97F4A7C15
    states = np.array([0, 1234567, (1234567 + golden) % 2**64], np.uint64)
    assert splitmix64(states).tolist() == [0xE220A8397B1DCDAF, 6457827717110365317, 3203168211198807973]


@given(st.integers(1, 400), st.integers(-5, 2**40), st.integers(0, 10**6), st.integers(0, 3))
def test_every_epoch_visits_every_sample_once(num_samples, seed, epoch, stream):
    order = epoch_permutation(num_samples, seed, epoch, stream)
    assert order.dtype == np.int64
    assert sorted(order.tolist()) == list(range(num_samples))


def test_seed_epoch_and_stream_each_change_the_order():
    orders = [epoch_permutation(50, *key).tolist() for key in ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 0))]
    assert len({tuple(order) for order in orders}) == 5


def test_the_order_is_pinned():
    assert epoch_permutation(10, 3, 1, 0).tolist() == PINNED_ORDER


PINNED_ORDER = [7, 8, 2, 4, 9, 1, 0, 3, 6, 5]


def test_an_order_is_not_a_shift_of_another():
    first, second = epoch_permutation(64, 0, 0, 0), epoch_permutation(64, 0, 1, 0)
    assert all((np.roll(first, shift) == second).mean() < 0.3 for shift in range(64))
    # Neighbours do not stay neighbours.
    assert (np.abs(np.diff(first)) == 1).mean() < 0.2


@given(st.integers(1, 60), st.integers(1, 90), st.integers(0, 2**32), st.integers(0, 40), st.integers(1, 8))
def test_steps_cut_one_endless_sequence(num_samples, per_step, seed, start, num_steps):
    steps = [step_draws(num_samples, per_step, seed, 0, start + number) for number in range(num_steps)]
    indices = np.concatenate([step[0] for step in steps])
    epochs = np.concatenate([step[1] for step in steps])
    assert len(indices) == per_step * num_steps
    first = start * per_step
    for offset, (index, epoch) in enumerate(zip(indices.tolist(), epochs.tolist(), strict=True)):
        assert epoch == (first + offset) // num_samples
        assert index == epoch_permutation(num_samples, seed, epoch, 0)[(first + offset) % num_samples]


def test_an_order_that_is_kept_draws_like_a_new_one():
    kept = EpochOrder(30, 9, 1)
    for step in (0, 5, 4, 100, 1, 0):
        for mine, fresh in zip(kept.draws(step, 7), step_draws(30, 7, 9, 1, step), strict=True):
            np.testing.assert_array_equal(mine, fresh)


def test_nothing_to_draw_from():
    with pytest.raises(DataError, match="no samples"):
        step_draws(0, 1, 0, 0, 0)


@settings(max_examples=30)
@given(st.integers(1, 50), st.integers(0, 2**32), st.integers(0, 9), st.integers(0, 49))
def test_stand_ins_reach_every_sample(num_samples, seed, epoch, index):
    attempts = range(RANDOM_ATTEMPTS + num_samples)
    seen = {replacement_index(num_samples, seed, epoch, index, attempt, 0) for attempt in attempts}
    assert seen == set(range(num_samples))


def test_stand_ins_differ_by_what_they_replace():
    by_index = {replacement_index(10**6, 0, 0, index, 0, 0) for index in range(100)}
    by_epoch = {replacement_index(10**6, 0, epoch, 0, 0, 0) for epoch in range(100)}
    by_attempt = {replacement_index(10**6, 0, 0, 0, attempt, 0) for attempt in range(RANDOM_ATTEMPTS)}
    assert len(by_index) > 95
    assert len(by_epoch) > 95
    assert len(by_attempt) == RANDOM_ATTEMPTS


def test_hash_key_depends_on_order():
    assert hash_key(1, 2) != hash_key(2, 1)
    assert hash_key(1, 2, 0) != hash_key(1, 2)
