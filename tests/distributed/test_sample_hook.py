"""Sampling on two data ranks, of which one has a bad disk: both must sample the same clips, or one waits for ever."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist

from tests.support.distributed import run_distributed
from tests.support.tiny_recipe import tiny_recipe, tiny_world

pytestmark = pytest.mark.distributed

TIMEOUT_SECONDS = 120.0
NUM_SAMPLES = 2
CASES = ("healthy", "first_rank_cannot_read", "other_rank_cannot_read", "other_rank_is_late", "cannot_write")


class Meeting:
    """Stands in for the model and the optimizer: whatever uses them is a collective."""

    def __init__(self, *_: object) -> None:
        self.prompts: list[str] = []

    def edit(self, sources: torch.Tensor, prompts: list[str], _: object, *, kind: str, num_frames: int) -> torch.Tensor:
        smallest, largest = sources.clone(), sources.clone()
        dist.all_reduce(smallest, op=dist.ReduceOp.MIN)
        dist.all_reduce(largest, op=dist.ReduceOp.MAX)
        assert torch.equal(smallest, largest), "the ranks sample different clips"
        self.prompts += prompts
        return torch.zeros(1, 3, num_frames, *sources.shape[-2:])

    @contextmanager
    def temporary_weights(self, _: object) -> Iterator[None]:
        dist.barrier()
        yield
        dist.barrier()


def sample_on_two_ranks(root: str, worlds: dict[str, str]) -> dict[str, list[str]]:
    """The prompts that this rank sampled, by case."""
    from sama_data.manifest import load_manifest
    from sama_mega.parallel.runtime import start_parallel, stop_parallel
    from sama_mega.train.hooks import sample as module
    from sama_mega.train.run_folder import RunFolder
    from sama_mega.train.stop import StopRequest

    module.Editor = Meeting  # type: ignore[assignment,misc]
    rank = int(os.environ["RANK"])
    bad_rank = {"first_rank_cannot_read": 0, "other_rank_cannot_read": 1}
    changes = {"train.num_samples": NUM_SAMPLES, "parallel.data": 2}
    context = start_parallel(tiny_recipe(1, Path(root), Path("none"), 4, changes), timeout_seconds=TIMEOUT_SECONDS / 2)
    sampled = {}
    for case in CASES:
        manifest = Path(worlds["spoilt" if bad_rank.get(case) == rank else "good"]) / "pairs.jsonl"
        recipe = tiny_recipe(1, Path(root) / case, manifest, 4, changes)
        state: Any = SimpleNamespace(
            model=SimpleNamespace(module=None), optimizer=Meeting(), average=SimpleNamespace(values=())
        )
        hook = module.SampleHook(recipe, load_manifest(manifest), None, state, context, StopRequest())  # type: ignore[arg-type]
        folder = RunFolder.create(recipe.train.run_folder)
        is_late = case == "other_rank_is_late" and rank == 1
        module._TurnClock.is_over = property(lambda clock, late=is_late: late)  # type: ignore[assignment,misc]
        dist.barrier()
        if case == "cannot_write" and rank == 0:
            folder.samples.rmdir()
            folder.samples.write_text("a file where the folder should be")
        dist.barrier()
        run: Any = SimpleNamespace(recipe=recipe, folder=folder, is_main=rank == 0, total_steps=4)
        hook.on_step_end(run, SimpleNamespace(step=4, files=[]))  # type: ignore[arg-type]
        sampled[case] = hook._editor.prompts  # type: ignore[attr-defined]
    stop_parallel()
    return sampled


@pytest.fixture(scope="module")
def sampled(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, list[str]]]]:
    good, root = tiny_world(tmp_path_factory), tmp_path_factory.mktemp("sample_hook")
    spoilt = root / "spoilt"
    shutil.copytree(good, spoilt)
    # The first clip of the manifest: the one that is sampled first.
    (spoilt / "videos/video-000000-target.mp4").write_bytes(b"")
    worlds = {"good": str(good), "spoilt": str(spoilt)}
    return root, run_distributed(sample_on_two_ranks, 2, TIMEOUT_SECONDS, (str(root), worlds))


@pytest.mark.parametrize("case", CASES)
def test_both_ranks_sample_the_same(sampled: tuple[Path, list[dict[str, list[str]]]], case: str) -> None:
    _, (first, other) = sampled
    assert first[case] == other[case] and len(first[case]) == NUM_SAMPLES


def test_what_the_first_rank_reads_decides(sampled: tuple[Path, list[dict[str, list[str]]]]) -> None:
    _, (prompts, _) = sampled
    assert prompts["other_rank_cannot_read"] == prompts["cannot_write"] == prompts["healthy"]
    assert prompts["other_rank_is_late"] == prompts["healthy"]
    assert prompts["first_rank_cannot_read"][0] == prompts["healthy"][1]


def test_the_first_rank_writes(sampled: tuple[Path, list[dict[str, list[str]]]]) -> None:
    root, _ = sampled
    for case in CASES[:-1]:
        names = sorted(path.name for path in (root / case / "samples").iterdir())
        assert names == [f"step-00000004-{number}.{ending}" for number in (0, 1) for ending in ("mp4", "png")]
    assert (root / "cannot_write/samples").is_file()
