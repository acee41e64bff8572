"""How long a sample will take to train on, relative to others, from what its manifest row tells."""

from __future__ import annotations

from collections.abc import Sequence

from sama_data.buckets import FRAMES_PER_LATENT, choose_bucket, cut_length

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
    bucket_width, bucket_height = buckets[0] if not width or not height else choose_bucket(width, height, buckets)
    latents = 1 + (cut_length(num_frames) - 1) // FRAMES_PER_LATENT
    patches = latents * max(1, bucket_width // PIXELS_PER_TOKEN_SIDE) * max(1, bucket_height // PIXELS_PER_TOKEN_SIDE)
    tokens = 2 * patches  # source and target
    return tokens * (1.0 + tokens / ATTENTION_EQUALS_LINEAR_TOKENS)
