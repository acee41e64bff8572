"""The synthetic suite: held-out clips of the synthetic world, edited or restored, and scored.

Shape legend: B clips, T H W frames and size; pixels in [-1, 1].
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from numpy.typing import NDArray
from torch import Tensor

from sama_data.pretext import PretextPlan, plan_pretext
from sama_data.prompts import edit_prompt, pretext_prompt
from sama_data.synth import EDIT_KINDS, EditPair, WorldSpec, make_pair
from sama_kernels.pretext import BLACK_FRAME, pretext
from sama_mega.config.schema import MotionRecipe
from sama_mega.inference.editor import SamplingSettings, pixels_from_frames
from sama_mega.inference.held_out import HELD_OUT_SEED
from sama_mega.inference.load import OpenCheckpoint
from sama_mega.inference.scores import (
    ClipScores,
    EditScores,
    MotionScores,
    mean_db,
    psnr,
    score_each_clip,
    score_edits,
)

BATCH_CLIPS = 16
MOTION_TASKS = ("cube", "speed", "tube")


@dataclass(frozen=True)
class Example:
    """One scored clip, for a picture.

    Attributes:
        label: Kind of edit or task, and the prompt.
        rows: (name, ``[3, T, H, W]`` pixels), such as source, ours and truth.
    """

    label: str
    rows: tuple[tuple[str, Tensor], ...]


@dataclass(frozen=True)
class _Restoration:
    """Clips of one pretext task; `mask` is the pixels it is about, `baselines` what one gets without a model."""

    prompts: list[str]
    perturbed: Tensor
    restored: Tensor
    truths: Tensor
    mask: Tensor | None
    baselines: dict[str, Tensor]


class SyntheticSuite:
    """Scores one checkpoint.

    Args:
        opened: The checkpoint.
        settings: How to sample.
        num_clips: Clips of each kind or task.
        on_batch: Called after every sampled batch with the number of clips in it.
    """

    def __init__(
        self,
        opened: OpenCheckpoint,
        settings: SamplingSettings,
        num_clips: int,
        on_batch: Callable[[int], None] | None = None,
    ) -> None:
        self._opened = opened
        self._settings = settings
        self._num_clips = num_clips
        self._on_batch = on_batch or (lambda _: None)
        width, height = opened.recipe.data.buckets[0]
        self._spec = WorldSpec(num_frames=opened.recipe.data.max_frames, height=height, width=width)

    def score_edits(self) -> Iterator[tuple[EditScores, Example]]:
        """Scores every kind of edit; the control gives each clip the next clip's instruction."""
        kinds = [kind for kind in EDIT_KINDS for _ in range(self._num_clips)]
        pairs = [make_pair(HELD_OUT_SEED, index, self._spec, kind) for index, kind in enumerate(kinds)]
        # Half the suite away: another kind of edit as well as another clip.
        others = [pairs[(index + len(pairs) // 2) % len(pairs)].instruction for index in range(len(pairs))]
        for number, kind in enumerate(EDIT_KINDS):
            part = slice(number * self._num_clips, (number + 1) * self._num_clips)
            yield self._score_kind(kind, pairs[part], others[part])

    def _score_kind(self, kind: str, pairs: list[EditPair], others: list[str]) -> tuple[EditScores, Example]:
        raw_sources = torch.stack([_pixels(pair.source) for pair in pairs])
        prompts = [edit_prompt("video", pair.instruction) for pair in pairs]
        edits = self._restore(raw_sources, prompts)
        controls = self._restore(raw_sources, [edit_prompt("video", other) for other in others])
        sources = self._through_codec(raw_sources)
        truths = self._through_codec(torch.stack([_pixels(pair.target) for pair in pairs]))
        masks = torch.stack([torch.from_numpy(pair.mask) for pair in pairs])
        scores = score_edits(kind, edits, controls, sources, truths, masks)
        rows = (("source", sources[0]), ("edit", edits[0]), ("truth", truths[0]))
        return scores, Example(f"{kind}: {pairs[0].instruction}", rows)

    def score_each_clip(self, kinds: Sequence[str], edited: bool = True) -> Iterator[ClipScores]:
        """Scores the clips of some kinds of edit one by one.

        A smaller suite has the first clips of a larger one.

        Args:
            kinds: Which.
            edited: False scores the sources as they are.
        """
        for kind in kinds:
            first, step = EDIT_KINDS.index(kind), len(EDIT_KINDS)
            indices = range(first, first + step * self._num_clips, step)
            pairs = [make_pair(HELD_OUT_SEED, index, self._spec, kind) for index in indices]
            raw_sources = torch.stack([_pixels(pair.source) for pair in pairs])
            sources = self._through_codec(raw_sources)
            prompts = [edit_prompt("video", pair.instruction) for pair in pairs]
            edits = self._restore(raw_sources, prompts) if edited else sources
            truths = self._through_codec(torch.stack([_pixels(pair.target) for pair in pairs]))
            masks = torch.stack([torch.from_numpy(pair.mask) for pair in pairs])
            yield score_each_clip(kind, edits, sources, truths, masks)

    def restored_db(self, task: str) -> dict[str, list[float]]:
        """PSNR of each clip of a pretext task: the model's, under ``model``, and what one gets without one, by name."""
        restoration = self._restore_task(task)
        ours = {"model": restoration.restored} | restoration.baselines
        return {name: psnr(clips, restoration.truths, restoration.mask).tolist() for name, clips in ours.items()}

    def score_motion(self) -> Iterator[tuple[MotionScores, Example]]:
        """Scores every pretext task against what one gets without a model."""
        for task in MOTION_TASKS:
            yield self._score_task(task)

    def _score_task(self, task: str) -> tuple[MotionScores, Example]:
        done = self._restore_task(task)
        baselines = {name: mean_db(clips, done.truths, done.mask) for name, clips in done.baselines.items()}
        model_db = mean_db(done.restored, done.truths, done.mask)
        scores = MotionScores(task, done.truths.shape[0], model_db, baselines)
        rows = (("source", done.perturbed[0]), ("restored", done.restored[0]), ("truth", done.truths[0]))
        return scores, Example(done.prompts[0], rows)

    def _restore_task(self, task: str) -> _Restoration:
        pairs = [make_pair(HELD_OUT_SEED, index, self._spec) for index in range(self._num_clips)]
        motion = _only(task, self._opened.recipe.motion)
        plans = [self._plan(motion, index) for index in range(self._num_clips)]
        frames = [torch.from_numpy(pair.source) for pair in pairs]
        perturbed = torch.stack(
            [pretext(clip, plan.frame_indices, plan.tube_order) for clip, plan in zip(frames, plans, strict=True)]
        )
        prompts = [pretext_prompt(plan, pair.caption) for plan, pair in zip(plans, pairs, strict=True)]
        restored = self._restore(perturbed, prompts, self._spec.num_frames)
        truths = self._through_codec(torch.stack([pixels_from_frames(clip) for clip in frames]))
        mask, baselines = _frames_of_interest(plans, truths), self._baselines(plans, perturbed, truths)
        return _Restoration(prompts, perturbed, restored, truths, mask, baselines)

    def _plan(self, motion: MotionRecipe, index: int) -> PretextPlan:
        spec = self._spec
        name = f"held-out-{index}"
        return plan_pretext(motion, HELD_OUT_SEED, name, 0, spec.num_frames, spec.height, spec.width)

    def _baselines(self, plans: list[PretextPlan], perturbed: Tensor, truths: Tensor) -> dict[str, Tensor]:
        """What one gets without a model, ``[B, 3, T, H, W]`` each, of frames as the codec shows them."""
        if plans[0].task == "cube":
            copies = [truth[:, _nearest_visible(plan)] for truth, plan in zip(truths, plans, strict=True)]
            return {"black": torch.full_like(truths, -1.0), "nearest visible frame": torch.stack(copies)}
        seen = self._through_codec(perturbed)
        missing = truths.shape[2] - seen.shape[2]
        held = torch.cat([seen, seen[:, :, -1:].expand(-1, -1, missing, -1, -1)], dim=2)
        return {"its source": held}

    def _restore(self, sources: Tensor, prompts: list[str], num_frames: int | None = None) -> Tensor:
        results = []
        for start in range(0, len(prompts), BATCH_CLIPS):
            batch = slice(start, start + BATCH_CLIPS)
            editor = self._opened.editor
            results.append(editor.edit(sources[batch], prompts[batch], self._settings, num_frames=num_frames))
            self._on_batch(results[-1].shape[0])
        return torch.cat(results).cpu()

    def _through_codec(self, pixels: Tensor) -> Tensor:
        codec = self._opened.encoders.video
        return codec.decode(codec.encode(pixels.to(self._opened.context.device))).cpu()


def _pixels(frames: NDArray) -> Tensor:  # type: ignore[type-arg]
    return pixels_from_frames(torch.from_numpy(frames))


def _only(task: str, motion: MotionRecipe) -> MotionRecipe:
    weights = {name: float(name == task) for name in ("none", *MOTION_TASKS)}
    return motion.model_copy(update=weights)


def _frames_of_interest(plans: list[PretextPlan], truths: Tensor) -> Tensor | None:
    """``[B, T, H, W]`` bool: the blackened frames of cube inpainting; None (all of them) for the other tasks."""
    if plans[0].task != "cube":
        return None
    black = torch.tensor([[index == BLACK_FRAME for index in plan.frame_indices] for plan in plans])
    return black[:, :, None, None].expand(-1, -1, *truths.shape[-2:])


def _nearest_visible(plan: PretextPlan) -> list[int]:
    """For each frame the nearest one that is not black; of two equally near, the earlier."""
    visible = [place for place, index in enumerate(plan.frame_indices) if index != BLACK_FRAME]
    return [min(visible, key=lambda seen: abs(seen - place)) for place in range(len(plan.frame_indices))]
