"""Every held-out clip's scores of one variant with one seed."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sama_mega.ablation.study import KINDS
from sama_mega.checkpoint.folder import checkpoint_step, complete_checkpoints
from sama_mega.inference.editor import SamplingSettings
from sama_mega.inference.load import OpenCheckpoint, open_checkpoint
from sama_mega.inference.synthetic_suite import MOTION_TASKS, SyntheticSuite

SAMPLING_SEED = 0
"""One for all: variants differ in their weights, never in the noise that an edit starts from."""
_DECIMALS = 2

Rows = dict[str, list[float | None]]
"""By measure, one value a clip; null where a clip has none."""


def score_chain(stage0: Path, stage1: Path, num_clips: int, num_curve_clips: int) -> dict[str, Any]:
    """Scores stage 0's last checkpoint and all that are left of stage 1.

    Args:
        stage0: Run folder.
        stage1: Run folder.
        num_clips: Held-out clips of each kind of edit and each pretext task.
        num_curve_clips: The same for stage 1's checkpoints on the way.

    Returns:
        JSON values: ``edits`` (after stage 1), ``zero_shot`` (after stage 0) and ``unedited`` (the sources) by kind of
        edit, ``restored`` (after stage 0) by pretext task, ``curve``: the edits at each of stage 1's checkpoints.
    """
    with open_checkpoint(stage0, "ema") as opened:
        suite = _suite(opened, num_clips)
        unedited, zero_shot = _by_kind(suite, edited=False), _by_kind(suite)
        restored = {task: _rounded(suite.restored_db(task)) for task in MOTION_TASKS}
    curve, edits = [], {}
    paths = complete_checkpoints(stage1 / "checkpoints")
    for path in paths:
        with open_checkpoint(path, "ema") as opened:
            if path == paths[-1]:
                edits = _by_kind(_suite(opened, num_clips))
            on_the_way = _by_kind(_suite(opened, num_curve_clips))
            curve.append({"step": checkpoint_step(path), "edits": on_the_way})
    return {"edits": edits, "zero_shot": zero_shot, "restored": restored, "unedited": unedited, "curve": curve}


def _suite(opened: OpenCheckpoint, num_clips: int) -> SyntheticSuite:
    diffusion = opened.recipe.diffusion
    settings = SamplingSettings(diffusion.sampling_steps, diffusion.guidance, SAMPLING_SEED)
    return SyntheticSuite(opened, settings, num_clips)


def _by_kind(suite: SyntheticSuite, edited: bool = True) -> dict[str, Rows]:
    scores = {}
    for one in suite.score_each_clip(KINDS, edited):
        measures = {name: values for name, values in asdict(one).items() if name != "kind"}
        scores[one.kind] = _rounded(measures)
    return scores


def _rounded(values: Mapping[str, Iterable[float]]) -> Rows:
    """With NaN, which is no JSON, as null."""
    return {
        name: [round(value, _DECIMALS) if math.isfinite(value) else None for value in row]
        for name, row in values.items()
    }
