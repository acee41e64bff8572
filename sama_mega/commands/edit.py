"""`sama-mega edit`: edits a video or a picture by instruction."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from sama_mega.config.errors import ConfigError
from sama_mega.parallel.rank_environment import read_rank_environment

if TYPE_CHECKING:
    from sama_mega.encoders import Tiling
    from sama_mega.inference.editor import SamplingSettings


def run(
    checkpoint: Path,
    video: Path,
    instruction: str,
    out: Path,
    steps: int | None = None,
    guidance: float | None = None,
    source_guidance: float = 0.0,
    seed: int = 1,
    weights: str = "ema",
    max_frames: int = 81,
    tensor: int | None = None,
    context: int = 1,
    tiling: Tiling = "auto",
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
        source_guidance: Guidance scale of the source; 0 is none.
        seed: Of the noise.
        weights: ``ema`` or ``model``.
        max_frames: A longer clip is refused.
        tensor: Ranks that share the weights; None takes all that `context` leaves.
        context: Ranks that share the tokens; ranks beyond both share the passes of guidance.
        tiling: Whether the Wan VAE works in tiles.
        as_json: Whether the last line is one JSON object.

    Returns:
        Exit status 0.

    Raises:
        ConfigError: There are more data ranks than passes in a step.
    """
    from sama_mega.inference.edit_clip import edit_clip, require_writable, write_edit
    from sama_mega.inference.editor import SamplingSettings
    from sama_mega.inference.load import open_checkpoint
    from sama_mega.observe.sampling import sampling_progress

    ranks = read_rank_environment(os.environ)
    require_writable(out, video)
    with open_checkpoint(
        checkpoint, weights, ranks.world_size, tensor=tensor, context=context, tiling=tiling
    ) as opened:
        diffusion = opened.recipe.diffusion
        settings = SamplingSettings(
            steps=diffusion.sampling_steps if steps is None else steps,
            guidance=diffusion.guidance if guidance is None else guidance,
            seed=seed,
            source_guidance=source_guidance,
        )
        _require_work_for_all(opened.context.layout.data, settings)
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


def _require_work_for_all(num_data_ranks: int, settings: SamplingSettings) -> None:
    from sama_mega.diffusion.sampler import needed_conditions

    num_passes = len(needed_conditions(settings.guidance, settings.source_guidance))
    if num_data_ranks > num_passes:
        raise ConfigError(
            f"{num_data_ranks} data ranks are left by --tp and --cp, and a step has {num_passes} passes to share"
            f" (guidance {settings.guidance:g}, source guidance {settings.source_guidance:g}): raise --tp or"
            " --cp, or start fewer ranks"
        )
