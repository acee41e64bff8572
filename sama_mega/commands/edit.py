"""`sama-mega edit`: edits a video or a picture by instruction."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from sama_mega.parallel.rank_environment import read_rank_environment


def run(
    checkpoint: Path,
    video: Path,
    instruction: str,
    out: Path,
    steps: int | None = None,
    guidance: float | None = None,
    seed: int = 1,
    weights: str = "ema",
    max_frames: int = 81,
    as_json: bool = False,
) -> int:
    """Writes the edited mp4 and a before/after picture.

    Args:
        checkpoint: A checkpoint or a run folder.
        video: The clip or picture to edit.
        instruction: What to change.
        out: The mp4 to write; the picture lies beside it.
        steps: Sampling steps; None takes the checkpoint's recipe.
        guidance: Guidance scale; None takes the checkpoint's recipe.
        seed: Of the noise.
        weights: ``ema`` or ``model``.
        max_frames: A longer clip is refused.
        as_json: Whether the last line is one JSON object.

    Returns:
        Exit status 0.
    """
    from sama_mega.inference.edit_clip import edit_clip, require_writable, write_edit
    from sama_mega.inference.editor import SamplingSettings
    from sama_mega.inference.load import open_checkpoint
    from sama_mega.observe.sampling import sampling_progress

    ranks = read_rank_environment(os.environ)
    require_writable(out)
    with open_checkpoint(checkpoint, weights, ranks.world_size) as opened:
        diffusion = opened.recipe.diffusion
        settings = SamplingSettings(
            steps=diffusion.sampling_steps if steps is None else steps,
            guidance=diffusion.guidance if guidance is None else guidance,
            seed=seed,
        )
        with sampling_progress(settings.steps, shown=opened.context.is_first_rank) as on_step:
            clip = edit_clip(opened, video, instruction, settings, max_frames, on_step)
        if not opened.context.is_first_rank:
            return 0
        written = write_edit(clip, out, instruction)
        num_frames, height, width = clip.edit.shape[:3]
        width, height = clip.size or (width, height)
        sound = f"sound {written.sound}" if written.sound else "no sound"
        print(f"{out}: {num_frames} frames, {width}x{height}, {clip.fps:g} fps, {sound}")
        print(f"before and after: {written.picture}")
        if written.sound_problem is not None:
            print(f"warning: the sound of {video} is left out: {written.sound_problem}", file=sys.stderr)
        if as_json:
            result = {"video": str(out), "picture": str(written.picture), "frames": num_frames, "fps": clip.fps}
            result |= {"width": width, "height": height, "sound": written.sound}
            print(json.dumps(result | {"checkpoint": str(opened.path)}))
    return 0
