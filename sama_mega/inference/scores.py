"""Scores of edits whose truth is known, in pixels against the codec's own reconstruction of the truth.

Shape legend: B clips, T H W frames and size; pixels in [-1, 1].
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

import torch
from torch import Tensor

PEAK_TO_PEAK = 2.0
PERFECT_DB = 99.0
"""What an error of zero scores: a PSNR has no largest value, a table needs one."""


def psnr(ours: Tensor, truth: Tensor, mask: Tensor | None = None) -> Tensor:
    """Peak signal-to-noise ratio of each clip, in decibels.

    Args:
        ours: ``[B, 3, T, H, W]``.
        truth: Same shape.
        mask: ``[B, T, H, W]`` bool, the pixels that count; all by default.

    Returns:
        ``[B]`` float32; NaN where no pixel counts.
    """
    squared = (ours - truth).square().mean(dim=1)
    weight = torch.ones_like(squared) if mask is None else mask.to(squared.dtype)
    mean = (squared * weight).sum(dim=(1, 2, 3)) / weight.sum(dim=(1, 2, 3))
    return (10 * torch.log10(PEAK_TO_PEAK**2 / mean)).clamp(max=PERFECT_DB)


@dataclass(frozen=True)
class EditScores:
    """Mean scores of one kind of edit.

    Attributes:
        kind: Kind of edit.
        num_clips: Clips scored.
        success: Share of clips whose edited region ends closer to the target than to the source.
        inside_db: PSNR inside the edit.
        unedited_db: PSNR inside the edit of the source left as it was.
        outside_db: PSNR outside the edit; NaN where an edit changes the whole frame.
        control_success: Success with another clip's instruction.
    """

    kind: str
    num_clips: int
    success: float
    inside_db: float
    unedited_db: float
    outside_db: float
    control_success: float


def score_edits(
    kind: str, edits: Tensor, controls: Tensor, sources: Tensor, truths: Tensor, masks: Tensor
) -> EditScores:
    """Scores the edits of one kind.

    Args:
        kind: Kind of edit.
        edits: ``[B, 3, T, H, W]`` what the model made.
        controls: Same shape, made with other clips' instructions.
        sources: Same shape, the sources through the codec.
        truths: Same shape, the targets through the codec.
        masks: ``[B, T, H, W]`` bool, where the edit may change pixels.
    """
    inside = psnr(edits, truths, masks)
    return EditScores(
        kind=kind,
        num_clips=edits.shape[0],
        success=_share(inside > psnr(edits, sources, masks)),
        inside_db=_mean(inside),
        unedited_db=_mean(psnr(sources, truths, masks)),
        outside_db=_mean(psnr(edits, truths, ~masks)),
        control_success=_share(psnr(controls, truths, masks) > psnr(controls, sources, masks)),
    )


def score_together(scores: Sequence[EditScores], kinds: Sequence[str]) -> EditScores:
    """Means over the clips of several kinds; a kind without an outside does not count for the outside.

    Args:
        scores: One a kind.
        kinds: Which of them.
    """
    chosen = [one for one in scores if one.kind in kinds]

    def mean(values: Sequence[float]) -> float:
        pairs = [(value, one.num_clips) for value, one in zip(values, chosen, strict=True) if not math.isnan(value)]
        num_clips = sum(clips for _, clips in pairs)
        return sum(value * clips for value, clips in pairs) / num_clips if num_clips else float("nan")

    return EditScores(
        kind=" + ".join(one.kind for one in chosen),
        num_clips=sum(one.num_clips for one in chosen),
        success=mean([one.success for one in chosen]),
        inside_db=mean([one.inside_db for one in chosen]),
        unedited_db=mean([one.unedited_db for one in chosen]),
        outside_db=mean([one.outside_db for one in chosen]),
        control_success=mean([one.control_success for one in chosen]),
    )


def temporal_psnr(ours: Tensor, truth: Tensor) -> Tensor:
    """`psnr` of the differences between neighbouring frames: how well things move and stay as in the truth.

    An error that stands still does not count; flicker and wrong motion do.

    Args:
        ours: ``[B, 3, T, H, W]``, T at least 2.
        truth: Same shape.

    Returns:
        ``[B]`` float32.
    """
    return psnr(ours.diff(dim=2), truth.diff(dim=2))


@dataclass(frozen=True)
class ClipScores:
    """Scores of each clip of one kind of edit, in the clips' order.

    Attributes:
        kind: Kind of edit.
        success: 1 where the edited region ends closer to the target than to the source, else 0.
        inside_db: PSNR inside the edit.
        outside_db: PSNR outside the edit; NaN where an edit changes the whole frame.
        temporal_db: `temporal_psnr`.
    """

    kind: str
    success: list[float]
    inside_db: list[float]
    outside_db: list[float]
    temporal_db: list[float]


def score_each_clip(kind: str, edits: Tensor, sources: Tensor, truths: Tensor, masks: Tensor) -> ClipScores:
    """Scores clips one by one; the arguments are those of `score_edits`."""
    inside = psnr(edits, truths, masks)
    return ClipScores(
        kind=kind,
        success=(inside > psnr(edits, sources, masks)).float().tolist(),
        inside_db=inside.tolist(),
        outside_db=psnr(edits, truths, ~masks).tolist(),
        temporal_db=temporal_psnr(edits, truths).tolist(),
    )


@dataclass(frozen=True)
class MotionScores:
    """Mean scores of one pretext task, over the frames that the task is about.

    Attributes:
        task: ``cube``, ``speed`` or ``tube``.
        num_clips: Clips scored.
        model_db: PSNR of what the model restored.
        baselines_db: PSNR of what one gets without a model, by name.
    """

    task: str
    num_clips: int
    model_db: float
    baselines_db: dict[str, float]


def _share(hits: Tensor) -> float:
    return hits.float().mean().item()


def _mean(values: Tensor) -> float:
    finite = values[~values.isnan()].tolist()
    return fmean(finite) if finite else float("nan")


def mean_db(ours: Tensor, truth: Tensor, mask: Tensor | None = None) -> float:
    """Mean of `psnr` over the clips that have a pixel to count."""
    return _mean(psnr(ours, truth, mask))
