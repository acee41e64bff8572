"""Edits a few fixed clips with the averaged weights, for people to look at."""

from __future__ import annotations

import logging

import torch

from sama_data.clips import load_clip
from sama_data.dataset import Dataset
from sama_data.errors import ClipError
from sama_data.pretext import identity_plan, plan_pretext
from sama_data.samples import make_prompt
from sama_kernels.pretext import pretext
from sama_mega.config.schema import Recipe
from sama_mega.encoders import Encoders
from sama_mega.inference.editor import Editor, SamplingSettings, frames_from_pixels
from sama_mega.inference.pictures import before_after_picture, write_video
from sama_mega.parallel.runtime import ParallelContext
from sama_mega.train.hooks.base import Hook, Run
from sama_mega.train.report import StepReport
from sama_mega.train.state import TrainState

_log = logging.getLogger(__name__)

DEFAULT_FPS = 16.0
MAX_SAMPLING_STEPS = 12
"""A look at the run, not a final edit: the time it takes is bounded."""


class SampleHook(Hook):
    """Every `train.sample_every` steps and after the last one, edits the manifest's first good videos.

    Args:
        recipe: The whole recipe.
        dataset: Where the clips come from.
        encoders: Frozen encoders.
        state: Its averaged weights are used.
        context: The running layout; every rank takes part, rank 0 writes.
    """

    def __init__(
        self,
        recipe: Recipe,
        dataset: Dataset,
        encoders: Encoders,
        state: TrainState,
        context: ParallelContext,
    ) -> None:
        self._recipe = recipe
        self._dataset = dataset
        self._state = state
        self._context = context
        self._editor = Editor(recipe, state.model.module, encoders, context.device)

    def on_step_end(self, run: Run, report: StepReport) -> None:
        """Samples when it is due."""
        every = run.recipe.train.sample_every
        is_due = bool(every) and report.step % every == 0
        if run.recipe.train.num_samples and (is_due or report.step == run.total_steps):
            with self._state.optimizer.temporary_weights(self._state.average.values):
                self._sample(run, report.step)

    def _sample(self, run: Run, step: int) -> None:
        written = 0
        for index in self._candidates():
            try:
                self._edit_one(run, step, index, written)
            except ClipError as error:
                _log.info("sample of row %d skipped: %s", index, error)
                continue
            written += 1
            if written == run.recipe.train.num_samples:
                return

    def _candidates(self) -> list[int]:
        """Rows to try: videos first, a few more than wanted because some may not decode."""
        videos, images = (self._dataset.indices_of(kind).tolist() for kind in ("video", "image"))
        return (videos + images)[: 4 * self._recipe.train.num_samples]

    def _edit_one(self, run: Run, step: int, index: int, number: int) -> None:
        recipe, row = self._recipe, self._dataset[index]
        clip = load_clip(row, recipe.data.buckets, recipe.data.max_frames, recipe.data.decode_threads)
        num_frames, height, width = clip.target.shape[:3]
        if row.is_edit:
            plan = identity_plan(num_frames, "edit")
        elif row.kind == "image":
            plan = identity_plan(num_frames)
        else:
            plan = plan_pretext(recipe.motion, recipe.train.seed, row.sample_id, 0, num_frames, height, width)
        prompt, _ = make_prompt(row, plan)
        source = pretext(torch.from_numpy(clip.source), plan.frame_indices, plan.tube_order)
        steps = min(recipe.diffusion.sampling_steps, MAX_SAMPLING_STEPS)
        settings = SamplingSettings(steps, recipe.diffusion.guidance, recipe.train.seed)
        edited = self._editor.edit(source[None], [prompt], settings, num_frames=num_frames)
        if not run.is_main:
            return
        frames = frames_from_pixels(edited[0]).numpy()
        stem = run.folder.samples / f"step-{step:08d}-{number}"
        before_after_picture(frames_from_pixels(source).numpy(), frames, stem.with_suffix(".png"), title=prompt)
        if num_frames > 1:
            write_video(stem.with_suffix(".mp4"), frames, clip.fps or DEFAULT_FPS)
