"""The time of 1F1B against its formula where micro-batches are equal, and against bounds where they are not."""

from __future__ import annotations

import pytest

from sama_mega.planner.pipeline_schedule import simulate_1f1b


@pytest.mark.parametrize("stages", [1, 2, 4])
@pytest.mark.parametrize("micro_batches", [1, 3, 8])
def test_equal_micro_batches_idle_as_the_formula_says(stages: int, micro_batches: int) -> None:
    total = simulate_1f1b([[1.0] * micro_batches] * stages, [[2.0] * micro_batches] * stages)
    busy = 3.0 * micro_batches
    idle = (stages - 1) / (micro_batches + stages - 1)
    assert total == pytest.approx(busy / (1 - idle))


def test_a_slow_stage_sets_the_pace() -> None:
    total = simulate_1f1b([[1.0] * 10, [3.0] * 10], [[2.0] * 10, [6.0] * 10])
    assert total == pytest.approx(1 + 10 * 9 + 2)


def test_a_long_micro_batch_among_short_ones() -> None:
    forward = [[1.0, 1.0, 9.0, 1.0]] * 2
    backward = [[2.0, 2.0, 18.0, 2.0]] * 2
    # Between no idling at all and waiting once for a whole long micro-batch.
    total = simulate_1f1b(forward, backward)
    assert 36 < total < 36 + 9 + 18
    assert total > simulate_1f1b([forward[0]], [backward[0]])
