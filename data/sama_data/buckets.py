"""From a clip's size and length to those of its bucket: nearest aspect, cover, centre crop, 4k+1 frames."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sama_data.errors import DataError

# Width x height, about 400,000 pixels each, sides divisible by 32. Source: SAMA (arXiv 2603.19228), 480p
# buckets.
LANDSCAPE_BUCKETS_480P: tuple[tuple[int, int], ...] = (
    (896, 448),
    (832, 480),
    (768, 512),
    (736, 544),
    (704, 576),
    (672, 608),
    (640, 640),
)
BUCKETS_480P: tuple[tuple[int, int], ...] = LANDSCAPE_BUCKETS_480P + tuple(
    (height, width) for width, height in LANDSCAPE_BUCKETS_480P if width != height
)

# The video encoder's temporal stride is 4 with the first frame alone.
FRAMES_PER_LATENT = 4


@dataclass(frozen=True, slots=True)
class Geometry:
    """How a picture becomes a bucket's size: scaled to (scaled_width, scaled_height), then cropped.

    All values are pixels; left and top place the crop inside the scaled picture.
    """

    scaled_width: int
    scaled_height: int
    left: int
    top: int
    width: int
    height: int


def choose_bucket(width: int, height: int, buckets: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """Returns the (width, height) bucket whose aspect ratio is nearest, by the logarithm of the ratio.

    Of equally near buckets the first listed wins.

    Raises:
        DataError: There is no bucket.
    """
    return buckets[int(choose_buckets(np.array([width]), np.array([height]), buckets)[0])]


def choose_buckets(
    widths: NDArray[np.int64], heights: NDArray[np.int64], buckets: Sequence[tuple[int, int]]
) -> NDArray[np.int64]:
    """Returns `choose_bucket` of many pictures at once, as places in the list of buckets.

    Args:
        widths: ``[N]`` int64, pixels, at least 1.
        heights: ``[N]`` likewise.
        buckets: The (width, height) buckets.

    Raises:
        DataError: There is no bucket.
    """
    if not buckets:
        raise DataError("data.buckets is empty: list at least one [width, height]")
    of_buckets = np.array(buckets, dtype=np.int64)
    wide = widths[:, None] * of_buckets[:, 1]
    tall = heights[:, None] * of_buckets[:, 0]
    # The larger ratio of two aspect ratios orders as the difference of their logarithms, and one division of whole
    # numbers rounds alike on every machine: equally near buckets stay equal.
    return np.argmin(np.maximum(wide, tall) / np.minimum(wide, tall), axis=1)


def cover(width: int, height: int, bucket: tuple[int, int]) -> Geometry:
    """Returns how to scale a width x height picture until it covers the bucket, and crop the middle."""
    bucket_width, bucket_height = bucket
    scale = max(bucket_width / width, bucket_height / height)
    # max(): rounding must never leave the picture a pixel short of the bucket.
    scaled_width = max(bucket_width, round(width * scale))
    scaled_height = max(bucket_height, round(height * scale))
    return Geometry(
        scaled_width=scaled_width,
        scaled_height=scaled_height,
        left=(scaled_width - bucket_width) // 2,
        top=(scaled_height - bucket_height) // 2,
        width=bucket_width,
        height=bucket_height,
    )


def cut_length(num_frames: int) -> int:
    """Returns the largest 4k+1 that is at most num_frames.

    Raises:
        ValueError: num_frames is below 1.
    """
    if num_frames < 1:
        raise ValueError(f"a clip needs at least one frame, not {num_frames}")
    return (num_frames - 1) // FRAMES_PER_LATENT * FRAMES_PER_LATENT + 1
