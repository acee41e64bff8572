"""Edits a few fixed clips with the averaged weights, for people to look at."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from sama_data.clip_reader import ClipReader
from sama_data.dataset import Dataset
from sama_data.errors import DataError
from sama_data.pretext import plan_for
from sama_data.prompts import make_prompt
from sama_kernels.pretext import pretext
from sama_mega.config.schema import Recipe
from sama_mega.encoders import Encoders
from sama_mega.inference.editor import Editor, SamplingSettings, frames_from_pixels
from sama_mega.inference.pictures import before_after_picture, write_video
from sama_mega.parallel.collectives import broadcast_object
from sama_mega.parallel.runtime import ParallelContext
from sama_mega.train.hooks.base import Hook, Run
from sama_mega.train.report import StepReport
from sama_mega.train.state import TrainState

_log = logging.getLogger(__name__)

DEFAULT_FPS = 16.0
MAX_SAMPLING_STEPS = 12
"""A look at the run, not a final edit: the time it takes is bounded."""


@dataclass(frozen=True)
class _Source:
    """What the ranks must know of a decoded row: its source's frames, unperturbed, and their rate."""

    frames: NDArray[np.uint8]
    fps: float | None


class SampleHook(Hook):
    """Every `train.sample_every` steps and after the last one, edits the manifest's first good videos.

    All ranks sample the same clips, since putting the averaged weights into the model and running it take all of
    them. What only one rank can meet, a clip that does not decode or a picture that cannot be written, stays on rank
    0 and never ends the run.

    Args:
        recipe: The whole recipe.
        dataset: Where the clips come from.
        encoders: Frozen encoders.
        state: Its averaged weights are used.
        context: The running layout; rank 0 decodes and writes.
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
        self._editor = Editor(recipe, state.model, encoders, context.device)

    def on_step_end(self, run: Run, report: StepReport) -> None:
        """Samples when it is due."""
        every = run.recipe.train.sample_every
        is_due = bool(every) and report.step % every == 0
        if run.recipe.train.num_samples and (is_due or report.step == run.total_steps):
            with self._state.optimizer.temporary_weights(self._state.average.values):
                self._sample(run, report.step)

    def _sample(self, run: Run, step: int) -> None:
        sampled, data = 0, run.recipe.data
        with ClipReader(data.buckets, data.max_frames, data.decode_timeout_seconds) as reader:
            for index in self._candidates():
                # None on every rank alike: a rank that skipped alone would leave the others waiting for it.
                source = broadcast_object(self._decoded_on_first_rank(reader, index), self._context.world_group)
                if source is None:
                    continue
                self._edit_one(run, f"step-{step:08d}-{sampled}", index, source)
                sampled += 1
                if sampled == run.recipe.train.num_samples:
                    return

    def _candidates(self) -> list[int]:
        """Rows to try: videos first, a few more than wanted because some may not decode."""
        videos, images = (self._dataset.indices_of(kind).tolist() for kind in ("video", "image"))
        return (videos + images)[: 4 * self._recipe.train.num_samples]

    def _decoded_on_first_rank(self, reader: ClipReader, index: int) -> _Source | None:
        """A row's source; None on other ranks, and where it cannot be decoded."""
        if not self._context.is_first_rank:
            return None
        try:
            clip = reader.read(self._dataset[index], self._recipe.data.decode_threads)
        except DataError as error:
            _log.info("sample of row %d skipped: %s", index, error)
            return None
        return _Source(clip.source, clip.fps)

    def _edit_one(self, run: Run, name: str, index: int, source: _Source) -> None:
        recipe, row = self._recipe, self._dataset[index]
        num_frames, height, width = source.frames.shape[:3]
        plan = plan_for(row, num_frames, height, width, recipe.motion, recipe.train.seed, epoch=0)
        prompt, _ = make_prompt(row, plan)
        perturbed = pretext(torch.from_numpy(source.frames), plan.frame_indices, plan.tube_order)
        steps = min(recipe.diffusion.sampling_steps, MAX_SAMPLING_STEPS)
        settings = SamplingSettings(steps, recipe.diffusion.guidance, recipe.train.seed)
        edited = self._editor.edit(perturbed[None], [prompt], settings, kind=row.kind, num_frames=num_frames)
        if not run.is_main:
            return
        shown, frames = frames_from_pixels(perturbed).numpy(), frames_from_pixels(edited[0]).numpy()
        path = run.folder.samples / f"{name}.png"
        try:
            before_after_picture(shown, frames, path, title=prompt)
            if num_frames > 1:
                write_video(path.with_suffix(".mp4"), frames, source.fps or DEFAULT_FPS)
        except OSError as error:
            _log.warning("sample %s cannot be written: %s", path, error.strerror or error)
