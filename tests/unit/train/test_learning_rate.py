"""The learning rate over a run, against values worked out by hand."""

from __future__ import annotations

import pytest

from sama_mega.config.schema import OptimizerRecipe
from sama_mega.train.learning_rate import learning_rate_at


def rates(total: int, **settings: float) -> list[float]:
    optimizer = OptimizerRecipe(learning_rate=2.0, **settings)  # type: ignore[arg-type]
    return [learning_rate_at(step, total, optimizer) for step in range(total)]


def test_without_a_schedule_the_rate_is_constant() -> None:
    assert rates(4) == [2.0] * 4


def test_warm_up_is_linear_and_reaches_the_rate_with_its_last_step() -> None:
    assert rates(6, warmup_steps=4) == pytest.approx([0.5, 1.0, 1.5, 2.0, 2.0, 2.0])


def test_the_last_share_falls_linearly_towards_zero() -> None:
    assert rates(10, decay_share=0.4) == pytest.approx([2.0] * 7 + [1.5, 1.0, 0.5])


def test_a_whole_run_can_decay() -> None:
    assert rates(4, decay_share=1.0) == pytest.approx([2.0, 1.5, 1.0, 0.5])


def test_warm_up_and_decay_may_overlap() -> None:
    assert rates(4, warmup_steps=4, decay_share=1.0) == pytest.approx([0.5, 0.75, 0.75, 0.5])


@pytest.mark.parametrize("total", [1, 2, 7, 1600])
def test_every_step_learns_something_and_none_more_than_the_rate(total: int) -> None:
    for settings in ({"warmup_steps": 50}, {"decay_share": 0.3}, {"warmup_steps": 3, "decay_share": 0.01}):
        assert all(0 < rate <= 2.0 for rate in rates(total, **settings))


def test_the_rate_depends_on_the_step_alone() -> None:
    """A resumed run asks for step 5 first."""
    optimizer = OptimizerRecipe(learning_rate=2.0, warmup_steps=8)
    assert learning_rate_at(5, 10, optimizer) == rates(10, warmup_steps=8)[5]
