"""How long a sample will take to train on, relative to others, from what its manifest row tells."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from sama_data.buckets import FRAMES_PER_LATENT, choose_buckets
from sama_data.traits import Traits

PIXELS_PER_TOKEN_SIDE = 16  # 8 in the video encoder, 2 in the patch
# At this length attention costs as much as everything that is linear in the length (6 x the 14B model's
# width). It only weighs samples against each other, so one value serves every model.
ATTENTION_EQUALS_LINEAR_TOKENS = 30_000


def predicted_cost(num_frames: int, width: int | None, height: int | None, buckets: Sequence[tuple[int, int]]) -> float:
    """Returns the cost of one pair, in tokens' worth of linear work.

    Args:
        num_frames: Frames of the clip, before the cut to 4k+1; 1 for an image.
        width: The clip's own width in pixels; None where the manifest does not say.
        height: The same for its height.
        buckets: The (width, height) buckets that clips are brought to.
    """
    known = (np.array([num_frames]), np.array([width or 0]), np.array([height or 0]))
    return float(_predicted_costs(*known, buckets)[0])


def row_costs(
    traits: Traits, indices: NDArray[np.int64], buckets: Sequence[tuple[int, int]], max_frames: int
) -> NDArray[np.float64]:
    """Returns the predicted costs of rows; a video whose length is not known counts as max_frames.

    Args:
        traits: Of all rows.
        indices: ``[N]`` which rows.
        buckets: As in `predicted_cost`.
        max_frames: The longest clip wanted.
    """
    lengths = traits.num_frames[indices]
    num_frames = np.where(lengths > 0, np.minimum(lengths, max_frames), max_frames)
    num_frames[traits.is_image[indices]] = 1
    width, height = (side[indices].astype(np.int64) for side in (traits.width, traits.height))
    return _predicted_costs(num_frames, width, height, buckets)


def _predicted_costs(
    num_frames: NDArray[np.int64],
    widths: NDArray[np.int64],
    heights: NDArray[np.int64],
    buckets: Sequence[tuple[int, int]],
) -> NDArray[np.float64]:
    """`predicted_cost` of many pairs; a width or height of 0 is not known."""
    is_known = (widths > 0) & (heights > 0)
    chosen = choose_buckets(np.maximum(widths, 1), np.maximum(heights, 1), buckets)
    sides = np.maximum(np.array(buckets, np.int64) // PIXELS_PER_TOKEN_SIDE, 1)
    patches_per_latent = np.prod(sides, axis=1)[np.where(is_known, chosen, 0)]
    latents = 1 + (num_frames.astype(np.int64) - 1) // FRAMES_PER_LATENT
    tokens = 2 * latents * patches_per_latent  # source and target
    return tokens * (1.0 + tokens / ATTENTION_EQUALS_LINEAR_TOKENS)
