"""Which of a saved step's samples a rank takes when it replays the step."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sama_mega.config.errors import ConfigError
from sama_mega.config.schema import ParallelRecipe
from sama_mega.train.numerics.saved_step import samples_path, write_samples
from sama_mega.train.replay import _own_samples
from sama_mega.verify.samples import global_batch

INTERLEAVED = ParallelRecipe(pipeline=2, interleave=2)


def shares(folder: Path, saved: list[list[int]], num_ranks: int, parallel: ParallelRecipe) -> list[list[int]]:
    """What every data rank takes of a step whose data ranks had these slots."""
    samples = global_batch(0)
    for rank, slots in enumerate(saved):
        write_samples(samples_path(folder, rank), [samples[slot] for slot in slots])
    report = {"layout": {"data": len(saved)}, "data_step": 0, "num_slots": len(samples), "num_image_slots": 0}
    recipe: Any = SimpleNamespace(parallel=parallel)
    contexts: list[Any] = [
        SimpleNamespace(layout=SimpleNamespace(data=num_ranks), data_rank=rank) for rank in range(num_ranks)
    ]
    taken = [_own_samples(folder, report, recipe, context).samples for context in contexts]
    return [[sample.slot for sample in share] for share in taken]


@pytest.mark.parametrize(("saved", "parallel"), [([[2], [0, 1, 3]], ParallelRecipe()), ([[1, 2], [0, 3]], INTERLEAVED)])
def test_as_many_ranks_take_what_they_had(tmp_path: Path, saved: list[list[int]], parallel: ParallelRecipe) -> None:
    assert shares(tmp_path, saved, 2, parallel) == saved


@pytest.mark.parametrize("saved", [[[2], [0, 1, 3]], [[0, 1, 2, 3]]])
def test_shares_too_small_for_the_layout_are_dealt_again(tmp_path: Path, saved: list[list[int]]) -> None:
    taken = shares(tmp_path, saved, 2, INTERLEAVED)
    assert [len(share) for share in taken] == [2, 2] and sorted(taken[0] + taken[1]) == [0, 1, 2, 3]


@pytest.mark.parametrize("num_ranks", [1, 2])
def test_a_step_too_small_for_the_layout_is_refused(tmp_path: Path, num_ranks: int) -> None:
    with pytest.raises(ConfigError, match=f"a step has 1 samples for {num_ranks} data ranks"):
        shares(tmp_path, [[0]], num_ranks, INTERLEAVED)
