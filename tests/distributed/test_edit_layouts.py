"""One clip, one seed: every layout of two ranks edits as one rank does, guidance spread over ranks included."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.support.distributed import run_distributed
from tests.support.tiny_recipe import FRAMES, SIZE, call_main, recipe_path, tiny_overrides, tiny_world

pytestmark = pytest.mark.distributed

TIMEOUT_SECONDS = 120.0
LAYOUTS = {"tp": (2, 1), "cp": (1, 2), "guidance": (1, 1)}
"""Tensor and context parallel ranks; what is left of two are data ranks."""
SCALES = ((5.0, 0.0), (5.0, 2.0), (1.0, 2.0))


def edit_in_layout(run_folder: str, video: str, tensor: int, context: int) -> list[np.ndarray]:
    """What this rank gets, by scales."""
    import os

    from sama_mega.inference.edit_clip import edit_clip
    from sama_mega.inference.editor import SamplingSettings
    from sama_mega.inference.load import open_checkpoint
    from sama_mega.parallel.rank_environment import found_rank_count

    edits = []
    num_ranks = found_rank_count(os.environ) or 1
    with open_checkpoint(Path(run_folder), "ema", num_ranks, tensor=tensor, context=context) as opened:
        assert opened.path.name == "step-00000002"
        assert opened.context.layout.data == num_ranks // (tensor * context)
        for guidance, source_guidance in SCALES:
            settings = SamplingSettings(2, guidance, 7, source_guidance)
            edits.append(edit_clip(opened, Path(video), "make it red", settings, FRAMES).edit)
    return edits


def edit_in_every_layout(run_folder: str, video: str) -> dict[str, list[np.ndarray]]:
    import os

    from sama_mega.parallel.rank_environment import read_rank_environment
    from tests.support.mixed_world import meeting_points

    meet, edits = meeting_points(Path(run_folder)), {}
    # As if the run still trained, and had saved between the ranks' looks: the first rank's checkpoint counts.
    is_first = read_rank_environment(os.environ).rank == 0
    found = run_folder if is_first else str(Path(run_folder) / "checkpoints/step-00000001")
    for name, degrees in LAYOUTS.items():
        meet(name)
        edits[name] = edit_in_layout(found, video, *degrees)
    return edits


@pytest.fixture(scope="module")
def edits(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[np.ndarray], list[dict[str, list[np.ndarray]]]]:
    """Of one rank, and of each of two by layout."""
    world, folder = tiny_world(tmp_path_factory), tmp_path_factory.mktemp("layouts") / "run"
    # Large steps: what the instruction and the source change is seen.
    changes = {"optimizer.learning_rate": 0.02, "train.num_samples": 0, "checkpoint.every": 1}
    assert call_main("train", recipe_path(1), *tiny_overrides(folder, world / "pairs.jsonl", 2, changes)) == 0
    video = str(world / "videos/video-000000-source.mp4")
    alone = edit_in_layout(str(folder), video, 1, 1)
    return alone, run_distributed(edit_in_every_layout, 2, TIMEOUT_SECONDS, (str(folder), video))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_two_ranks_edit_as_one(edits: tuple[list[np.ndarray], list[dict[str, list[np.ndarray]]]], layout: str) -> None:
    alone, together = edits
    # Ranks that only share passes add up nothing between them: their result is one rank's to the last bit.
    most = 0 if layout == "guidance" else 1
    for place in range(len(SCALES)):
        assert alone[place].shape == (FRAMES, SIZE, SIZE, 3)
        for rank in together:
            difference = np.abs(rank[layout][place].astype(int) - alone[place])
            assert difference.max() <= most and difference.mean() < 0.02


def test_every_scale_changes_the_edit(edits: tuple[list[np.ndarray], list[dict[str, list[np.ndarray]]]]) -> None:
    alone, _ = edits
    for first, second in ((0, 1), (1, 2), (0, 2)):
        assert np.abs(alone[first].astype(int) - alone[second]).mean() > 0.1
