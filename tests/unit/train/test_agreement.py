"""Ranks that share samples compare them; the other rank is played by the collective."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist

from sama_data.errors import DataError
from sama_data.loader import StepSamples
from sama_mega.train import agreement
from sama_mega.train.agreement import agreeing_batches


def step_of(*samples: tuple[int, int, int], step: int = 7) -> StepSamples:
    """(slot, row, epoch) of each sample."""
    read: list[Any] = [SimpleNamespace(slot=slot, index=index, epoch=epoch) for slot, index, epoch in samples]
    return StepSamples(step=step, samples=read, num_slots=9, num_image_slots=0)


def context_of(ranks: int) -> Any:
    return SimpleNamespace(model_group=SimpleNamespace(size=lambda: ranks), device=torch.device("cpu"))


def message_of(drawn: StepSamples, monkeypatch: pytest.MonkeyPatch) -> torch.Tensor:
    """What a rank with these samples sends."""
    sent: list[torch.Tensor] = []
    monkeypatch.setattr(agreement.dist, "all_reduce", lambda tensor, op, group: sent.append(tensor.clone()))
    next(agreeing_batches(iter([drawn]), context_of(2)))
    return sent[0]


def compare(ours: StepSamples, theirs: StepSamples, monkeypatch: pytest.MonkeyPatch) -> StepSamples:
    """Runs our rank beside one with other samples."""
    message = message_of(theirs, monkeypatch)

    def all_reduce(tensor: torch.Tensor, op: object, group: object) -> None:
        assert op == dist.ReduceOp.MAX
        tensor.copy_(torch.maximum(tensor, message))

    monkeypatch.setattr(agreement.dist, "all_reduce", all_reduce)
    return next(agreeing_batches(iter([ours]), context_of(2)))


def test_equal_samples_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = step_of((0, 4, 0), (3, 5, 1))
    assert compare(ours, step_of((0, 4, 0), (3, 5, 1)), monkeypatch) is ours
    nothing = step_of()
    assert compare(nothing, step_of(), monkeypatch) is nothing


@pytest.mark.parametrize(
    "theirs",
    [
        [(0, 4, 0), (3, 6, 1)],
        [(0, 4, 0), (3, 5, 2)],
        [(0, 4, 0), (2, 5, 1)],
        [(0, 4, 0)],
        [(0, 4, 0), (3, 5, 1), (4, 1, 0)],
        [],
    ],
)
def test_different_samples_stop_both_ranks(theirs: list[tuple[int, int, int]], monkeypatch: pytest.MonkeyPatch) -> None:
    ours = step_of((0, 4, 0), (3, 5, 1))
    for mine, other in ((ours, step_of(*theirs)), (step_of(*theirs), ours)):
        with pytest.raises(DataError, match="step 7: ranks of one model-parallel group read different samples"):
            compare(mine, other, monkeypatch)


def test_one_rank_alone_compares_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agreement.dist, "all_reduce", lambda *_, **__: pytest.fail("nobody to ask"))
    batches = [step_of((0, 1, 0)), step_of((0, 2, 0))]
    assert list(agreeing_batches(iter(batches), context_of(1))) == batches


def test_a_batch_is_compared_only_when_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """The loader reads ahead; the check must not."""
    read: list[int] = []

    def batches() -> Iterator[StepSamples]:
        for step in range(3):
            read.append(step)
            yield step_of((0, step, 0), step=step)

    monkeypatch.setattr(agreement.dist, "all_reduce", lambda *_, **__: None)
    passed = agreeing_batches(batches(), context_of(2))
    assert next(passed).step == 0
    assert read == [0]
